// CRC32C (Castagnoli), the checksum that iSCSI and ext4 use: with the instruction of SSE4.2 where the CPU has it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mow {

// Of `num_bytes` bytes; crc32c of the nine letters "123456789" is 0xE3069283.
uint32_t crc32c(const std::byte* bytes, size_t num_bytes);

// The same by tables alone, for CPUs without the instruction, and to test it against.
uint32_t crc32c_by_table(const std::byte* bytes, size_t num_bytes);

}  // namespace mow
