#include "packed.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>

#include "check.h"
#include "crc32c.h"
#include "lz4.h"
#include "stream_copy.h"
#include "thread_pool.h"

namespace mow {
namespace {

// Below this, waking the pool takes longer than the work.
constexpr int64_t kInlineBytes = 1 << 18;

// A batch of this size would push all else out of the caches.
constexpr int64_t kStreamBytes = 4 << 20;

// Pieces that a thread takes at a time: enough to know the next one, few enough for all threads to end together.
constexpr int64_t kRun = 8;

// LZ4 takes a fifth longer per byte where it is to stop early: for so many steps the whole block costs no more.
constexpr int64_t kWholeSteps = 7;

// A packed block must be smaller than this, or it is kept raw: unpacking would cost more than it saves.
int64_t packed_limit(int64_t block_bytes) { return block_bytes * 9 / 10; }

const char* chars(const std::byte* bytes) { return reinterpret_cast<const char*>(bytes); }
char* chars(std::byte* bytes) { return reinterpret_cast<char*>(bytes); }

// What a slab takes of memory: with its table, its place in the deque, and what shared_ptr and malloc put around them.
int64_t bytes_of(const Slab& slab) {
  constexpr int64_t kAround = sizeof(Slab) + sizeof(std::shared_ptr<Slab>) + 16 + 3 * 16;
  return static_cast<int64_t>(slab.bytes.capacity() + slab.blocks.capacity() * sizeof(StoredBlock)) + kAround;
}

[[noreturn]] void throw_corrupt(const std::string& where, int64_t step, const char* what) {
  throw std::runtime_error(where + ", steps " + std::to_string(step) + " to " +
                           std::to_string(step + kBlockSteps - 1) + ": " + what +
                           ": the stored frames changed; test this machine's memory and disk, and go on from a checkpoint");
}

constexpr const char* kWrongChecksum = "the checksum of the packed frames is wrong";
constexpr const char* kNoBlock = "the packed frames cannot be unpacked";
constexpr const char* kNoMemory = "no memory is left to unpack the frames";
constexpr const char* kNoDisk = "the packed frames cannot be read from the disk";

// A thread's own block of memory, which grows and is kept.
class Scratch {
 public:
  // nullptr where there is no memory.
  std::byte* room(size_t num_bytes) {
    if (size_ < num_bytes) {
      bytes_.reset(new (std::nothrow) std::byte[num_bytes]);
      size_ = bytes_ == nullptr ? 0 : num_bytes;
    }
    return bytes_.get();
  }

 private:
  std::unique_ptr<std::byte[]> bytes_;
  size_t size_ = 0;
};

struct Stored {
  const std::byte* bytes;
  const char* wrong;  // nullptr where the bytes are those that were sealed
};

// The stored bytes of a block, in memory or read to `scratch`.
Stored stored_bytes(const Slab& slab, const StoredBlock& block, Scratch& scratch) {
  const std::byte* bytes = slab.bytes.data() + block.offset;
  if (slab.spilled != nullptr) {
    std::byte* room = scratch.room(block.num_bytes);
    if (room == nullptr) return {nullptr, kNoMemory};
    const int64_t offset = slab.spilled->offset + static_cast<int64_t>(block.offset);
    if (!slab.spilled->file->read(offset, block.num_bytes, room)) return {nullptr, kNoDisk};
    bytes = room;
  }
  return {bytes, crc32c(bytes, block.num_bytes) == block.crc ? nullptr : kWrongChecksum};
}

bool is_of_same_block(const Piece& a, const Piece& b) { return a.slab == b.slab && a.row == b.row; }

bool comes_first(const Piece& a, const Piece& b) {
  return std::tuple(a.row, a.number, -a.to, a.window) < std::tuple(b.row, b.number, -b.to, b.window);
}

// Asks for the stored bytes of a block, which may be anywhere in memory, while another one is unpacked.
void prefetch(const Piece& piece) {
  const StoredBlock& block = piece.slab->blocks[piece.row];
  if (piece.slab->spilled != nullptr) return;
  const std::byte* bytes = piece.slab->bytes.data() + block.offset;
  for (uint32_t at = 0; at < block.num_bytes; at += 64) __builtin_prefetch(bytes + at);
}

struct Frames {
  const std::byte* first;  // of the block, in a thread's own memory or where they are stored
  const char* wrong;       // nullptr where they are those that were sealed
};

// The first `num_steps` frames of a block, or more. They go to a block in the cache and not to the batch, from where
// LZ4 would read them again; and those before the first one wanted have no place in the batch.
Frames unpack(const Slab& slab, int64_t row, int64_t num_steps, int64_t frame_bytes) {
  thread_local Scratch stored_scratch, frame_scratch;
  const StoredBlock& block = slab.blocks[row];
  const Stored stored = stored_bytes(slab, block, stored_scratch);
  const int num_bytes = static_cast<int>(block.num_bytes), all = static_cast<int>(kBlockSteps * frame_bytes);
  if (stored.wrong != nullptr || num_bytes == all) return {stored.bytes, stored.wrong};
  std::byte* room = frame_scratch.room(static_cast<size_t>(all));
  if (room == nullptr) return {nullptr, kNoMemory};
  const int needed = num_steps >= kWholeSteps ? all : static_cast<int>(num_steps * frame_bytes);
  const int got = needed == all ? lz4().decompress(chars(stored.bytes), chars(room), num_bytes, all)
                                : lz4().decompress_first(chars(stored.bytes), chars(room), num_bytes, needed, needed);
  return {room, got == needed ? nullptr : kNoBlock};
}

}  // namespace

PackedStore::PackedStore(int64_t num_rows, int64_t capacity, int64_t frame_bytes)
    : num_rows_(num_rows), capacity_(capacity), frame_bytes_(frame_bytes) {
  check(lz4().compress != nullptr, "PackedStore", "a call of use_lz4 before", "none");
  check_at_least("num_rows", 1, num_rows);
  check_at_least("capacity", 1, capacity);
  check_between("frame_bytes", 1, 1 << 27, frame_bytes);  // LZ4 counts the bytes of a block in an int
  packing_.resize(num_rows * packed_limit(block_bytes()));
  open_.resize(num_rows * block_bytes());
}

void PackedStore::append(const std::byte* frames, int64_t row_stride) {
  std::lock_guard<std::mutex> writer(writer_);
  // num_steps_ changes under writer_ only, and no reader looks at frames ahead of it: neither needs state_ here.
  const int64_t place = num_steps_ % kBlockSteps;
  for (int64_t row = 0; row < num_rows_; ++row) {
    std::memcpy(open_.data() + row * block_bytes() + place * frame_bytes_, frames + row * row_stride, frame_bytes_);
  }
  publish(place == kBlockSteps - 1 ? seal() : nullptr, num_steps_ + 1);
  spill_old();
}

std::shared_ptr<const Slab> PackedStore::seal() {
  auto slab = std::make_shared<Slab>();
  slab->blocks.resize(num_rows_);
  const int64_t limit = packed_limit(block_bytes());
  const auto pack = [&](int64_t row) {
    const std::byte* frames = open_.data() + row * block_bytes();
    std::byte* packed = packing_.data() + row * limit;
    const int num_bytes = lz4().compress(chars(frames), chars(packed), static_cast<int>(block_bytes()),
                                         static_cast<int>(limit));
    StoredBlock& block = slab->blocks[row];
    block.num_bytes = static_cast<uint32_t>(num_bytes > 0 ? num_bytes : block_bytes());
    block.crc = crc32c(num_bytes > 0 ? packed : frames, block.num_bytes);
  };
  // A batch that is being gathered keeps the pool for milliseconds; the writer then packs alone rather than wait.
  if (num_rows_ * block_bytes() < kInlineBytes || !ThreadPool::shared().try_run(num_rows_, pack)) {
    for (int64_t row = 0; row < num_rows_; ++row) pack(row);
  }
  uint64_t total = 0;
  for (StoredBlock& block : slab->blocks) {
    block.offset = total;
    total += block.num_bytes;
  }
  slab->bytes.reserve(total);
  for (int64_t row = 0; row < num_rows_; ++row) {
    const uint32_t num_bytes = slab->blocks[row].num_bytes;
    const bool is_raw = num_bytes == block_bytes();
    const std::byte* from = is_raw ? open_.data() + row * block_bytes() : packing_.data() + row * limit;
    slab->bytes.insert(slab->bytes.end(), from, from + num_bytes);
  }
  return slab;
}

void PackedStore::publish(std::shared_ptr<const Slab> slab, int64_t num_steps) {
  std::vector<std::shared_ptr<const Slab>> dropped;  // freed after the lock
  std::lock_guard<std::mutex> lock(state_);
  if (slab != nullptr) {
    slab_bytes_ += bytes_of(*slab);
    slabs_.push_back(std::move(slab));
  }
  num_steps_ = num_steps;
  while (!slabs_.empty() && (first_block_ + 1) * kBlockSteps <= first_visible()) {
    const Slab& oldest = *slabs_.front();
    slab_bytes_ -= bytes_of(oldest);
    if (oldest.spilled != nullptr) {
      disk_bytes_ -= static_cast<int64_t>(oldest.spilled->num_bytes);
      --num_spilled_;
    }
    dropped.push_back(std::move(slabs_.front()));
    slabs_.pop_front();
    ++first_block_;
  }
}

void PackedStore::spill_to(const std::string& folder, int64_t memory_limit) {
  check_at_least("memory_limit", 0, memory_limit);
  std::lock_guard<std::mutex> writer(writer_);
  spill_ = std::make_shared<SpillFile>(folder);
  memory_limit_ = memory_limit;
}

// Readers that hold the slab in memory keep it; those to come find the one on the disk.
void PackedStore::spill_old() {
  while (spill_ != nullptr && slab_bytes_ > memory_limit_ && num_spilled_ < static_cast<int64_t>(slabs_.size())) {
    std::shared_ptr<const Slab> held = slabs_[num_spilled_];
    auto moved = std::make_shared<Slab>();
    moved->blocks = held->blocks;
    moved->spilled = std::make_unique<const SpilledBytes>(spill_, held->bytes.data(), held->bytes.size());
    std::lock_guard<std::mutex> lock(state_);
    slab_bytes_ += bytes_of(*moved) - bytes_of(*held);
    disk_bytes_ += static_cast<int64_t>(held->bytes.size());
    slabs_[num_spilled_++] = std::move(moved);
  }
}

// Under the lock: checks the windows, takes hold of their slabs and copies what they want of the open block. The rest
// is done without the lock, so that the writer may go on.
PendingGather PackedStore::begin_gather(const WindowList& windows, std::byte* out) const {
  const int64_t total = windows.num_tasks * windows.num_windows, length = windows.length;
  std::vector<Piece> pieces;
  pieces.reserve(total * ((length + kBlockSteps - 2) / kBlockSteps + 1));
  check_at_least("length", 1, length);
  for (int64_t k = 0; k < windows.num_tasks; ++k) check_range("rows", k, 0, num_rows_ - 1, windows.rows[k]);
  std::unique_lock<std::mutex> lock(state_);
  check_at_least("steps held", length, num_steps_ - first_visible());
  for (int64_t i = 0; i < total; ++i) {
    check_range("first", i, first_visible(), num_steps_ - length, windows.first[i]);
  }
  for (int64_t i = 0; i < total; ++i) {
    const int64_t row = windows.rows[i / windows.num_windows], end = windows.first[i] + length;
    std::byte* place = out + i * length * frame_bytes_;
    for (int64_t step = windows.first[i]; step < end;) {
      const int64_t number = step / kBlockSteps, from = step % kBlockSteps;
      const int64_t to = std::min(kBlockSteps, end - number * kBlockSteps);
      if (number < end_block()) {
        pieces.push_back({slabs_[number - first_block_], i, row, number, from, to, place});
      } else {
        std::memcpy(place, open_.data() + row * block_bytes() + from * frame_bytes_, (to - from) * frame_bytes_);
      }
      step += to - from;
      place += (to - from) * frame_bytes_;
    }
  }
  lock.unlock();
  return {std::move(pieces), windows.num_windows, frame_bytes_};
}

PendingGather::PendingGather(std::vector<Piece> pieces, int64_t num_windows, int64_t frame_bytes)
    : pieces_(std::move(pieces)), num_windows_(num_windows), frame_bytes_(frame_bytes),
      streams_(static_cast<int64_t>(pieces_.size()) * kBlockSteps * frame_bytes >= kStreamBytes) {
  std::sort(pieces_.begin(), pieces_.end(), comes_first);
}

// Throws nothing, as it runs on the pool.
void PendingGather::finish_run(int64_t begin, int64_t end, const char** wrong) const {
  Frames frames{};
  for (int64_t i = begin; i < end; ++i) {
    const Piece& piece = pieces_[i];
    if (i + 1 < end && !is_of_same_block(piece, pieces_[i + 1])) prefetch(pieces_[i + 1]);
    if (i == begin || !is_of_same_block(pieces_[i - 1], piece)) {
      frames = unpack(*piece.slab, piece.row, piece.to, frame_bytes_);
    }
    wrong[i] = frames.wrong;
    if (frames.wrong != nullptr) continue;
    const std::byte* from = frames.first + piece.from * frame_bytes_;
    const size_t num_bytes = (piece.to - piece.from) * frame_bytes_;
    if (streams_) {
      stream_copy(piece.out, from, num_bytes);
    } else {
      std::memcpy(piece.out, from, num_bytes);
    }
  }
  if (streams_) stream_fence();
}

void PendingGather::finish() const {
  const int64_t num_pieces = static_cast<int64_t>(pieces_.size());
  std::vector<const char*> wrong(num_pieces, nullptr);
  if (num_pieces * kBlockSteps * frame_bytes_ < kInlineBytes) {
    finish_run(0, num_pieces, wrong.data());
  } else {
    ThreadPool::shared().run((num_pieces + kRun - 1) / kRun, [&](int64_t run) {
      finish_run(run * kRun, std::min(num_pieces, (run + 1) * kRun), wrong.data());
    });
  }
  for (int64_t i = 0; i < num_pieces; ++i) {
    if (wrong[i] == nullptr) continue;
    throw_corrupt("task " + std::to_string(pieces_[i].window / num_windows_) + " (row " +
                      std::to_string(pieces_[i].row) + ")",
                  pieces_[i].number * kBlockSteps, wrong[i]);
  }
}

int64_t PackedStore::num_steps() const {
  std::lock_guard<std::mutex> lock(state_);
  return num_steps_;
}

int64_t PackedStore::memory_bytes() const {
  std::lock_guard<std::mutex> lock(state_);
  return slab_bytes_ + static_cast<int64_t>(open_.capacity() + packing_.capacity());
}

int64_t PackedStore::disk_bytes() const {
  std::lock_guard<std::mutex> lock(state_);
  return disk_bytes_;
}

double PackedStore::ratio() const {
  std::lock_guard<std::mutex> lock(state_);
  const double raw = static_cast<double>(slabs_.size()) * static_cast<double>(num_rows_ * block_bytes());
  return slabs_.empty() ? 1.0 : raw / static_cast<double>(slab_bytes_ + disk_bytes_);
}

std::pair<int64_t, int64_t> PackedStore::block_range() const {
  std::lock_guard<std::mutex> lock(state_);
  return {first_block_, end_block()};
}

std::shared_ptr<const Slab> PackedStore::slab(int64_t row, int64_t number) const {
  check_between("row", 0, num_rows_ - 1, row);
  std::lock_guard<std::mutex> lock(state_);
  check_between("block", first_block_, end_block() - 1, number);
  return slabs_[number - first_block_];
}

LooseBlock PackedStore::block(int64_t row, int64_t number) const {
  const std::shared_ptr<const Slab> held = slab(row, number);
  const StoredBlock& block = held->blocks[row];
  const auto scratch = std::make_shared<Scratch>();
  const Stored stored = stored_bytes(*held, block, *scratch);
  if (stored.wrong != nullptr) throw_corrupt("row " + std::to_string(row), number * kBlockSteps, stored.wrong);
  const std::shared_ptr<const void> owner =
      held->spilled == nullptr ? std::shared_ptr<const void>(held) : std::shared_ptr<const void>(scratch);
  return {std::string_view(chars(stored.bytes), block.num_bytes), block.num_bytes == block_bytes(), block.crc, owner};
}

std::vector<std::byte> PackedStore::open_frames(int64_t row) const {
  check_between("row", 0, num_rows_ - 1, row);
  std::lock_guard<std::mutex> lock(state_);
  const std::byte* frames = open_.data() + row * block_bytes();
  return std::vector<std::byte>(frames, frames + num_steps_ % kBlockSteps * frame_bytes_);
}

void PackedStore::resume(int64_t num_steps) {
  std::lock_guard<std::mutex> writer(writer_);
  check(num_steps_ == 0, "resume", "an empty store", "one with " + std::to_string(num_steps_) + " steps");
  check(num_steps >= 0 && num_steps % kBlockSteps == 0, "num_steps", "0 or a multiple of 8", std::to_string(num_steps));
  std::lock_guard<std::mutex> lock(state_);
  num_steps_ = num_steps;
  first_block_ = num_steps / kBlockSteps;
}

void PackedStore::append_block(const std::vector<LooseBlock>& blocks) {
  std::lock_guard<std::mutex> writer(writer_);
  check(num_steps_ % kBlockSteps == 0, "append_block", "no open frames", std::to_string(num_steps_ % kBlockSteps));
  check(static_cast<int64_t>(blocks.size()) == num_rows_, "blocks", std::to_string(num_rows_) + " of them, one a row",
        std::to_string(blocks.size()));
  auto slab = std::make_shared<Slab>();
  size_t total = 0;
  for (const LooseBlock& block : blocks) total += block.bytes.size();
  slab->bytes.reserve(total);
  for (int64_t row = 0; row < num_rows_; ++row) {
    const LooseBlock& block = blocks[row];
    const int64_t num_bytes = static_cast<int64_t>(block.bytes.size());
    const auto* bytes = reinterpret_cast<const std::byte*>(block.bytes.data());
    const std::string where = "row " + std::to_string(row) + ", block " + std::to_string(num_steps_ / kBlockSteps);
    check(block.is_raw ? num_bytes == block_bytes() : num_bytes > 0 && num_bytes < block_bytes(), where,
          std::string(block.is_raw ? "" : "fewer than ") + std::to_string(block_bytes()) + " bytes",
          std::to_string(num_bytes));
    check(crc32c(bytes, num_bytes) == block.crc, where, "checksum " + std::to_string(block.crc),
          std::to_string(crc32c(bytes, num_bytes)) + ": the bytes are not those that were stored");
    slab->blocks.push_back({slab->bytes.size(), static_cast<uint32_t>(num_bytes), block.crc});
    slab->bytes.insert(slab->bytes.end(), bytes, bytes + num_bytes);
  }
  slab->blocks.shrink_to_fit();
  publish(std::move(slab), num_steps_ + kBlockSteps);
  spill_old();
}

void PackedStore::flip_bit(int64_t row, int64_t number) {
  const std::shared_ptr<const Slab> held = slab(row, number);
  const StoredBlock& block = held->blocks[row];
  check(held->spilled == nullptr, "flip_bit", "a block in memory", "one on the disk");
  const_cast<Slab&>(*held).bytes[block.offset + block.num_bytes / 2] ^= std::byte{1};
}

}  // namespace mow
