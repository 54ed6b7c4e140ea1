#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/status.h"

namespace heddle {

namespace {

[[noreturn]] void fail(const std::string& path) {
  throw Error(ErrorCode::kIo, path, "a readable file", std::generic_category().message(errno));
}

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : value_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (value_ < 0) fail(path);
  }
  ~Descriptor() { close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const noexcept { return value_; }

 private:
  int value_;
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const Descriptor file(path);
  struct stat info {};
  if (fstat(file.get(), &info) != 0) fail(path);
  if (!S_ISREG(info.st_mode)) throw Error(ErrorCode::kIo, path, "a regular file", "a folder or device");
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return std::shared_ptr<const MappedFile>(new MappedFile(path, {}));

  void* const base = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (base == MAP_FAILED) fail(path);
  return std::shared_ptr<const MappedFile>(new MappedFile(path, {static_cast<const std::byte*>(base), size}));
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

std::span<const std::byte> MappedFile::slice(size_t offset, size_t length) const {
  if (offset > bytes_.size() || length > bytes_.size() - offset)
    throw Error(ErrorCode::kFormat, path_,
                std::to_string(length) + " bytes at byte " + std::to_string(offset) + " of the file",
                "a file of " + std::to_string(bytes_.size()) + " bytes");
  return bytes_.subspan(offset, length);
}

}  // namespace heddle
