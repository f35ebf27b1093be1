#include "replay.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "philox.h"
#include "thread_pool.h"

namespace mow {
namespace {

// Below this, waking the pool takes longer than the copy itself.
constexpr int64_t kInlineBytes = 1 << 20;

void copy_window(const Field& field, const WindowShape& shape, int64_t row, int64_t start, int64_t window) {
  const std::byte* ring = field.ring + row * shape.capacity * field.step_bytes;
  std::byte* out = field.out + window * shape.length * field.step_bytes;
  const int64_t before_wrap = std::min(shape.length, shape.capacity - start);
  std::memcpy(out, ring + start * field.step_bytes, before_wrap * field.step_bytes);
  std::memcpy(out + before_wrap * field.step_bytes, ring, (shape.length - before_wrap) * field.step_bytes);
}

}  // namespace

int64_t scale_to(uint64_t bits, uint64_t count) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>((Wide{bits} * count) >> 64);
}

void draw_windows(const DrawName& name, const WindowShape& shape, const int64_t* size, const int64_t* head, bool recent,
                  int64_t* start) {
  check_at_least("capacity", 1, shape.capacity);
  check_at_least("length", 1, shape.length);
  for (int64_t task = 0; task < shape.num_tasks; ++task) {
    check_range("size", task, shape.length, shape.capacity, size[task]);
    check_range("head", task, 0, shape.capacity - 1, head[task]);
    const int64_t num_ages = size[task] - shape.length + 1;
    for (int64_t b = 0; b < shape.num_windows; ++b) {
      const int64_t window = task * shape.num_windows + b;
      const PhiloxWords words = philox({static_cast<uint32_t>(window), name.stream, static_cast<uint32_t>(name.counter),
                                        static_cast<uint32_t>(name.counter >> 32)},
                                       name.seed);
      int64_t age = scale_to(uint64_t{words.x} << 32 | words.y, num_ages);
      if (recent) age = std::max(age, scale_to(uint64_t{words.z} << 32 | words.w, num_ages));
      // head - size is where the oldest step lies, down to -capacity where the ring has wrapped.
      start[window] = (head[task] - size[task] + age + shape.capacity) % shape.capacity;
    }
  }
}

void gather_windows(const std::vector<Field>& fields, const WindowShape& shape, const int64_t* rows,
                    const int64_t* start) {
  const int64_t total = shape.num_tasks * shape.num_windows;
  check_at_least("length", 1, shape.length);
  check_at_least("capacity", shape.length, shape.capacity);
  for (int64_t task = 0; task < shape.num_tasks; ++task) check_range("rows", task, 0, shape.num_rows - 1, rows[task]);
  for (int64_t i = 0; i < total; ++i) check_range("start", i, 0, shape.capacity - 1, start[i]);

  int64_t window_bytes = 0;
  for (const Field& field : fields) window_bytes += shape.length * field.step_bytes;
  const auto copy = [&](int64_t i) {
    for (const Field& field : fields) copy_window(field, shape, rows[i / shape.num_windows], start[i], i);
  };
  if (total * window_bytes < kInlineBytes) {
    for (int64_t i = 0; i < total; ++i) copy(i);
  } else {
    ThreadPool::shared().run(total, copy);
  }
}

}  // namespace mow
