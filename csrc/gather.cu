// Gathers replay windows whose rings lie on the GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <cstdint>

#include "replay.h"

namespace mow {
namespace {

constexpr int64_t kMaxThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // the loop in the kernel takes what lies beyond

// One block copies one step at a time, in words of 16 bytes or of one. All indices are 64-bit: a ring of frames passes
// 2^31 bytes at 175,000 frames. An index out of range stops the kernel, as in torch: it must not read other memory.
template <typename Word>
__global__ void gather_steps(const Word* __restrict__ ring, const int64_t* __restrict__ rows,
                             const int64_t* __restrict__ start, WindowShape shape, int64_t step_words,
                             Word* __restrict__ out) {
  const int64_t num_steps = shape.num_tasks * shape.num_windows * shape.length;
  for (int64_t step = blockIdx.x; step < num_steps; step += gridDim.x) {
    const int64_t window = step / shape.length;
    const int64_t row = rows[window / shape.num_windows];
    assert(row >= 0 && row < shape.num_rows);
    assert(start[window] >= 0 && start[window] < shape.capacity);
    int64_t position = start[window] + step % shape.length;
    if (position >= shape.capacity) position -= shape.capacity;
    const Word* source = ring + (row * shape.capacity + position) * step_words;
    Word* target = out + step * step_words;
    for (int64_t word = threadIdx.x; word < step_words; word += blockDim.x) target[word] = source[word];
  }
}

template <typename Word>
void launch(const Field& field, const WindowShape& shape, const int64_t* rows, const int64_t* start,
            cudaStream_t stream) {
  const int64_t step_words = field.step_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t warp_multiple = (step_words + 31) / 32 * 32;
  const auto threads = static_cast<unsigned>(std::min(kMaxThreads, warp_multiple));
  const auto blocks = static_cast<unsigned>(std::min(kMaxBlocks, shape.num_tasks * shape.num_windows * shape.length));
  gather_steps<Word><<<blocks, threads, 0, stream>>>(reinterpret_cast<const Word*>(field.ring), rows, start, shape,
                                                     step_words, reinterpret_cast<Word*>(field.out));
}

bool is_multiple_of_16(uintptr_t number) { return number % sizeof(uint4) == 0; }

}  // namespace

const char* gather_windows_cuda(const Field& field, const WindowShape& shape, const int64_t* rows,
                                const int64_t* start, int device, void* stream) {
  // This file brings its own CUDA runtime, which does not know the device that torch has chosen.
  cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const bool aligned = is_multiple_of_16(reinterpret_cast<uintptr_t>(field.ring)) &&
                       is_multiple_of_16(reinterpret_cast<uintptr_t>(field.out)) && is_multiple_of_16(field.step_bytes);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (aligned) {
    launch<uint4>(field, shape, rows, start, cuda_stream);
  } else {
    launch<uint8_t>(field, shape, rows, start, cuda_stream);
  }
  error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace mow
