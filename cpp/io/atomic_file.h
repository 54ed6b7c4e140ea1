// A file that is whole or not there: written beside its place, synced, renamed.
#pragma once

#include <cstddef>
#include <string>

namespace heddle {

/// Disappears unless it is committed. Every failure is kIo with the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size);
  /// Zeros up to a multiple of `alignment` bytes.
  void pad(size_t alignment);
  void commit();

 private:
  void sync_folder() const;

  std::string path_;
  std::string temporary_;
  size_t written_ = 0;
  int file_ = -1;
  bool committed_ = false;
};

}  // namespace heddle
