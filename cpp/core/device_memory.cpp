#include "core/device_memory.h"

#include "core/backend_status.h"

namespace heddle {

DeviceMemory::DeviceMemory(const heddle_backend& backend, size_t bytes) : backend_(backend), size_(bytes) {
  void* memory = nullptr;
  heddle_error error;
  check_status(backend.allocate(backend.self, bytes, &memory, &error), error);
  data_ = static_cast<std::byte*>(memory);
}

DeviceMemory::~DeviceMemory() { backend_.release(backend_.self, data_, size_); }

void DeviceMemory::fill(const std::byte* source) {
  heddle_error error;
  check_status(backend_.copy(backend_.self, data_, source, size_, &error), error);
}

void DeviceMemory::read(std::byte* target) const {
  heddle_error error;
  check_status(backend_.copy(backend_.self, target, data_, size_, &error), error);
}

}  // namespace heddle
