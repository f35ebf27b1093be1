// Drawing and copying replay windows. No Python types: bindings.cpp checks the arrays and hands over addresses.
// Letters: K tasks, B windows per task, L steps per window. A ring is [num_rows, capacity, step_bytes].
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mow {

struct WindowShape {
  int64_t num_rows, capacity;                // of the ring
  int64_t num_tasks, num_windows, length;    // K, B, L
};

// One recorded quantity: where its ring lies, where its windows [K, B, L, step_bytes] go.
struct Field {
  const std::byte* ring;
  std::byte* out;
  int64_t step_bytes;
};

// Names one batch of random draws: the same name gives the same windows, on any machine and any number of threads.
struct DrawName {
  uint64_t seed, counter;
  uint32_t stream;
};

// bits * count / 2^64, rounded down: uniform in [0, count) where bits is uniform in [0, 2^64), without the bias and
// without the division of bits % count.
int64_t scale_to(uint64_t bits, uint64_t count);

// start [K, B]: the ring position of each window's first step, uniform over the windows that the ring holds whole; or,
// with `recent`, the newer of two such draws.
void draw_windows(const DrawName& name, const WindowShape& shape, const int64_t* size, const int64_t* head, bool recent,
                  int64_t* start);

// Copies window b of task k from ring row rows[k], from start[k, b] on, wrapping at capacity.
void gather_windows(const std::vector<Field>& fields, const WindowShape& shape, const int64_t* rows,
                    const int64_t* start);

// The same for one field on a CUDA device; all addresses are the device's, `stream` is a cudaStream_t. Returns at once.
// nullptr where the launch went well, else CUDA's words for what went wrong.
const char* gather_windows_cuda(const Field& field, const WindowShape& shape, const int64_t* rows,
                                const int64_t* start, int device, void* stream);

}  // namespace mow
