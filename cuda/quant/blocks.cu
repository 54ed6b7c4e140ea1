#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"
#include "cuda/core/warp.cuh"
#include "cuda/quant/blocks.h"
#include "cuda/quant/codecs.cuh"

namespace heddle::cuda {
namespace {

constexpr unsigned kWarps = 4;
constexpr int kColumns = 2;
constexpr int kRows = 8;

/// The planes of W.
struct Blocks {
  const uint8_t *bodies, *heads;
  int64_t rows, columns;
  bool rounds;
};

Blocks planes_of(const BlockMatrix& matrix, const void* memory) {
  const auto* const bytes = static_cast<const uint8_t*>(memory);
  const auto count = static_cast<size_t>(matrix.rows * matrix.columns) / block_elements(matrix.encoding);
  return {bytes, bytes + block_planes(matrix.encoding).heads_at(count), matrix.rows, matrix.columns, matrix.rounds};
}

/// Slice number `slice` of a row. @returns where in the row it begins
template <class Of>
__device__ int64_t decode_slice(const Blocks& w, int64_t row, int64_t slice, float (&v)[kSliceElements]) {
  constexpr unsigned kSlices = Of::kElements / kSliceElements;
  const int64_t block = slice / kSlices, at = row * (w.columns / Of::kElements) + block;
  const auto within_block = static_cast<unsigned>(slice % kSlices);
  Of::decode(w.bodies + at * Of::kBody, w.heads + at * Of::kHead, within_block, v);
  if (w.rounds)
    for (float& each : v) each = to_float(to_bf16(each));
  return block * Of::kElements + Of::first(within_block);
}

__device__ inline void load_four(const float* from, float* v) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  v[0] = four.x;
  v[1] = four.y;
  v[2] = four.z;
  v[3] = four.w;
}
__device__ inline void load_four(const Bf16* from, float* v) {
  const uint2 four = *reinterpret_cast<const uint2*>(from);
  v[0] = __uint_as_float(four.x << 16);
  v[1] = __uint_as_float(four.x & 0xffff0000U);
  v[2] = __uint_as_float(four.y << 16);
  v[3] = __uint_as_float(four.y & 0xffff0000U);
}

__device__ inline void store_four(const float* v, float* to) {
  *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
}
__device__ inline unsigned two_halves(float low, float high) {
  return to_bf16(low).bits | static_cast<unsigned>(to_bf16(high).bits) << 16;
}
__device__ inline void store_four(const float* v, Bf16* to) {
  *reinterpret_cast<uint2*>(to) = {two_halves(v[0], v[1]), two_halves(v[2], v[3])};
}

/// Rows first to first + kRows of x times two columns of Wᵀ, of which the lane takes every 32nd slice.
template <class Of>
__device__ void add_slices(const Blocks& w, const FewRows& product, const int64_t (&column)[kColumns], int64_t first,
                           float (&sums)[kColumns][kRows]) {
  const int64_t rows = product.rows - first;
  for (int64_t slice = threadIdx.x; slice < w.columns / kSliceElements; slice += kWarpSize) {
    float weights[kColumns][kSliceElements];
    int64_t at = 0;
    for (int c = 0; c < kColumns; ++c) at = decode_slice<Of>(w, column[c], slice, weights[c]);
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      float x[kSliceElements];
      const int64_t from = (first + r) * w.columns + at;
      if (product.half) {
        load_four(static_cast<const Bf16*>(product.x) + from, x);
        load_four(static_cast<const Bf16*>(product.x) + from + Of::kGap, x + 4);
      } else {
        load_four(static_cast<const float*>(product.x) + from, x);
        load_four(static_cast<const float*>(product.x) + from + Of::kGap, x + 4);
      }
      for (int c = 0; c < kColumns; ++c)
        for (unsigned i = 0; i < kSliceElements; ++i) sums[c][r] += weights[c][i] * x[i];
    }
  }
}

template <class Of>
__global__ void __launch_bounds__(kWarps* kWarpSize) multiply_rows(Blocks w, FewRows product) {
  const int64_t units = ceil_div(w.rows, kColumns);
  for (int64_t unit = blockIdx.x * int64_t{kWarps} + threadIdx.y; unit < units; unit += gridDim.x * int64_t{kWarps}) {
    // Of an odd number of columns, the last one is computed twice.
    const int64_t next = unit * kColumns + 1;
    const int64_t column[kColumns] = {unit * kColumns, next < w.rows ? next : w.rows - 1};
    for (int64_t first = 0; first < product.rows; first += kRows) {
      float sums[kColumns][kRows] = {};
      add_slices<Of>(w, product, column, first, sums);
      for (int r = 0; r < kRows; ++r) {
        if (first + r >= product.rows) break;
        for (int c = 0; c < kColumns; ++c) {
          const float total = warp_reduce(sums[c][r], Sum());
          const int64_t to = (first + r) * w.rows + column[c];
          if (threadIdx.x != 0 || (c != 0 && column[c] == column[0])) continue;
          const float more = product.c == nullptr ? 0.0F : product.c[product.bias ? column[c] : to];
          product.y[to] = product.alpha * total + more;
        }
      }
    }
  }
}

/// Calls function with the codec of an encoding.
template <class Function, Encoding... kEach>
__device__ void with_codec(Encoding encoding, const Function& function, CodecList<kEach...>) {
  static_cast<void>(((kEach == encoding && (function(Codec<kEach>()), true)) || ...));
}

/// A thread for a slice; rows from `first` on, or those that the index names.
template <class T>
__global__ void decode_slices(Blocks w, Encoding encoding, const int32_t* index, int64_t first, int64_t count, T* to,
                              Report report) {
  const int64_t slices = w.columns / kSliceElements;
  for (int64_t at = first_unit(); at < count * slices; at += unit_step()) {
    const int64_t place = at / slices;
    const int64_t row = index == nullptr ? first + place : index[place];
    if (index != nullptr && !within(report, row, 0, w.rows)) continue;
    with_codec(
        encoding,
        [&](auto codec) {
          float v[kSliceElements];
          T* const element = to + place * w.columns + decode_slice<decltype(codec)>(w, row, at % slices, v);
          store_four(v, element);
          store_four(v + 4, element + decltype(codec)::kGap);
        },
        AllCodecs());
  }
}

using MultiplyRows = void (*)(Blocks, FewRows);

template <Encoding... kEach>
MultiplyRows multiply_rows_of(Encoding encoding, CodecList<kEach...>) {
  MultiplyRows found = nullptr;
  static_cast<void>(((kEach == encoding && (found = multiply_rows<Codec<kEach>>, true)) || ...));
  return found;
}

void start_decoding(const Run& run, const BlockMatrix& matrix, const void* blocks, const int32_t* index, int64_t first,
                    int64_t count, DType element, void* to) {
  const Blocks w = planes_of(matrix, blocks);
  const Grid grid = grid_of(count * matrix.columns / kSliceElements);
  if (element == DType::kBF16)
    launch(run, decode_slices<Bf16>, grid, w, matrix.encoding, index, first, count, static_cast<Bf16*>(to), run.report);
  else
    launch(run, decode_slices<float>, grid, w, matrix.encoding, index, first, count, static_cast<float*>(to),
           run.report);
}

}  // namespace

std::optional<BlockMatrix> BlockMatrix::of(const Operand& operand) {
  const bool numbers = operand.dtype == DType::kF32 || operand.dtype == DType::kBF16;
  if (!operand.present || !numbers || operand.shape.rank() != 2 || operand.shape.count() == 0) return std::nullopt;
  BlockMatrix matrix{.rows = operand.shape[0], .columns = operand.shape[1]};
  if (matrix.columns % kSliceElements != 0) return std::nullopt;
  if (!operand.encoding.empty()) {
    matrix.encoding = encoding_from_name(operand.encoding);
    matrix.rounds = operand.dtype == DType::kBF16;
    // Of another shape than the file's matrix, its rows may end within a block.
    if (matrix.columns % static_cast<int64_t>(block_elements(matrix.encoding)) != 0) return std::nullopt;
    return matrix;
  }
  if (operand.dtype != DType::kBF16) return std::nullopt;
  matrix.form = HEDDLE_ELEMENTS;
  return matrix;
}

void multiply_few(const Run& run, const BlockMatrix& matrix, const void* blocks, const FewRows& product) {
  const int64_t warps = ceil_div(matrix.rows, kColumns);
  const Grid grid{blocks_for(ceil_div(warps, kWarps)), dim3(kWarpSize, kWarps)};
  launch(run, multiply_rows_of(matrix.encoding, AllCodecs()), grid, planes_of(matrix, blocks), product);
}

void decode_rows(const Run& run, const BlockMatrix& matrix, const void* blocks, int64_t first, int64_t count,
                 DType element, void* to) {
  start_decoding(run, matrix, blocks, nullptr, first, count, element, to);
}

void gather_rows(const Run& run, const BlockMatrix& matrix, const void* blocks, const int32_t* index, int64_t count,
                 DType element, void* to) {
  start_decoding(run, matrix, blocks, index, 0, count, element, to);
}

}  // namespace heddle::cuda
