// Copies past the caches: for a batch that is larger than they are and is read much later, by a GPU or another thread.
// A plain store first reads the line that it is about to overwrite.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace mow {

// Other threads may read what was written only after stream_fence() on the thread that wrote it.
inline void stream_copy(std::byte* to, const std::byte* from, size_t num_bytes) {
#if defined(__SSE2__)
  constexpr size_t kWord = sizeof(__m128i), kLine = 4 * kWord;
  const size_t before = std::min(num_bytes, (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, before);
  to += before, from += before, num_bytes -= before;
  for (; num_bytes >= kLine; to += kLine, from += kLine, num_bytes -= kLine) {
    for (size_t at = 0; at < kLine; at += kWord) {
      const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at), word);
    }
  }
#endif
  std::memcpy(to, from, num_bytes);
}

// Waits for the writes of stream_copy: rather once for many copies, as the next may start while the last are under way.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace mow
