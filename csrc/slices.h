// Windows of recorded episodes: drawn so that none crosses the end of its episode, and gathered from files of float32
// rows, one file per task. No Python types. Letters: K tasks, B windows per task, N windows, L rows per window.
#pragma once

#include <cstdint>
#include <vector>

#include "replay.h"

namespace mow {

// Episodes of one file, E of them. Both arrays are [E + 1], ascend and begin with 0.
struct Episodes {
  const int64_t* starts;  // window starts before episode e
  const int64_t* rows;    // rows before episode e
  int64_t num;            // E
};

// start [K, B]: the first row of each window, uniform over all starts of its file; left [K, B]: the rows from there to
// the end of the episode.
void draw_slices(const DrawName& name, const std::vector<Episodes>& files, int64_t num_windows, int64_t* start,
                 int64_t* left);

struct RowFile {
  const float* rows;  // [num_rows, width]
  int64_t num_rows, width;
};

// A range of every row: of file f the `width[f]` numbers from `offset[f]` on go to out [N, L, out_width], zeros follow.
struct Column {
  const int64_t *offset, *width;
  float* out;
  int64_t out_width;
};

// Window n is rows start[n] to start[n] + L - 1 of file[n].
void gather_rows(const std::vector<RowFile>& files, const std::vector<Column>& columns, const int64_t* file,
                 const int64_t* start, int64_t num_windows, int64_t length);

}  // namespace mow
