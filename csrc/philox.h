// Philox4x32-10, a random number generator without state: four words in, four random words out.
// The same words come out on the host, on the device and in mow/replay/sampler.py.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3 and table 2.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MOW_HOST_DEVICE __host__ __device__
#else
#define MOW_HOST_DEVICE
#endif

namespace mow {

struct PhiloxWords {
  uint32_t x, y, z, w;
};

MOW_HOST_DEVICE inline PhiloxWords philox(PhiloxWords counter, uint64_t key) {
  // The two halves of the key walk along Weyl sequences: the golden ratio and sqrt(3) - 1, times 2^32.
  uint32_t key_low = static_cast<uint32_t>(key);
  uint32_t key_high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product_x = uint64_t{0xD2511F53u} * counter.x;
    const uint64_t product_z = uint64_t{0xCD9E8D57u} * counter.z;
    counter = PhiloxWords{static_cast<uint32_t>(product_z >> 32) ^ counter.y ^ key_low,
                          static_cast<uint32_t>(product_z),
                          static_cast<uint32_t>(product_x >> 32) ^ counter.w ^ key_high,
                          static_cast<uint32_t>(product_x)};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace mow
