// A whole file as read-only memory. The mapping lives as long as anyone holds it; a file that someone else cuts short
// while it is mapped cannot be read safely, as with every mapping.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace heddle {

class MappedFile {
 public:
  /// Throws kIo with the system's reason.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const noexcept { return path_; }
  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// Throws kFormat when [offset, offset + length) is not inside the file.
  std::span<const std::byte> slice(size_t offset, size_t length) const;

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace heddle
