#include "cuda/core/device.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/status.h"
#include "cuda/core/recording.h"

namespace heddle::cuda {

namespace {

/// Compute capability 8.0: bf16 products, asynchronous copies into shared memory.
constexpr int kOldest = 80;
constexpr const char* kPlace = "device cuda";

std::mutex lost_mutex;
std::atomic<bool> lost{false};
/// What broke the context, and where.
std::string lost_reason;

/// Of the thread's run.
thread_local size_t run_index = 0;
thread_local bool run_waited = false;
/// What is being recorded, and what the run replays: both have a fault of their own.
thread_local std::unique_ptr<Recording> under_way;
thread_local Recording* replayed = nullptr;

std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

/// Errors that a broken context, or a device that is gone, gives for every later call.
bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorDeviceUninitialized:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

[[noreturn]] void throw_lost() {
  const std::lock_guard lock(lost_mutex);
  throw Error(ErrorCode::kDevice, kPlace, "a device that works (restart the process to use it again)", lost_reason);
}

}  // namespace

void check(cudaError_t error, const char* place) {
  if (error == cudaSuccess) return;
  // Taken off the thread's record, so that the next call is not blamed for it.
  static_cast<void>(cudaGetLastError());
  if (is_sticky(error)) {
    {
      const std::lock_guard lock(lost_mutex);
      if (!lost.exchange(true)) lost_reason = text_of(error) + " in " + place;
    }
    throw_lost();
  }
  if (error == cudaErrorMemoryAllocation)
    throw Error(ErrorCode::kOutOfMemory, place, "enough memory on the device", text_of(error));
  throw Error(ErrorCode::kDevice, place, "a call that succeeds", text_of(error));
}

Device& Device::get() {
  static Device kDevice;
  return kDevice;
}

Device::Device() {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaErrorInsufficientDriver)
    throw Error(ErrorCode::kDevice, kPlace, "NVIDIA's driver, of CUDA " + std::to_string(CUDART_VERSION / 1000),
                "none, or an older one");
  if (found == cudaErrorNoDevice || (found == cudaSuccess && count == 0))
    throw Error(ErrorCode::kDevice, kPlace, "a GPU that the driver shows (CUDA_VISIBLE_DEVICES may hide some)", "none");
  check(found, kPlace);
  check(cudaSetDevice(0), kPlace);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), kPlace);
  name_ = properties.name;
  memory_ = properties.totalGlobalMem;
  int major = 0, minor = 0, pools = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), kPlace);
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), kPlace);
  check(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, 0), kPlace);
  capability_ = 10 * major + minor;
  if (capability_ < kOldest || pools == 0)
    throw Error(ErrorCode::kDevice, kPlace, "a GPU of compute capability 8.0 or newer, with memory pools",
                name_ + " of " + std::to_string(major) + "." + std::to_string(minor));

  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), kPlace);
  check(cudaStreamCreateWithFlags(&recording_stream_, cudaStreamNonBlocking), kPlace);
  check(cudaDeviceGetDefaultMemPool(&pool_, 0), kPlace);
  // What programs give back stays for the next ones.
  uint64_t threshold = UINT64_MAX;
  check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold), kPlace);
  for (Staging& staging : staging_) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, kStagingBytes, 0), kPlace);
    staging.memory = static_cast<std::byte*>(memory);
    check(cudaEventCreateWithFlags(&staging.free, cudaEventDisableTiming | cudaEventBlockingSync), kPlace);
  }
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, kRuns * sizeof(Fault), cudaHostAllocMapped), kPlace);
  std::memset(memory, 0, kRuns * sizeof(Fault));
  faults_ = static_cast<Fault*>(memory);
  check(cudaHostGetDevicePointer(&memory, faults_, 0), kPlace);
  device_faults_ = static_cast<Fault*>(memory);
  for (cudaEvent_t& event : run_end_)
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), kPlace);
}

void Device::enter() {
  if (lost) throw_lost();
  check(cudaSetDevice(0), kPlace);
}

void* Device::allocate(size_t bytes) {
  enter();
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  cudaError_t error = cudaMallocAsync(&memory, bytes, stream_);
  if (error == cudaErrorMemoryAllocation) {
    // What the pool keeps for later may be in the way, or in pieces that are too small.
    static_cast<void>(cudaGetLastError());
    check(cudaStreamSynchronize(stream_), kPlace);
    check(cudaMemPoolTrimTo(pool_, 0), kPlace);
    error = cudaMallocAsync(&memory, bytes, stream_);
  }
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw Error(ErrorCode::kOutOfMemory, kPlace, std::to_string(bytes) + " free bytes of its memory",
                "less, of " + std::to_string(memory_) + " in all");
  }
  check(error, kPlace);
  return memory;
}

void Device::release(void* memory) noexcept {
  // Memory of a lost device, or of a process that ends, is gone with it.
  if (memory == nullptr || lost || cudaSetDevice(0) != cudaSuccess) return;
  if (cudaFreeAsync(memory, stream_) != cudaSuccess) static_cast<void>(cudaGetLastError());
}

/// Addresses of the device are told apart by the runtime.
bool Device::is_host(const void* memory) const {
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, memory), kPlace);
  return attributes.type != cudaMemoryTypeDevice;
}

void Device::copy(void* target, const void* source, size_t bytes) {
  enter();
  if (bytes == 0) return;
  auto* const to = static_cast<std::byte*>(target);
  const auto* const from = static_cast<const std::byte*>(source);
  const bool to_host_memory = is_host(target), from_host_memory = is_host(source);
  if (to_host_memory && from_host_memory)
    std::memmove(target, source, bytes);
  else if (to_host_memory)
    to_host(to, from, bytes);
  else if (from_host_memory)
    to_device(to, from, bytes);
  else
    check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, stream_), kPlace);
}

/// The last pieces are still on their way when it returns; the source is not needed any more.
void Device::to_device(std::byte* target, const std::byte* source, size_t bytes) {
  const std::lock_guard lock(staging_mutex_);
  for (size_t done = 0, turn = 0; done < bytes; done += kStagingBytes, ++turn) {
    const size_t piece = std::min(kStagingBytes, bytes - done);
    Staging& staging = staging_[turn % staging_.size()];
    check(cudaEventSynchronize(staging.free), kPlace);
    std::memcpy(staging.memory, source + done, piece);
    check(cudaMemcpyAsync(target + done, staging.memory, piece, cudaMemcpyDefault, stream_), kPlace);
    check(cudaEventRecord(staging.free, stream_), kPlace);
  }
}

/// One piece is on its way while the one before it is copied out.
void Device::to_host(std::byte* target, const std::byte* source, size_t bytes) {
  const std::lock_guard lock(staging_mutex_);
  const size_t pieces = (bytes + kStagingBytes - 1) / kStagingBytes;
  for (size_t piece = 0; piece <= pieces; ++piece) {
    if (piece < pieces) {
      Staging& staging = staging_[piece % staging_.size()];
      const size_t begin = piece * kStagingBytes;
      check(cudaMemcpyAsync(staging.memory, source + begin, std::min(kStagingBytes, bytes - begin), cudaMemcpyDefault,
                            stream_),
            kPlace);
      check(cudaEventRecord(staging.free, stream_), kPlace);
    }
    if (piece == 0) continue;
    const Staging& staging = staging_[(piece - 1) % staging_.size()];
    const size_t begin = (piece - 1) * kStagingBytes;
    check(cudaEventSynchronize(staging.free), kPlace);
    std::memcpy(target + begin, staging.memory, std::min(kStagingBytes, bytes - begin));
  }
}

void Device::begin_run() {
  std::unique_lock lock(runs_mutex_);
  auto free = run_used_.end();
  run_ended_.wait(lock, [&] { return (free = std::ranges::find(run_used_, false)) != run_used_.end(); });
  *free = true;
  run_index = static_cast<size_t>(free - run_used_.begin());
  run_waited = false;
  replayed = nullptr;
}

void Device::end_run() noexcept {
  if (!run_waited && !lost && cudaStreamSynchronize(stream_) != cudaSuccess) static_cast<void>(cudaGetLastError());
  const std::lock_guard lock(runs_mutex_);
  faults_[run_index].raised = 0;
  run_used_[run_index] = false;
  run_ended_.notify_one();
}

Fault* Device::fault() const noexcept { return under_way ? under_way->device_fault() : device_faults_ + run_index; }

cudaStream_t Device::run_stream() const noexcept { return under_way ? recording_stream_ : stream_; }

void Device::wait() {
  enter();
  const cudaEvent_t end = run_end_[run_index];
  check(cudaEventRecord(end, stream_), kPlace);
  check(cudaEventSynchronize(end), kPlace);
  run_waited = true;
  Fault& fault = replayed == nullptr ? faults_[run_index] : replayed->fault();
  if (fault.raised == 0) return;
  fault.raised = 0;
  const auto& [expected, before, after, code] = fault.complaint;
  const std::string number = std::to_string(fault.got);
  const std::string range = "an index in [" + std::to_string(fault.begin) + ", " + std::to_string(fault.end) + ")";
  throw Error(code, fault.operation, expected == nullptr ? range : expected,
              before == nullptr ? number : before + (after == nullptr ? "" : number + after));
}

cudaEvent_t Device::mark() {
  enter();
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventBlockingSync), kPlace);
  const cudaError_t error = cudaEventRecord(event, stream_);
  if (error != cudaSuccess) unmark(event);
  check(error, kPlace);
  return event;
}

double Device::elapsed(cudaEvent_t from, cudaEvent_t to) {
  enter();
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, from, to), kPlace);
  return static_cast<double>(milliseconds) / 1000;
}

void Device::unmark(cudaEvent_t mark) noexcept {
  if (mark != nullptr && !lost && cudaEventDestroy(mark) != cudaSuccess) static_cast<void>(cudaGetLastError());
}

void Device::record() {
  enter();
  auto recording = std::make_unique<Recording>();
  std::unique_lock lock(recording_mutex_);
  check(cudaStreamBeginCapture(recording_stream_, cudaStreamCaptureModeThreadLocal), kPlace);
  under_way = std::move(recording);
  // Until recorded(), which this thread calls in any case.
  static_cast<void>(lock.release());
}

std::unique_ptr<Recording> Device::recorded() {
  const std::unique_lock lock(recording_mutex_, std::adopt_lock);
  std::unique_ptr<Recording> recording = std::move(under_way);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(recording_stream_, &graph);
  if (ended == cudaSuccess) recording->take(graph);
  check(ended, kPlace);
  return recording;
}

void Device::replay(Recording& recording) {
  enter();
  replayed = &recording;
  // Of a replay that was not waited for.
  recording.fault().raised = 0;
  recording.start(stream_);
}

}  // namespace heddle::cuda
