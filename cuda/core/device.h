// The device that the backend uses: its stream, its memory pool, staging memory, and whether it is still alive.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "cuda/core/kernel.h"

namespace heddle::cuda {

/// Throws unless `error` is success: kOutOfMemory or kDevice, naming `place`. After an error that no call can clear,
/// every further one says that the device is lost; the process and what runs on the CPU live on.
void check(cudaError_t error, const char* place);

class Recording;

class Device {
 public:
  /// The first device that the driver shows. Throws kDevice that says what is missing.
  static Device& get();

  /// To be called by each thread before it uses the device; throws kDevice once the device is lost.
  void enter();

  cudaStream_t stream() const noexcept { return stream_; }
  /// Where kernels of this thread's run are started: another one while they are recorded.
  cudaStream_t run_stream() const noexcept;
  const std::string& name() const noexcept { return name_; }
  /// 10 * major + minor.
  int capability() const noexcept { return capability_; }
  size_t memory() const noexcept { return memory_; }

  void* allocate(size_t bytes);
  void release(void* memory) noexcept;
  void copy(void* target, const void* source, size_t bytes);

  /// A run of this thread begins, ends: in between, kernels report to a fault of its own.
  void begin_run();
  /// Where wait() was not reached, for the run was aborted or has failed, it waits for what has been started.
  void end_run() noexcept;
  /// Of this thread's run: the device's address.
  Fault* fault() const noexcept;
  /// Everything started on the stream has ended. Throws what a kernel of this thread's run has reported.
  void wait();

  /// The device's clock behind all that has been started.
  cudaEvent_t mark();
  /// Seconds between two marks that wait() has passed.
  double elapsed(cudaEvent_t from, cudaEvent_t to);
  void unmark(cudaEvent_t mark) noexcept;

  /// From here to recorded(), what this thread's run starts is written down instead; other threads go on as before.
  void record();
  /// Throws what has spoilt it.
  std::unique_ptr<Recording> recorded();
  void replay(Recording& recording);

 private:
  Device();

  bool is_host(const void* memory) const;
  void to_device(std::byte* target, const std::byte* source, size_t bytes);
  void to_host(std::byte* target, const std::byte* source, size_t bytes);

  static constexpr size_t kStagingBytes = size_t{4} << 20;
  static constexpr size_t kRuns = 64;

  struct Staging {
    std::byte* memory = nullptr;
    cudaEvent_t free = nullptr;
  };

  cudaStream_t stream_ = nullptr;
  /// One recording at a time, on a stream of its own: what others start on the first one is none of its business.
  std::mutex recording_mutex_;
  cudaStream_t recording_stream_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
  std::string name_;
  int capability_ = 0;
  size_t memory_ = 0;
  /// Pinned memory by way of which pageable memory is copied, one half while the other is filled.
  std::mutex staging_mutex_;
  std::array<Staging, 2> staging_;
  std::mutex runs_mutex_;
  std::condition_variable run_ended_;
  Fault* faults_ = nullptr;
  Fault* device_faults_ = nullptr;
  std::array<bool, kRuns> run_used_{};
  std::array<cudaEvent_t, kRuns> run_end_{};
};

}  // namespace heddle::cuda
