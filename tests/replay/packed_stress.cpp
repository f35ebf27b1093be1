// One writer and four readers on a packed store, for the sanitizers; every frame tells its row and its step.
//
//     packed_stress SECONDS [FOLDER]    prints how much was done; 1 where a frame was wrong. With a folder most blocks
//                                       lie on its disk
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include <dlfcn.h>

#include "lz4.h"
#include "packed.h"
#include "thread_pool.h"

namespace {

constexpr int64_t kRows = 3, kCapacity = 50, kFrameBytes = 8 * 8 * 3 * 64, kLength = 20, kWindows = 9;

// Row and step, then bytes that follow from them: every fifth block is noise, so that it stays raw.
void write_frame(std::byte* frame, int64_t row, int64_t step) {
  uint64_t state = static_cast<uint64_t>(row * 1'000'003 + step) * 0x9E3779B97F4A7C15u + 1;
  const bool is_noise = step / mow::kBlockSteps % 5 == 0;
  for (int64_t i = 0; i < kFrameBytes; i += 8) {
    if (is_noise) state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(frame + i, &state, 8);
  }
}

void write_steps(mow::PackedStore& store, const std::atomic<bool>& stop) {
  std::vector<std::byte> frames(kRows * kFrameBytes);
  for (int64_t step = 0; !stop; ++step) {
    for (int64_t row = 0; row < kRows; ++row) write_frame(frames.data() + row * kFrameBytes, row, step);
    store.append(frames.data(), kFrameBytes);
  }
}

void open_lz4() {
  void* library = dlopen("liblz4.so.1", RTLD_NOW | RTLD_LOCAL);
  auto& functions = mow::lz4();
  functions.compress = reinterpret_cast<decltype(functions.compress)>(dlsym(library, "LZ4_compress_default"));
  functions.decompress = reinterpret_cast<decltype(functions.decompress)>(dlsym(library, "LZ4_decompress_safe"));
  functions.decompress_first =
      reinterpret_cast<decltype(functions.decompress_first)>(dlsym(library, "LZ4_decompress_safe_partial"));
}

// Gathers windows from the steps held; returns how many were right, or -1.
int64_t read_windows(const mow::PackedStore& store, const std::atomic<bool>& stop, uint64_t state) {
  const int64_t rows[] = {2, 0};
  std::vector<int64_t> first(2 * kWindows);
  std::vector<std::byte> out(2 * kWindows * kLength * kFrameBytes), expected(kFrameBytes);
  int64_t num_right = 0;
  while (!stop) {
    const int64_t num_steps = store.num_steps();
    if (num_steps < kLength) continue;
    const int64_t oldest = num_steps > kCapacity ? num_steps - kCapacity : 0;
    for (int64_t& step : first) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      step = oldest + static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(num_steps - kLength - oldest + 1));
    }
    try {
      const mow::PendingGather gather = store.begin_gather({rows, first.data(), 2, kWindows, kLength}, out.data());
      std::this_thread::yield();  // the writer goes on
      gather.finish();
    } catch (const std::invalid_argument&) {
      continue;  // the writer was faster: the oldest step has left meanwhile
    }
    for (int64_t i = 0; i < 2 * kWindows * kLength; ++i) {
      write_frame(expected.data(), rows[i / (kWindows * kLength)], first[i / kLength] + i % kLength);
      if (std::memcmp(expected.data(), out.data() + i * kFrameBytes, kFrameBytes) != 0) return -1;
    }
    for (const int64_t number : {store.block_range().first, store.block_range().second - 1}) {
      try {
        store.block(1, number);
      } catch (const std::invalid_argument&) {
        continue;
      }
    }
    num_right += 2 * kWindows;
  }
  return num_right;
}

}  // namespace

int main(int num_arguments, char** arguments) {
  mow::ThreadPool::shared().resize(3);
  open_lz4();
  mow::PackedStore store(kRows, kCapacity, kFrameBytes);
  if (num_arguments > 2) store.spill_to(arguments[2], 2 * kRows * mow::kBlockSteps * kFrameBytes);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> num_right{0}, num_wrong{0};
  std::vector<std::thread> threads;
  threads.emplace_back([&] { write_steps(store, stop); });
  for (uint64_t reader = 0; reader < 4; ++reader) {
    threads.emplace_back([&, reader] {
      const int64_t right = read_windows(store, stop, reader);
      (right < 0 ? num_wrong : num_right) += right < 0 ? 1 : right;
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(static_cast<int64_t>(1000 * std::atof(arguments[1]))));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  mow::ThreadPool::shared().resize(1);  // ends the pool's threads, so that nothing is left to report
  std::printf("%lld steps written, %lld windows right, %lld readers met a wrong frame\n",
              static_cast<long long>(store.num_steps()), static_cast<long long>(num_right.load()),
              static_cast<long long>(num_wrong.load()));
  return num_wrong == 0 && num_right > 0 ? 0 : 1;
}
