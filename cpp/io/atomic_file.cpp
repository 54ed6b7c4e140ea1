#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "core/status.h"

namespace heddle {

namespace {

[[noreturn]] void fail(const std::string& path, const char* expected) {
  throw Error(ErrorCode::kIo, path, expected, std::generic_category().message(errno));
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  // Named after process and call, so that two writers of one path do not mix their bytes.
  static std::atomic<unsigned> counter{0};
  temporary_ = path_ + "." + std::to_string(getpid()) + "-" + std::to_string(counter++) + ".tmp";
  file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) fail(path_, "a place to write a file");
}

AtomicFile::~AtomicFile() {
  if (file_ >= 0) close(file_);
  if (!committed_) unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t size) {
  const char* from = static_cast<const char*>(data);
  written_ += size;
  while (size != 0) {
    const ssize_t written = ::write(file_, from, std::min(size, size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path_, "room for the file");
    from += written;
    size -= static_cast<size_t>(written);
  }
}

void AtomicFile::pad(size_t alignment) {
  const std::vector<char> zeros((alignment - written_ % alignment) % alignment);
  write(zeros.data(), zeros.size());
}

void AtomicFile::commit() {
  if (fsync(file_) != 0) fail(path_, "a file on the disk");
  const int file = std::exchange(file_, -1);
  if (close(file) != 0) fail(path_, "a file on the disk");
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "a path that can be replaced");
  committed_ = true;
  sync_folder();
}

/// The rename itself lasts only when the folder is on the disk; some file systems cannot sync one, and that is fine.
void AtomicFile::sync_folder() const {
  const size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  const int file = open(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  fsync(file);
  close(file);
}

}  // namespace heddle
