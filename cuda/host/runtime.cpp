// The runtime's part of cuda_runtime.h: memory of the device is memory of the host, and everything has ended when it
// returns, but for what a captured stream is given: a graph is the list of it.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

struct CUstream_st {
  bool capturing = false;
  std::vector<std::function<void()>> captured;
};

struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};

struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

namespace {

/// Events and graphs that have not been destroyed.
std::atomic<size_t> handles{0};

template <class T>
T* made(T* handle) {
  ++handles;
  return handle;
}

template <class T>
void destroyed(T* handle) {
  --handles;
  delete handle;
}

struct Runtime {
  std::mutex mutex;
  std::map<void*, size_t> blocks;
  /// Of allocations, and of launches: those that still succeed before one fails, and those that fail then.
  int sound_allocations = 0, failing_allocations = 0;
  int sound_launches = 0;
  bool fail_launch = false;
  bool fail_capture = false;
  bool fail_convergence = false;
  bool fault_pending = false;
  /// As a context that a kernel has broken: every call says so.
  cudaError_t sticky = cudaSuccess;
};

Runtime& runtime() {
  static Runtime kRuntime;
  return kRuntime;
}

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error == cudaSuccess) error = runtime().sticky;
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t after_work() {
  if (std::exchange(runtime().fault_pending, false)) runtime().sticky = cudaErrorIllegalAddress;
  return result(cudaSuccess);
}

// A handle that is never looked into.
int pool_object;
constexpr std::align_val_t kAlignment{256};

cudaError_t allocate(void** memory, size_t bytes) {
  const std::lock_guard lock(runtime().mutex);
  if (runtime().failing_allocations > 0 && runtime().sound_allocations-- <= 0) {
    --runtime().failing_allocations;
    return result(cudaErrorMemoryAllocation);
  }
  void* const block = ::operator new(std::max<size_t>(bytes, 1), kAlignment, std::nothrow);
  if (block == nullptr) return result(cudaErrorMemoryAllocation);
  // NaN in every floating type: what is read before it is written shows.
  std::memset(block, 0xff, bytes);
  runtime().blocks[block] = bytes;
  *memory = block;
  return result(cudaSuccess);
}

cudaError_t release(void* memory) {
  const std::lock_guard lock(runtime().mutex);
  if (memory != nullptr && runtime().blocks.erase(memory) == 0) return result(cudaErrorInvalidValue);
  ::operator delete(memory, kAlignment);
  return result(cudaSuccess);
}

}  // namespace

namespace heddle::cuda::host {

void inject(const std::string& kind, int after) {
  if (kind == "memory" || kind == "pool") {
    runtime().sound_allocations = after;
    runtime().failing_allocations = kind == "memory" ? 2 : 1;
  }
  if (kind == "launch") {
    runtime().sound_launches = after;
    runtime().fail_launch = true;
  }
  if (kind == "nothing") {
    runtime().failing_allocations = 0;
    runtime().fail_launch = false;
  }
  if (kind == "gone") runtime().sticky = cudaErrorDevicesUnavailable;
  if (kind == "capture") runtime().fail_capture = true;
  if (kind == "convergence") runtime().fail_convergence = true;
  if (kind == "fault") runtime().fault_pending = true;
}

bool convergence_fails() { return std::exchange(runtime().fail_convergence, false); }

size_t allocated_bytes() {
  const std::lock_guard lock(runtime().mutex);
  size_t bytes = 0;
  for (const auto& [block, size] : runtime().blocks) bytes += size;
  return bytes;
}

size_t objects() {
  const std::lock_guard lock(runtime().mutex);
  return runtime().blocks.size() + handles;
}

void start(cudaStream_t stream, std::function<void()> work) {
  if (stream != nullptr && stream->capturing)
    stream->captured.push_back(std::move(work));
  else
    work();
}

bool launch_allowed() {
  if (runtime().sticky != cudaSuccess) return result(cudaSuccess) == cudaSuccess;
  if (!runtime().fail_launch || runtime().sound_launches-- > 0) return true;
  runtime().fail_launch = false;
  last_error = cudaErrorLaunchOutOfResources;
  return false;
}

}  // namespace heddle::cuda::host

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorDevicesUnavailable: return "cudaErrorDevicesUnavailable";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    default: return "cudaError";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetLastError() {
  const cudaError_t error = std::exchange(last_error, cudaSuccess);
  return runtime().sticky != cudaSuccess ? runtime().sticky : error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return result(cudaSuccess);
}
cudaError_t cudaSetDevice(int device) { return result(device == 0 ? cudaSuccess : cudaErrorInvalidValue); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {.name = "emulated on the processor", .totalGlobalMem = size_t{8} << 30};
  return result(cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : attribute == cudaDevAttrMemoryPoolsSupported ? 1 : 0;
  return result(cudaSuccess);
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = reinterpret_cast<cudaMemPool_t>(&pool_object);
  return result(cudaSuccess);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return result(cudaSuccess); }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return result(cudaSuccess); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return result(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream->capturing ? result(cudaErrorStreamCaptureUnsupported) : after_work();
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capturing = true;
  stream->captured.clear();
  return result(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->capturing = false;
  if (std::exchange(runtime().fail_capture, false)) return result(cudaErrorStreamCaptureUnsupported);
  *graph = made(new CUgraph_st{std::move(stream->captured)});
  return result(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* work, cudaGraph_t graph, unsigned long long) {
  *work = made(new CUgraphExec_st{graph->work});
  return result(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t work, cudaStream_t) {
  for (const auto& each : work->work) {
    each();
    // A failed launch ends a graph; the error is the launch's own.
    if (last_error != cudaSuccess) return result(std::exchange(last_error, cudaSuccess));
  }
  return result(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  destroyed(graph);
  return result(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t work) {
  destroyed(work);
  return result(cudaSuccess);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = made(new CUevent_st);
  return result(cudaSuccess);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  destroyed(event);
  return result(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  return result(cudaSuccess);
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return after_work(); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return result(cudaSuccess);
}
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) { return allocate(memory, bytes); }
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return release(memory); }
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  heddle::cuda::host::start(stream, [=] {
    if (bytes != 0) std::memmove(target, source, bytes);
  });
  return result(cudaSuccess);
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  heddle::cuda::host::start(stream, [=] {
    if (bytes != 0) std::memset(target, value, bytes);
  });
  return result(cudaSuccess);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  const std::lock_guard lock(runtime().mutex);
  const auto after = runtime().blocks.upper_bound(const_cast<void*>(memory));
  attributes->type = cudaMemoryTypeUnregistered;
  if (after != runtime().blocks.begin()) {
    const auto& [block, size] = *std::prev(after);
    if (static_cast<const std::byte*>(memory) < static_cast<const std::byte*>(block) + size)
      attributes->type = cudaMemoryTypeDevice;
  }
  return result(cudaSuccess);
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return allocate(memory, bytes); }
cudaError_t cudaFreeHost(void* memory) { return release(memory); }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return result(cudaSuccess);
}
