#include "spill.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>

namespace mow {
namespace {

[[noreturn]] void throw_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

}  // namespace

SpillFile::SpillFile(const std::string& folder) {
  std::string name = folder + "/frames-XXXXXX";
  handle_ = mkstemp(name.data());
  if (handle_ < 0) throw_errno("cannot make a file");
  unlink(name.c_str());  // without a name nothing is left behind, even by a process that is killed
}

SpillFile::~SpillFile() { close(handle_); }

int64_t SpillFile::append(const std::byte* bytes, size_t num_bytes) {
  for (size_t done = 0; done < num_bytes;) {
    const ssize_t wrote = pwrite(handle_, bytes + done, num_bytes - done, end_ + static_cast<int64_t>(done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) throw_errno("cannot write");
    done += static_cast<size_t>(wrote);
  }
  const int64_t begin = end_;
  end_ += static_cast<int64_t>(num_bytes);
  return begin;
}

bool SpillFile::read(int64_t offset, size_t num_bytes, std::byte* out) const {
  for (size_t done = 0; done < num_bytes;) {
    const ssize_t got = pread(handle_, out + done, num_bytes - done, offset + static_cast<int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += static_cast<size_t>(got);
  }
  return true;
}

void SpillFile::forget(int64_t offset, size_t num_bytes) {
#if defined(FALLOC_FL_PUNCH_HOLE)
  (void)fallocate(handle_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(num_bytes));
#else
  (void)offset, (void)num_bytes;
#endif
}

}  // namespace mow
