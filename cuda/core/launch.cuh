// How kernels are started, and how they report bad contents.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/core/device.h"
#include "cuda/core/kernel.h"

#ifndef __CUDACC__
#include "cuda/host/record.h"
#endif

namespace heddle::cuda {

struct Grid {
  dim3 blocks;
  dim3 threads;
  /// Bytes of dynamic shared memory.
  size_t shared = 0;
};

/// Above these a launch needs the kernel's leave first.
inline constexpr size_t kSharedWithoutLeave = size_t{48} << 10;

/// kernel<<<grid>>>(arguments...) on the run's stream. Throws kDevice when the launch fails.
template <class... Parameters, class... Arguments>
void launch(const Run& run, void (*kernel)(Parameters...), const Grid& grid, Arguments... arguments) {
#ifdef __CUDACC__
  if (grid.shared > kSharedWithoutLeave)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared)),
          run.report.operation);
  kernel<<<grid.blocks, grid.threads, grid.shared, run.stream>>>(arguments...);
#else
  host::start(run.stream, [=] {
    if (!host::recorded(reinterpret_cast<const void*>(kernel), grid.blocks, grid.threads, grid.shared) &&
        host::launch_allowed())
      host::run_grid(grid.blocks, grid.threads, grid.shared, [&] { kernel(arguments...); });
  });
#endif
  check(cudaGetLastError(), run.report.operation);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Blocks of a grid in x that take `units` in turn: the kernel walks on by gridDim.x until all are done.
inline unsigned blocks_for(int64_t units, int64_t limit = 1 << 16) {
  return static_cast<unsigned>(units < 1 ? 1 : units < limit ? units : limit);
}

/// A thread for each unit, where there are not too many.
inline Grid grid_of(int64_t units, unsigned threads = 256) { return {blocks_for(ceil_div(units, threads)), threads}; }

/// The first unit of this thread, and the step to its next one, where a grid's threads take units in turn.
__device__ inline int64_t first_unit() {
  return static_cast<int64_t>(blockIdx.x) * static_cast<int64_t>(blockDim.x) + threadIdx.x;
}
__device__ inline int64_t unit_step() { return static_cast<int64_t>(gridDim.x) * static_cast<int64_t>(blockDim.x); }

/// True when begin <= value < end; else the run ends with ERR_HEDDLE_ARGUMENT, and the caller leaves this element out.
/// The first to report is heard.
__device__ inline bool within(const Report& report, long long value, long long begin, long long end) {
  if (value >= begin && value < end) return true;
  if (atomicCAS(&report.fault->raised, 0U, 1U) == 0U) {
    report.fault->complaint = report.complaint;
    report.fault->begin = begin;
    report.fault->end = end;
    report.fault->got = value;
    report.fault->operation = report.operation;
    __threadfence_system();
  }
  return false;
}

/// Like within(), for contents of other kinds.
__device__ inline bool holds(const Report& report, bool condition, Complaint complaint, long long got = 0) {
  if (condition) return true;
  if (atomicCAS(&report.fault->raised, 0U, 1U) == 0U) {
    report.fault->complaint = complaint;
    report.fault->got = got;
    report.fault->operation = report.operation;
    __threadfence_system();
  }
  return false;
}

}  // namespace heddle::cuda
