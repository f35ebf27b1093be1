// Functions of the system's liblz4, which Python opens at run time (mow/replay/lz4.py) and hands over with use_lz4:
// nothing of the library is copied or needed at build time.
#pragma once

namespace mow {

struct Lz4 {
  // Bytes written to `target`, 0 where they would not fit into `room`.
  int (*compress)(const char* source, char* target, int num_bytes, int room) = nullptr;
  // Bytes written to `target`, negative where `source` is no LZ4 block that fits into `room`; writes nothing beyond it.
  int (*decompress)(const char* source, char* target, int num_bytes, int room) = nullptr;
  // Stops once `wanted` bytes are written.
  int (*decompress_first)(const char* source, char* target, int num_bytes, int wanted, int room) = nullptr;
};

// Set once per process, before the first PackedStore.
inline Lz4& lz4() {
  static Lz4 functions;
  return functions;
}

}  // namespace mow
