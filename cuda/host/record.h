// What would be started, written down instead of run: how the report of kernels knows grids at shapes that no emulation
// could compute (bench/cuda/report.ts).
#pragma once

#include <cstddef>

#include "cuda/host/emulation.h"

namespace heddle::cuda::host {

/// Where the environment variable HEDDLE_CUDA_HOST_LAUNCHES names a file: adds the line `kernel <offset of its code in
/// the addon> <blocks> <threads of a block> <bytes of dynamic shared memory>` to it and returns true. The kernel is not
/// to be run then.
bool recorded(const void* kernel, Dim3 blocks, Dim3 threads, size_t shared_bytes);

/// The same for a call of a library: `library <name>`.
bool recorded(const char* library);

}  // namespace heddle::cuda::host
