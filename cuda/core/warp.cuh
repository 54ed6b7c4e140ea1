// What the threads of a warp and of a block find out together. Every sum has a fixed order: results are the same on
// every device and at every run.
#pragma once

#include <cuda_runtime.h>

#include "cuda/core/shared.cuh"

namespace heddle::cuda {

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kWholeWarp = 0xffffffffU;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

/// A NaN on either side is the result, as in NumPy.
struct Maximum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a != a || a > b ? a : b;
  }
};

/// In every lane, op over all lanes of a full warp.
template <class T, class Op>
__device__ T warp_reduce(T value, Op op) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) value = op(value, __shfl_xor_sync(kWholeWarp, value, bits));
  return value;
}

/// In every thread, op over all threads of a block of whole warps, at most 1024. `partial` may be used again at once.
template <class T, class Op>
__device__ T block_reduce(T value, T identity, Op op, Shared<T, kWarpSize>& partial) {
  const unsigned lane = threadIdx.x % kWarpSize;
  const unsigned warp = threadIdx.x / kWarpSize;
  value = warp_reduce(value, op);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = identity;
  if (lane < blockDim.x / kWarpSize) value = partial[lane];
  value = warp_reduce(value, op);
  __syncthreads();
  return value;
}

}  // namespace heddle::cuda
