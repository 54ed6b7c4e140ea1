// Kernels that work row by row: short rows get a warp each, long ones a block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/core/launch.cuh"
#include "cuda/core/warp.cuh"

namespace heddle::cuda {

inline constexpr unsigned kRowThreads = 256;
/// Up to so many elements a warp does better than a block.
inline constexpr int64_t kWarpRow = 1024;

/// The threads that share a row. A kernel template takes `class Team`, walks over rows from first_row() by row_step(),
/// and over a row's elements from rank() by size().
struct WarpTeam {
  static __device__ unsigned rank() { return threadIdx.x; }
  static __device__ unsigned size() { return kWarpSize; }
  static __device__ int64_t first_row() { return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }
  static __device__ int64_t row_step() { return static_cast<int64_t>(gridDim.x) * blockDim.y; }
  template <class T, class Op>
  static __device__ T reduce(T value, T, Op op, Shared<T, kWarpSize>&) {
    return warp_reduce(value, op);
  }
};

struct BlockTeam {
  static __device__ unsigned rank() { return threadIdx.x; }
  static __device__ unsigned size() { return blockDim.x; }
  static __device__ int64_t first_row() { return blockIdx.x; }
  static __device__ int64_t row_step() { return gridDim.x; }
  /// In every thread of the team: op over the values of all of them.
  template <class T, class Op>
  static __device__ T reduce(T value, T identity, Op op, Shared<T, kWarpSize>& partial) {
    return block_reduce(value, identity, op, partial);
  }
};

inline bool by_warps(int64_t width) { return width <= kWarpRow; }

inline Grid row_grid(int64_t rows, int64_t width) {
  constexpr unsigned kWarps = kRowThreads / kWarpSize;
  if (by_warps(width)) return {blocks_for(ceil_div(rows, kWarps)), dim3(kWarpSize, kWarps)};
  return {blocks_for(rows), kRowThreads};
}

/// The form of a kernel template for rows of this width.
template <class Kernel>
Kernel* for_width(int64_t width, Kernel* warps, Kernel* blocks) {
  return by_warps(width) ? warps : blocks;
}

/// x [..., d].
inline int64_t row_width(const Operand& x) { return x.shape.back(0); }
inline int64_t row_count(const Operand& x) {
  return x.shape.count() == 0 ? 0 : static_cast<int64_t>(x.shape.count()) / x.shape.back(0);
}

}  // namespace heddle::cuda
