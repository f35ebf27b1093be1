// The system's liblz4, opened at run time: nothing of it is copied or needed at build time. Its C functions have been
// stable since version 1.7 and carry the library's soname, liblz4.so.1.
#pragma once

#include <string>

namespace mow {

struct Lz4 {
  // Bytes written to `target`, 0 where they would not fit into `room`.
  int (*compress)(const char* source, char* target, int num_bytes, int room) = nullptr;
  // Bytes written to `target`, negative where `source` is no LZ4 block that fits into `room`; writes nothing beyond it.
  int (*decompress)(const char* source, char* target, int num_bytes, int room) = nullptr;
  // Stops once `wanted` bytes are written.
  int (*decompress_first)(const char* source, char* target, int num_bytes, int wanted, int room) = nullptr;
  std::string missing;  // why the library could not be opened; empty where it is there
};

// Opened once per process.
const Lz4& lz4();

}  // namespace mow
