#include "cuda/core/recording.h"

#include <cstring>

#include "cuda/core/device.h"

namespace heddle::cuda {

namespace {

constexpr const char* kPlace = "recording";

}  // namespace

Recording::Recording() {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, sizeof(Fault), cudaHostAllocMapped), kPlace);
  std::memset(memory, 0, sizeof(Fault));
  fault_ = static_cast<Fault*>(memory);
  const cudaError_t error = cudaHostGetDevicePointer(&memory, fault_, 0);
  if (error != cudaSuccess) static_cast<void>(cudaFreeHost(fault_));
  check(error, kPlace);
  device_fault_ = static_cast<Fault*>(memory);
}

Recording::~Recording() {
  const bool freed =
      (work_ == nullptr || cudaGraphExecDestroy(work_) == cudaSuccess) && cudaFreeHost(fault_) == cudaSuccess;
  // Of a lost device: it has taken them along.
  if (!freed) static_cast<void>(cudaGetLastError());
}

void Recording::take(cudaGraph_t graph) {
  const cudaError_t error = cudaGraphInstantiate(&work_, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  check(error, kPlace);
}

void Recording::start(cudaStream_t stream) { check(cudaGraphLaunch(work_, stream), kPlace); }

}  // namespace heddle::cuda
