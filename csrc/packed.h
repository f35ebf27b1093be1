// Frames of R rows, kept as LZ4 blocks of eight steps with a checksum each, and unpacked inside the gather. No Python
// types. Letters: R rows, K tasks, B windows per task, L steps per window; a step is absolute, counted since the start.
//
//     steps       0 ... 7   8 ... 15   16 ... 23   24 25 26
//     kept in     slab 0    slab 1     slab 2      the open block (raw)
//
// All rows take their steps together, so the eight steps of all rows are sealed at once, into one slab. A slab never
// changes: a reader that holds it may read on while the writer seals new ones and drops it. With a disk to spill to, the
// oldest slabs in memory beyond a limit are replaced by slabs whose bytes lie in a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "spill.h"

namespace mow {

constexpr int64_t kBlockSteps = 8;  // LZ4 looks back 64 KB: five frames of 64 x 64 x 3

// One row's eight frames as they are stored. They are raw exactly where they take as many bytes as the frames.
struct StoredBlock {
  uint64_t offset;  // within the slab's bytes
  uint32_t num_bytes;
  uint32_t crc;  // CRC32C of the stored bytes
};

struct Slab {
  std::vector<StoredBlock> blocks;  // [R]
  std::vector<std::byte> bytes;     // empty where they are on the disk
  std::unique_ptr<const SpilledBytes> spilled;
};

// A block on its way in or out, for keeping it in a file. On the way out `owner` keeps the bytes alive, on the way in
// the caller does.
struct LooseBlock {
  std::string_view bytes;
  bool is_raw;
  uint32_t crc;
  std::shared_ptr<const void> owner;
};

// Windows to gather: b of task k starts at step first[k, b] of row rows[k].
struct WindowList {
  const int64_t* rows;   // [K]
  const int64_t* first;  // [K, B]
  int64_t num_tasks, num_windows, length;
};

// What one window takes from one sealed block: frames [from, to) of it.
struct Piece {
  std::shared_ptr<const Slab> slab;
  int64_t window, row, number, from, to;
  std::byte* out;
};

// A gather whose windows are fixed: it holds all that it needs, whatever the writer does meanwhile.
class PendingGather {
 public:
  PendingGather(std::vector<Piece> pieces, int64_t num_windows, int64_t frame_bytes);

  // Checks and unpacks all pieces into their places, on the thread pool.
  void finish() const;

 private:
  // The same for pieces [begin, end), on one thread; `wrong` [pieces] takes what is wrong with the block of each.
  void finish_run(int64_t begin, int64_t end, const char** wrong) const;

  std::vector<Piece> pieces_;  // those of one block follow each other, the one that needs the most of it first
  int64_t num_windows_, frame_bytes_;
  bool streams_;  // past the caches
};

// One writer and any number of readers may run at once. Blocks that fail their checksum are std::runtime_error with
// the task and step; arguments that do not fit are std::invalid_argument; a disk that takes no more is
// std::system_error.
class PackedStore {
 public:
  PackedStore(int64_t num_rows, int64_t capacity, int64_t frame_bytes);

  // From here on slabs in memory beyond `memory_limit` bytes go to a file in `folder`, the oldest first.
  void spill_to(const std::string& folder, int64_t memory_limit);

  // The next step of every row: frame_bytes each, `row_stride` bytes from row to row. Where the disk is full the step is
  // in all the same, in memory.
  void append(const std::byte* frames, int64_t row_stride);
  // blocks [R]: the next eight steps of every row, as block() of another store gave them; none may be open.
  void append_block(const std::vector<LooseBlock>& blocks);
  // Lets an empty store count from `num_steps`, a multiple of eight.
  void resume(int64_t num_steps);

  // out [K, B, L, frame_bytes]: written in part here, the rest by finish().
  PendingGather begin_gather(const WindowList& windows, std::byte* out) const;

  int64_t num_rows() const { return num_rows_; }
  int64_t capacity() const { return capacity_; }
  int64_t frame_bytes() const { return frame_bytes_; }
  int64_t num_steps() const;
  int64_t memory_bytes() const;
  int64_t disk_bytes() const;
  double ratio() const;  // raw bytes of the sealed frames over the bytes that they take; 1 where none is sealed

  // Absolute numbers of the sealed blocks, [first, end); block n holds steps 8 n to 8 n + 7. The same for all rows.
  std::pair<int64_t, int64_t> block_range() const;
  LooseBlock block(int64_t row, int64_t number) const;
  // The row's frames that are not sealed yet: [m, frame_bytes], m < 8.
  std::vector<std::byte> open_frames(int64_t row) const;

  // For tests: what a fault of the memory does. The block must be in memory.
  void flip_bit(int64_t row, int64_t number);

 private:
  int64_t block_bytes() const { return kBlockSteps * frame_bytes_; }
  int64_t first_visible() const { return num_steps_ > capacity_ ? num_steps_ - capacity_ : 0; }
  int64_t end_block() const { return first_block_ + static_cast<int64_t>(slabs_.size()); }
  std::shared_ptr<const Slab> slab(int64_t row, int64_t number) const;
  std::shared_ptr<const Slab> seal();
  void publish(std::shared_ptr<const Slab> slab, int64_t num_steps);
  void spill_old();

  const int64_t num_rows_, capacity_, frame_bytes_;

  std::mutex writer_;                // held by the one that appends
  std::vector<std::byte> packing_;   // [R, packed_limit], where seal() lets LZ4 write
  std::shared_ptr<SpillFile> spill_; // null where all stays in memory
  int64_t memory_limit_ = 0;         // of slab_bytes_, with spill_

  mutable std::mutex state_;         // guards all below; only the writer changes it, frames ahead of num_steps_ apart
  std::vector<std::byte> open_;      // [R, 8, frame_bytes]
  std::deque<std::shared_ptr<const Slab>> slabs_;
  int64_t first_block_ = 0;          // number of slabs_[0]
  int64_t num_steps_ = 0;
  int64_t num_spilled_ = 0;          // the first slabs_, whose bytes are on the disk
  int64_t slab_bytes_ = 0;           // of memory that slabs_ take, with everything around them
  int64_t disk_bytes_ = 0;
};

}  // namespace mow
