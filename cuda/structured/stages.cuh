// One stage of a chain (cpp/structured/chain.h) on row-major features: products with many small matrices, which find
// their features by strides, so that the permutations between stages cost no pass of their own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"
#include "cuda/core/shared.cuh"

namespace heddle::cuda {

/// A matrix [rows, width] of which block (term, pre, post), item j of a row is feature term * .. + pre * .. + post * ..
/// + j * item. Features beyond the width are zero when read, and left out when written.
struct Features {
  int64_t width = 0;
  int64_t term = 0, pre = 0, post = 0, item = 0;

  __device__ int64_t at(int64_t in_term, int64_t in_pre, int64_t in_post) const {
    return in_term * term + in_pre * pre + in_post * post;
  }
};

/// out[block, i] = Σ_j w[block, i, j] in[block, j]. Matrices w stand apart for each of `blocks()`; within a row,
/// shared_pre * post vectors share one.
struct StageGeometry {
  Features in, out;
  unsigned terms = 1, pre = 1, post = 1;
  unsigned shared_pre = 1;
  /// Terms that a product sums, with a matrix each.
  unsigned summed = 1;
  unsigned m = 0, k = 0;
  int64_t w_term = 0, w_pre = 0, w_m = 0, w_k = 0;
  /// Operands are rounded to bf16.
  bool round = false;

  __host__ __device__ unsigned apart_pre() const { return pre / shared_pre; }
  __host__ __device__ unsigned per_row() const { return shared_pre * post; }
  /// Matrices of the weight.
  __host__ __device__ int64_t matrices() const { return static_cast<int64_t>(terms) * apart_pre(); }
  int64_t weight_size() const { return matrices() * m * k; }
};

/// A vector of a block: its row, and the rest of its block's number.
struct VectorPlace {
  unsigned row, pre, post;

  __device__ VectorPlace(const StageGeometry& stage, unsigned vector, unsigned apart)
      : row(vector / stage.per_row()), pre(apart), post(0) {
    const unsigned rest = vector % stage.per_row();
    if (stage.shared_pre > 1) pre = rest / stage.post;
    post = rest % stage.post;
  }
  __device__ int64_t start(const Features& features) const { return static_cast<int64_t>(row) * features.width; }
};

inline constexpr unsigned kStageThreads = 256;
inline constexpr unsigned kStageDepth = 16;

__device__ inline float stage_value(float value, bool round) { return round ? to_float(to_bf16(value)) : value; }

/// kRows of a block's outputs for kVectors of its vectors; a thread has kRowsEach x kVectorsEach of them.
template <unsigned kRows, unsigned kVectors, unsigned kRowsEach, unsigned kVectorsEach>
__global__ void __launch_bounds__(kStageThreads)
    multiply_stage(StageGeometry stage, unsigned rows, const float* in, const float* w, float* out) {
  static_assert(kRows / kRowsEach * (kVectors / kVectorsEach) == kStageThreads);
  __shared__ Shared<float, kStageDepth*(kVectors + 1)> x_tile;
  __shared__ Shared<float, kStageDepth*(kRows + 1)> w_tile;
  __shared__ Shared<int64_t, kVectors> starts;  // of the vectors' rows
  __shared__ Shared<int64_t, kVectors> places;  // of their first features; beyond the width for those that do not exist
  const unsigned thread = threadIdx.x;
  const unsigned vectors = rows * stage.per_row();
  const unsigned depth = stage.summed * stage.k;
  const int64_t blocks = stage.matrices() / stage.summed;
  const int64_t row_tiles = ceil_div(stage.m, kRows);
  const int64_t units = blocks * row_tiles * ceil_div(vectors, kVectors);
  // Neighbouring threads store neighbouring numbers.
  const bool items_near = stage.out.item == 1;
  const unsigned own_row = items_near ? thread % (kRows / kRowsEach) : thread / (kVectors / kVectorsEach);
  const unsigned own_vector = items_near ? thread / (kRows / kRowsEach) : thread % (kVectors / kVectorsEach);

  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const auto block = static_cast<unsigned>(unit % blocks);
    const unsigned term = block / stage.apart_pre(), apart = block % stage.apart_pre();
    const auto first_row = static_cast<unsigned>(unit / blocks % row_tiles) * kRows;
    const auto first_vector = static_cast<unsigned>(unit / blocks / row_tiles) * kVectors;
    const float* const matrix = w + term * stage.w_term + apart * stage.w_pre;
    for (unsigned v = thread; v < kVectors; v += kStageThreads) {
      const bool exists = first_vector + v < vectors;
      const VectorPlace place(stage, exists ? first_vector + v : 0, apart);
      starts[v] = place.start(stage.in);
      places[v] = exists ? stage.in.at(term, place.pre, place.post) : stage.in.width;
    }
    float sums[kRowsEach][kVectorsEach] = {};
    for (unsigned first = 0; first < depth; first += kStageDepth) {
      __syncthreads();
      for (unsigned e = thread; e < kStageDepth * kVectors; e += kStageThreads) {
        const bool near = stage.in.item == 1;
        const unsigned d = near ? e % kStageDepth : e / kVectors, v = near ? e / kStageDepth : e % kVectors;
        const unsigned sum_term = (first + d) / stage.k, j = (first + d) % stage.k;
        const int64_t feature = places[v] + sum_term * stage.in.term + j * stage.in.item;
        float value = 0.0F;
        if (first + d < depth && feature < stage.in.width) value = in[starts[v] + feature];
        x_tile[d * (kVectors + 1) + v] = stage_value(value, stage.round);
      }
      for (unsigned e = thread; e < kStageDepth * kRows; e += kStageThreads) {
        const bool near = stage.w_k == 1;
        const unsigned d = near ? e % kStageDepth : e / kRows, i = near ? e / kStageDepth : e % kRows;
        const unsigned sum_term = (first + d) / stage.k, j = (first + d) % stage.k;
        float value = 0.0F;
        if (first + d < depth && first_row + i < stage.m)
          value = matrix[sum_term * stage.w_term + (first_row + i) * stage.w_m + j * stage.w_k];
        w_tile[d * (kRows + 1) + i] = stage_value(value, stage.round);
      }
      __syncthreads();
      for (unsigned d = 0; d < kStageDepth; ++d) {
        float a[kRowsEach], b[kVectorsEach];
#pragma unroll
        for (unsigned i = 0; i < kRowsEach; ++i) a[i] = w_tile[d * (kRows + 1) + own_row + i * (kRows / kRowsEach)];
#pragma unroll
        for (unsigned v = 0; v < kVectorsEach; ++v)
          b[v] = x_tile[d * (kVectors + 1) + own_vector + v * (kVectors / kVectorsEach)];
#pragma unroll
        for (unsigned i = 0; i < kRowsEach; ++i)
#pragma unroll
          for (unsigned v = 0; v < kVectorsEach; ++v) sums[i][v] += a[i] * b[v];
      }
    }
#pragma unroll
    for (unsigned v = 0; v < kVectorsEach; ++v) {
      const unsigned vector = first_vector + own_vector + v * (kVectors / kVectorsEach);
      if (vector >= vectors) continue;
      const VectorPlace place(stage, vector, apart);
      const int64_t first = stage.out.at(term, place.pre, place.post);
      float* const to = out + place.start(stage.out);
#pragma unroll
      for (unsigned i = 0; i < kRowsEach; ++i) {
        const unsigned row = first_row + own_row + i * (kRows / kRowsEach);
        const int64_t feature = first + row * stage.out.item;
        if (row < stage.m && feature < stage.out.width) to[feature] = sums[i][v];
      }
    }
    __syncthreads();
  }
}

/// A stage's product is cut into pieces of its vectors, whose gradients a second kernel adds up.
struct StagePieces {
  int64_t count = 1;
  unsigned vectors = 0;
};

/// parts[piece, w] = Σ over the piece's vectors of dout[i] in[j], for kRows x kColumns of a matrix; a thread has kEach
/// x kEach of them.
template <unsigned kRows, unsigned kColumns, unsigned kEach>
__global__ void __launch_bounds__(kStageThreads)
    differentiate_stage(StageGeometry stage, unsigned rows, StagePieces pieces, const float* in, const float* dout,
                        float* parts) {
  static_assert(kRows / kEach * (kColumns / kEach) == kStageThreads);
  constexpr unsigned kDepth = 2 * kStageDepth;
  __shared__ Shared<float, kDepth*(kRows + 1)> g_tile;
  __shared__ Shared<float, kDepth*(kColumns + 1)> x_tile;
  __shared__ Shared<int64_t, kDepth> g_starts, g_places, x_starts, x_places;
  const unsigned thread = threadIdx.x;
  const unsigned vectors = rows * stage.per_row();
  const int64_t blocks = stage.matrices();
  const int64_t row_tiles = ceil_div(stage.m, kRows), column_tiles = ceil_div(stage.k, kColumns);
  const unsigned own_row = thread / (kColumns / kEach), own_column = thread % (kColumns / kEach);

  for (int64_t unit = blockIdx.x; unit < blocks * row_tiles * column_tiles * pieces.count; unit += gridDim.x) {
    const auto block = static_cast<unsigned>(unit % blocks);
    const unsigned term = block / stage.apart_pre(), apart = block % stage.apart_pre();
    const auto first_row = static_cast<unsigned>(unit / blocks % row_tiles) * kRows;
    const auto first_column = static_cast<unsigned>(unit / blocks / row_tiles % column_tiles) * kColumns;
    const int64_t piece = unit / blocks / row_tiles / column_tiles;
    const auto begin = static_cast<unsigned>(piece * pieces.vectors);
    const unsigned end = vectors - begin < pieces.vectors ? vectors : begin + pieces.vectors;
    float sums[kEach][kEach] = {};
    for (unsigned first = begin; first < end; first += kDepth) {
      __syncthreads();
      if (thread < kDepth) {
        const bool exists = first + thread < end;
        const VectorPlace place(stage, exists ? first + thread : 0, apart);
        g_starts[thread] = place.start(stage.out);
        x_starts[thread] = place.start(stage.in);
        g_places[thread] = exists ? stage.out.at(term, place.pre, place.post) : stage.out.width;
        x_places[thread] = exists ? stage.in.at(term, place.pre, place.post) : stage.in.width;
      }
      __syncthreads();
      for (unsigned e = thread; e < kDepth * kRows; e += kStageThreads) {
        const bool near = stage.out.item == 1;
        const unsigned d = near ? e / kRows : e % kDepth, i = near ? e % kRows : e / kDepth;
        const int64_t feature = g_places[d] + (first_row + i) * stage.out.item;
        float value = 0.0F;
        if (first_row + i < stage.m && feature < stage.out.width) value = dout[g_starts[d] + feature];
        g_tile[d * (kRows + 1) + i] = stage_value(value, stage.round);
      }
      for (unsigned e = thread; e < kDepth * kColumns; e += kStageThreads) {
        const bool near = stage.in.item == 1;
        const unsigned d = near ? e / kColumns : e % kDepth, j = near ? e % kColumns : e / kDepth;
        const int64_t feature = x_places[d] + (first_column + j) * stage.in.item;
        float value = 0.0F;
        if (first_column + j < stage.k && feature < stage.in.width) value = in[x_starts[d] + feature];
        x_tile[d * (kColumns + 1) + j] = stage_value(value, stage.round);
      }
      __syncthreads();
      for (unsigned d = 0; d < kDepth; ++d) {
        float a[kEach], b[kEach];
#pragma unroll
        for (unsigned i = 0; i < kEach; ++i) a[i] = g_tile[d * (kRows + 1) + own_row + i * (kRows / kEach)];
#pragma unroll
        for (unsigned j = 0; j < kEach; ++j) b[j] = x_tile[d * (kColumns + 1) + own_column + j * (kColumns / kEach)];
#pragma unroll
        for (unsigned i = 0; i < kEach; ++i)
#pragma unroll
          for (unsigned j = 0; j < kEach; ++j) sums[i][j] += a[i] * b[j];
      }
    }
    float* const to = parts + piece * blocks * stage.m * stage.k + term * stage.w_term + apart * stage.w_pre;
#pragma unroll
    for (unsigned i = 0; i < kEach; ++i)
#pragma unroll
      for (unsigned j = 0; j < kEach; ++j) {
        const unsigned row = first_row + own_row + i * (kRows / kEach);
        const unsigned column = first_column + own_column + j * (kColumns / kEach);
        if (row < stage.m && column < stage.k) to[row * stage.w_m + column * stage.w_k] = sums[i][j];
      }
    __syncthreads();
  }
}

/// dw [size] = Σ of the pieces, on top of what is there or not.
static __global__ void join_pieces(const float* parts, float* dw, int64_t size, int64_t pieces, bool accumulate) {
  for (int64_t at = first_unit(); at < size; at += unit_step()) {
    float total = accumulate ? dw[at] : 0.0F;
    for (int64_t piece = 0; piece < pieces; ++piece) total += parts[piece * size + at];
    dw[at] = total;
  }
}

}  // namespace heddle::cuda
