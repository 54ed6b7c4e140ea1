// Tiles of attention: 256 threads in a square of 16 by 16, where the threads of a line share rows. A thread has
// `kR` rows and four keys of a tile of scores, and kR rows and kC columns of a tile of sums.
#pragma once

#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"
#include "cuda/core/shared.cuh"
#include "cuda/core/warp.cuh"
#include "cuda/kernels/attention.h"

namespace heddle::cuda {

inline constexpr unsigned kSide = 16;
inline constexpr unsigned kSquare = kSide * kSide;
/// Blocks that a multiprocessor is to hold at least: no thread may take more than 128 registers then. Loops over a
/// depth are unrolled by four for the same reason: by sixteen, what is read ahead takes more registers than the sums.
inline constexpr unsigned kBlocksTogether = 2;
/// Lines of a depth of kSide are one longer: threads that read a column then meet different banks.
inline constexpr unsigned kLine = kSide + 1;
inline constexpr unsigned kKeyLine = static_cast<unsigned>(kKeys) + 1;
inline constexpr float kLog2E = 1.44269504088896341F;
inline constexpr float kLn2 = 0.693147180559945309F;
/// Where the running maximum starts: finite, so that its difference from a score is never NaN.
inline constexpr float kFloor = -1e30F;

__device__ inline unsigned line() { return threadIdx.x / kSide; }
__device__ inline unsigned place() { return threadIdx.x % kSide; }

/// Of the 16 threads of a line, in each of them.
template <class Op>
__device__ float line_reduce(float value, Op op) {
  for (int bits = kSide / 2; bits > 0; bits /= 2) value = op(value, __shfl_xor_sync(kWholeWarp, value, bits, kSide));
  return value;
}

/// Keys [floor, end) are those that a row may see, segments aside.
struct Sight {
  int64_t floor, end;
  int32_t segment;

  __device__ Sight(const AttentionProblem& p, int64_t b, int64_t row) : floor(0), end(p.keys), segment(0) {
    const int64_t query = row / p.group;
    if (p.causal) end = (p.position == nullptr ? 0 : p.position[b]) + query + 1;
    if (end > p.window) floor = end - p.window;
    if (p.segments != nullptr) segment = p.segments[b * p.keys + query];
  }
  __device__ bool sees(const AttentionProblem& p, int64_t b, int64_t key) const {
    return key >= floor && key < end && (p.segments == nullptr || p.segments[b * p.keys + key] == segment);
  }
};

/// Which of a thread's scores count, a bit for each: as an array they would take registers that the sums need.
struct Seen {
  unsigned bits = 0;

  __device__ bool operator()(unsigned i, unsigned j) const { return (bits >> (4 * i + j) & 1U) != 0; }
  __device__ void add(unsigned i, unsigned j, bool sees) { bits |= static_cast<unsigned>(sees) << (4 * i + j); }
};

/// Elements [depth, depth + 16) of kCount vectors that begin at offset[i], or zeros where that is negative.
template <unsigned kCount, class Element>
__device__ void load_depth(const Element* from, Shared<int64_t, kCount>& offset, int64_t depth, int64_t dim,
                           Shared<float, kCount * kLine>& to) {
#pragma unroll 2
  for (unsigned at = threadIdx.x; at < kCount * kSide; at += kSquare) {
    const unsigned i = at / kSide, x = at % kSide;
    const int64_t begin = offset[i];
    to[i * kLine + x] = begin >= 0 && depth + x < dim ? to_float(from[begin + depth + x]) : 0.0F;
  }
}

/// Columns [column, column + 16 kC) of the 16 vectors from number `first` on.
template <unsigned kC, unsigned kCount, class Element>
__device__ void load_columns(const Element* from, Shared<int64_t, kCount>& offset, unsigned first, int64_t column,
                             int64_t dim, Shared<float, kSide * kSide * kC>& to) {
  constexpr unsigned kWidth = kSide * kC;
  for (unsigned at = threadIdx.x; at < kSide * kWidth; at += kSquare) {
    const int64_t begin = offset[first + at / kWidth];
    const int64_t x = column + at % kWidth;
    to[at] = begin >= 0 && x < dim ? to_float(from[begin + x]) : 0.0F;
  }
}

/// score [i, j] += rows [kR line + i] times keys [place + 16 j], over a depth of 16.
template <unsigned kR, class Rows, class Keys>
__device__ void multiply_depth(Rows& rows, Keys& keys, float (&score)[kR][4]) {
#pragma unroll 4
  for (unsigned x = 0; x < kSide; ++x) {
    float row[kR], key[4];
#pragma unroll
    for (unsigned i = 0; i < kR; ++i) row[i] = rows[(line() * kR + i) * kLine + x];
#pragma unroll
    for (unsigned j = 0; j < 4; ++j) key[j] = keys[(place() + kSide * j) * kLine + x];
#pragma unroll
    for (unsigned i = 0; i < kR; ++i)
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) score[i][j] += row[i] * key[j];
  }
}

/// The score's logarithm to base 2 from the product q k: scaled, and bent where there is a cap (of base 2 as well).
__device__ inline float bend(float product, float scale, float cap) {
  const float x = product * scale;
  return cap == 0.0F ? x : cap * tanhf(x / cap);
}

}  // namespace heddle::cuda
