// Matrices that a block of threads works on, column after column in scratch memory. All functions here are called by
// every thread of the block, which has whole warps, and leave it in step.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "cuda/core/launch.cuh"
#include "cuda/core/warp.cuh"

namespace heddle::cuda {

/// a [count, rows, columns].
struct MatrixBatch {
  int64_t count = 0, rows = 0, columns = 0;

  __host__ __device__ int64_t size() const { return rows * columns; }
  __host__ __device__ int64_t rank() const { return rows < columns ? rows : columns; }
};

inline MatrixBatch read_batch(const Operand& a) {
  return {static_cast<int64_t>(a.shape.count(0, a.shape.rank() - 2)), a.shape.back(1), a.shape.back(0)};
}

/// So many of `count` matrices are under way at a time, each with `bytes` of scratch memory of its own.
inline int64_t matrices_at_once(int64_t count, size_t bytes) {
  constexpr int64_t kMost = 512;
  constexpr size_t kMostBytes = size_t{1} << 30;
  const size_t affordable = std::max<size_t>(1, kMostBytes / std::max<size_t>(1, bytes));
  return std::min({count, kMost, static_cast<int64_t>(affordable)});
}

template <class T>
__device__ T* piece_at(std::byte* scratch, size_t at) {
  return reinterpret_cast<T*>(scratch + at);
}

inline size_t scratch_of(const MatrixBatch& a, size_t per_matrix) {
  return static_cast<size_t>(matrices_at_once(a.count, per_matrix)) * per_matrix;
}

/// Enough threads for the columns of a matrix, a warp each.
inline unsigned matrix_threads(int64_t columns) {
  return columns <= 2 ? 64 : columns <= 4 ? 128 : columns <= 32 ? 256 : 512;
}
inline Grid matrix_grid(int64_t count, int64_t columns, size_t bytes) {
  return {static_cast<unsigned>(matrices_at_once(count, bytes)), matrix_threads(columns)};
}

inline constexpr Complaint kWantsFinite{"finite numbers", "NaN or infinity"};
inline constexpr Complaint kConverges{"an iteration that converges", "one that does not", nullptr,
                                      ErrorCode::kInternal};
inline constexpr Complaint kDefinite{"a positive definite matrix", "one whose leading minor of order ",
                                     " is not positive"};
inline constexpr Complaint kInvertible{"an invertible matrix", "one whose pivot ", " is zero"};

template <class T>
struct Precision {
  static constexpr T kEpsilon = sizeof(T) == 8 ? static_cast<T>(2.220446049250313e-16) : static_cast<T>(1.1920929e-7);
  static constexpr int kMostExponent = sizeof(T) == 8 ? 1020 : 124;
};

__device__ inline unsigned warp_index() { return threadIdx.x / kWarpSize; }
__device__ inline unsigned lane_index() { return threadIdx.x % kWarpSize; }
__device__ inline unsigned warp_count() { return blockDim.x / kWarpSize; }

/// False, and a report, where one of the numbers is NaN or infinite.
template <class T>
__device__ bool finite(const Report& report, const T* values, int64_t count, Complaint complaint) {
  bool good = true;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) good = good && values[i] - values[i] == T{0};
  return __syncthreads_or(holds(report, good, complaint) ? 0 : 1) == 0;
}

/// The power of two that brings the largest magnitude to about 1, so that squares neither overflow nor vanish.
template <class T>
__device__ T scale_of(const T* values, int64_t count, Shared<T, kWarpSize>& partial) {
  T largest{0};
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) largest = Maximum()(largest, abs(values[i]));
  largest = block_reduce(largest, T{0}, Maximum(), partial);
  if (largest == T{0}) return T{1};
  constexpr int kMost = Precision<T>::kMostExponent;
  const int exponent = ilogb(largest);
  return ldexp(T{1}, exponent < -kMost ? -kMost : exponent > kMost ? kMost : exponent);
}

/// Σ a[i] b[i] of a warp's vectors, in every lane.
template <class T>
__device__ T warp_dot(const T* a, const T* b, int64_t count) {
  T sum{0};
  for (int64_t i = lane_index(); i < count; i += kWarpSize) sum += a[i] * b[i];
  return warp_reduce(sum, Sum());
}

/// work = the identity [n, columns], column-major.
template <class T>
__device__ void set_identity(T* work, int64_t n, int64_t columns) {
  for (int64_t i = threadIdx.x; i < n * columns; i += blockDim.x) work[i] = i % n == i / n ? T{1} : T{0};
  __syncthreads();
}

/// The round'th of n' - 1 rounds, n' = n rounded up to even, in which every one of n meets every other once: its pair
/// number `pair` of n' / 2. False where one of the two is the odd one out.
__device__ inline bool meeting(int64_t n, int64_t round, int64_t pair, int64_t& p, int64_t& q) {
  const int64_t others = n + n % 2 - 1;
  p = pair == 0 ? others : (round + pair) % others;
  q = (round - pair + others) % others;
  if (p > q) {
    const int64_t larger = p;
    p = q;
    q = larger;
  }
  return q < n;
}

/// order[r] = the place of the r-th value, the largest or the smallest first; equal ones in their order.
template <class T>
__device__ void sort_places(const T* values, int32_t* order, int64_t n, bool descending) {
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    int64_t rank = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool before = descending ? values[i] > values[j] : values[i] < values[j];
      if (before || (values[i] == values[j] && i < j)) ++rank;
    }
    order[rank] = static_cast<int32_t>(j);
  }
  __syncthreads();
}

/// In every thread: where the largest of the threads' values stands, the first of equal ones.
template <class T>
__device__ int block_argmax(T best, int at, Shared<T, kWarpSize>& partial, Shared<int, kWarpSize>& places) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    const T other = __shfl_xor_sync(kWholeWarp, best, bits);
    const int other_at = __shfl_xor_sync(kWholeWarp, at, bits);
    if (other > best || (other == best && other_at < at)) {
      best = other;
      at = other_at;
    }
  }
  if (lane_index() == 0) {
    partial[warp_index()] = best;
    places[warp_index()] = at;
  }
  __syncthreads();
  best = partial[0];
  at = places[0];
  for (unsigned warp = 1; warp < warp_count(); ++warp) {
    const T other = partial[warp];
    const int other_at = places[warp];
    if (other > best || (other == best && other_at < at)) {
      best = other;
      at = other_at;
    }
  }
  __syncthreads();
  return at;
}

/// Makes the reflector that leaves column[step] alone of what `column` has from there on. @returns its tau
template <class T>
__device__ T make_reflector(T* column, int64_t step, int64_t m, Shared<T, kWarpSize>& partial) {
  T square{0};
  for (int64_t i = step + 1 + threadIdx.x; i < m; i += blockDim.x) square += column[i] * column[i];
  square = block_reduce(square, T{0}, Sum(), partial);
  const T alpha = column[step];
  T tau{0};
  __syncthreads();
  if (square > T{0}) {
    const T beta = alpha < T{0} ? sqrt(alpha * alpha + square) : -sqrt(alpha * alpha + square);
    tau = (beta - alpha) / beta;
    const T divisor = alpha - beta;
    for (int64_t i = step + 1 + threadIdx.x; i < m; i += blockDim.x) column[i] /= divisor;
    if (threadIdx.x == 0) column[step] = beta;
  }
  return tau;
}

/// column -= tau (1, v) ((1, v) · column), from row `step` on; `reflector` holds v below row `step`. One warp.
template <class T>
__device__ void reflect(const T* reflector, T tau, T* column, int64_t step, int64_t m) {
  const T first = column[step];
  const T dot = first + warp_dot(reflector + step + 1, column + step + 1, m - step - 1);
  __syncwarp();
  if (lane_index() == 0) column[step] = first - tau * dot;
  for (int64_t i = step + 1 + lane_index(); i < m; i += kWarpSize) column[i] -= tau * dot * reflector[i];
}

/// Completes `have` orthonormal columns of height n to `want` of them: each new one is the part of a unit vector that
/// the others leave over, of the unit vector of which that is most.
template <class T>
__device__ void complete_basis(T* basis, int64_t n, int64_t have, int64_t want, T* factors,
                               Shared<T, kWarpSize>& partial, Shared<int, kWarpSize>& places) {
  for (int64_t column = have; column < want; ++column) {
    T* const target = basis + column * n;
    T best{-1};
    int at = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      T rest{1};
      for (int64_t j = 0; j < column; ++j) rest -= basis[j * n + i] * basis[j * n + i];
      if (rest > best) {
        best = rest;
        at = static_cast<int>(i);
      }
    }
    at = block_argmax(best, at, partial, places);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) target[i] = i == at ? T{1} : T{0};
    __syncthreads();
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = warp_index(); j < column; j += warp_count()) {
        const T factor = warp_dot(basis + j * n, target, n);
        if (lane_index() == 0) factors[j] = factor;
      }
      __syncthreads();
      T square{0};
      for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        T value = target[i];
        for (int64_t j = 0; j < column; ++j) value -= factors[j] * basis[j * n + i];
        target[i] = value;
        square += value * value;
      }
      const T inverse = T{1} / sqrt(block_reduce(square, T{0}, Sum(), partial));
      for (int64_t i = threadIdx.x; i < n; i += blockDim.x) target[i] *= inverse;
      __syncthreads();
    }
  }
}

}  // namespace heddle::cuda
