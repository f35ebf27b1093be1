#include "crc32c.h"

#include <array>
#include <cstring>

namespace mow {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;  // reflected: bit 31 stands for x^0

// table[k][b]: what byte b does to the checksum when k more bytes follow it. Eight tables take eight bytes at a time.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 255];
    }
  }
  return table;
}

constexpr Tables kTables = make_tables();

uint64_t load_word(const std::byte* bytes) {
  uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

#if defined(__x86_64__)
constexpr size_t kLane = 256;

// shift[k][b]: what byte k of a checksum, being b, becomes when kLane zeros follow.
using Shift = std::array<std::array<uint32_t, 256>, 4>;

constexpr Shift make_shift() {
  Shift shift{};
  for (size_t k = 0; k < 4; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte << (8 * k);
      for (size_t i = 0; i < kLane; ++i) crc = (crc >> 8) ^ kTables[0][crc & 255];
      shift[k][byte] = crc;
    }
  }
  return shift;
}

constexpr Shift kShift = make_shift();

uint64_t shifted(uint64_t crc) {
  return kShift[0][crc & 255] ^ kShift[1][(crc >> 8) & 255] ^ kShift[2][(crc >> 16) & 255] ^
         kShift[3][(crc >> 24) & 255];
}

// Compiled for SSE4.2 whatever the rest is compiled for; called only where the CPU has it.
__attribute__((target("sse4.2"))) uint32_t crc32c_by_instruction(const std::byte* bytes, size_t num_bytes) {
  uint64_t crc = 0xFFFFFFFFu;
  // The instruction takes three cycles but can start every cycle: three lanes at once, put together afterwards.
  for (; num_bytes >= 3 * kLane; bytes += 3 * kLane, num_bytes -= 3 * kLane) {
    uint64_t second = 0, third = 0;
    for (size_t at = 0; at < kLane; at += 8) {
      crc = __builtin_ia32_crc32di(crc, load_word(bytes + at));
      second = __builtin_ia32_crc32di(second, load_word(bytes + kLane + at));
      third = __builtin_ia32_crc32di(third, load_word(bytes + 2 * kLane + at));
    }
    crc = shifted(shifted(crc) ^ second) ^ third;
  }
  for (; num_bytes >= 8; bytes += 8, num_bytes -= 8) crc = __builtin_ia32_crc32di(crc, load_word(bytes));
  uint32_t rest = static_cast<uint32_t>(crc);
  for (; num_bytes > 0; ++bytes, --num_bytes) rest = __builtin_ia32_crc32qi(rest, static_cast<uint8_t>(*bytes));
  return ~rest;
}
#endif

}  // namespace

uint32_t crc32c_by_table(const std::byte* bytes, size_t num_bytes) {
  uint32_t crc = 0xFFFFFFFFu;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  for (; num_bytes >= 8; bytes += 8, num_bytes -= 8) {
    const uint64_t word = load_word(bytes) ^ crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 255];
  }
#endif
  for (; num_bytes > 0; ++bytes, --num_bytes) crc = (crc >> 8) ^ kTables[0][(crc ^ static_cast<uint8_t>(*bytes)) & 255];
  return ~crc;
}

uint32_t crc32c(const std::byte* bytes, size_t num_bytes) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return crc32c_by_instruction(bytes, num_bytes);
#endif
  return crc32c_by_table(bytes, num_bytes);
}

}  // namespace mow
