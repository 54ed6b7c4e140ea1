// Memory of the device that a compiled kernel owns: tables that it reads at every run.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cuda/core/device.h"

namespace heddle::cuda {

/// A copy of `values` on the device. T is trivially copyable.
template <class T>
class DeviceTable {
 public:
  explicit DeviceTable(const std::vector<T>& values)
      : data_(static_cast<T*>(Device::get().allocate(values.size() * sizeof(T)))) {
    try {
      Device::get().copy(data_, values.data(), values.size() * sizeof(T));
    } catch (...) {
      Device::get().release(data_);
      throw;
    }
  }
  ~DeviceTable() { Device::get().release(data_); }
  DeviceTable(const DeviceTable&) = delete;
  DeviceTable& operator=(const DeviceTable&) = delete;

  const T* data() const noexcept { return data_; }

 private:
  T* data_;
};

}  // namespace heddle::cuda
