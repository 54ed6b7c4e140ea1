// Memory of a backend whose memory is not the host's.
#pragma once

#include <cstddef>

#include "core/backend.h"

namespace heddle {

class DeviceMemory {
 public:
  /// Contents as they come; throws what the backend says.
  DeviceMemory(const heddle_backend& backend, size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  const heddle_backend& backend() const noexcept { return backend_; }
  std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }

  /// From and to the host's memory, all size() bytes.
  void fill(const std::byte* source);
  void read(std::byte* target) const;

 private:
  const heddle_backend& backend_;
  std::byte* data_ = nullptr;
  size_t size_;
};

}  // namespace heddle
