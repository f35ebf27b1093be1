// A file without a name for bytes that have no room in memory; it is gone with the process, however that ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace mow {

// Reads take place and length (pread), not a map of the file: a map brings in one page per fault. Methods may run on
// several threads at once, except append(). Errors of the disk are std::system_error.
class SpillFile {
 public:
  explicit SpillFile(const std::string& folder);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  // Writes all bytes to the end; returns where they begin. Where the disk takes only a part, the end stays where it was.
  int64_t append(const std::byte* bytes, size_t num_bytes);
  // False where not all bytes could be read.
  bool read(int64_t offset, size_t num_bytes, std::byte* out) const;
  // Gives the room back to the disk, where its file system can; else it stays taken until the file is gone.
  void forget(int64_t offset, size_t num_bytes);

 private:
  int handle_;
  int64_t end_ = 0;
};

// A piece of a spill file; its room is given back when nobody holds it any more.
struct SpilledBytes {
  std::shared_ptr<SpillFile> file;
  int64_t offset;
  size_t num_bytes;

  SpilledBytes(std::shared_ptr<SpillFile> to, const std::byte* bytes, size_t size)
      : file(std::move(to)), offset(file->append(bytes, size)), num_bytes(size) {}
  ~SpilledBytes() { file->forget(offset, num_bytes); }
  SpilledBytes(const SpilledBytes&) = delete;
  SpilledBytes& operator=(const SpilledBytes&) = delete;
};

}  // namespace mow
