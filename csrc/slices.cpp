#include "slices.h"

#include <algorithm>

#include "check.h"
#include "philox.h"
#include "thread_pool.h"

namespace mow {
namespace {

// Below this, waking the pool takes longer than the copy itself.
constexpr int64_t kInlineFloats = 1 << 18;

void copy_window(const RowFile& file, int64_t f, const std::vector<Column>& columns, int64_t start, int64_t window,
                 int64_t length) {
  for (const Column& column : columns) {
    const float* in = file.rows + start * file.width + column.offset[f];
    float* out = column.out + window * length * column.out_width;
    for (int64_t i = 0; i < length; ++i, in += file.width, out += column.out_width) {
      std::fill(std::copy_n(in, column.width[f], out), out + column.out_width, 0.0f);
    }
  }
}

}  // namespace

void draw_slices(const DrawName& name, const std::vector<Episodes>& files, int64_t num_windows, int64_t* start,
                 int64_t* left) {
  uint32_t window = 0;
  for (const Episodes& episodes : files) {
    check_at_least("starts[E]", 1, episodes.starts[episodes.num]);
    const int64_t* end = episodes.starts + episodes.num + 1;
    for (int64_t b = 0; b < num_windows; ++b, ++window) {
      const PhiloxWords words = philox({window, name.stream, static_cast<uint32_t>(name.counter),
                                        static_cast<uint32_t>(name.counter >> 32)},
                                       name.seed);
      const int64_t index = scale_to(uint64_t{words.x} << 32 | words.y, end[-1]);
      const int64_t e = std::upper_bound(episodes.starts, end, index) - episodes.starts - 1;
      check_between("episode", 0, episodes.num - 1, e);  // sums that do not ascend lead anywhere
      start[window] = episodes.rows[e] + index - episodes.starts[e];
      left[window] = episodes.rows[e + 1] - start[window];
    }
  }
}

void gather_rows(const std::vector<RowFile>& files, const std::vector<Column>& columns, const int64_t* file,
                 const int64_t* start, int64_t num_windows, int64_t length) {
  check_at_least("length", 1, length);
  int64_t floats = 0;
  for (const Column& column : columns) {
    floats += length * column.out_width;
    for (size_t f = 0; f < files.size(); ++f) {
      check_range("offset", f, 0, files[f].width, column.offset[f]);
      check_range("width", f, 0, std::min(column.out_width, files[f].width - column.offset[f]), column.width[f]);
    }
  }
  for (int64_t n = 0; n < num_windows; ++n) {
    check_range("file", n, 0, static_cast<int64_t>(files.size()) - 1, file[n]);
    check_range("start", n, 0, files[file[n]].num_rows - length, start[n]);
  }
  const auto copy = [&](int64_t n) { copy_window(files[file[n]], file[n], columns, start[n], n, length); };
  if (num_windows * floats < kInlineFloats) {
    for (int64_t n = 0; n < num_windows; ++n) copy(n);
  } else {
    ThreadPool::shared().run(num_windows, copy);
  }
}

}  // namespace mow
