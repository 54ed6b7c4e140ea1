// A run that the device has by heart: a CUDA graph of all that a program starts, with the addresses that it was
// recorded with.
#pragma once

#include <cuda_runtime.h>

#include "cuda/core/kernel.h"

namespace heddle::cuda {

class Recording {
 public:
  /// With a fault of its own, which its kernels report to at every replay. Throws what the device says.
  Recording();
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  Fault& fault() noexcept { return *fault_; }
  /// The device's address of it.
  Fault* device_fault() const noexcept { return device_fault_; }

  /// What it consists of; takes the graph in any case.
  void take(cudaGraph_t graph);
  void start(cudaStream_t stream);

 private:
  Fault* fault_ = nullptr;
  Fault* device_fault_ = nullptr;
  cudaGraphExec_t work_ = nullptr;
};

}  // namespace heddle::cuda
