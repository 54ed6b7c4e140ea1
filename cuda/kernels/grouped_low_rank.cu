// y + scale_i (x_i A_i^T) B_i, where every token has low-rank factors of its own: rows of two pools. A token's sums run
// in an order that depends on nothing but its own operands.
#include <memory>
#include <string>

#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"
#include "cuda/core/warp.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

/// Warps that share a token's rows of A.
constexpr int64_t kTokenWarps = 16;

enum Input : size_t { kY, kX, kA, kB, kRanges, kScales };

struct Factors {
  int64_t tokens, in, out, pool_rows;
  /// [tokens, 2]: the first row of a token's factors, and how many they are.
  const int32_t* ranges;
  Report report;

  /// The rank, or 0 after telling of rows outside of the pools; several threads ask for the same token.
  __device__ int64_t rank(int64_t token) const {
    const int64_t row = ranges[2 * token], count = ranges[2 * token + 1];
    if (count == 0) return 0;
    if (row >= 0 && count > 0 && row + count <= pool_rows) return count;
    within(report, row < 0 || count < 0 ? min(row, count) : row + count - 1, 0, row < 0 || count < 0 ? 0 : pool_rows);
    return 0;
  }
};

/// z [tokens, pool_rows], of which a token uses the first of its row: x_i A_i^T. A warp for a row of A.
template <class T>
__global__ void multiply_down(Factors f, const float* x, const T* a, float* z) {
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; unit < f.tokens * kTokenWarps;
       unit += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const int64_t token = unit / kTokenWarps, rank = f.rank(token);
    for (int64_t j = unit % kTokenWarps; j < rank; j += kTokenWarps) {
      const T* const row = a + (f.ranges[2 * token] + j) * f.in;
      float sum = 0.0F;
      for (int64_t i = threadIdx.x; i < f.in; i += kWarpSize) sum += x[token * f.in + i] * to_float(row[i]);
      sum = warp_reduce(sum, Sum());
      if (threadIdx.x == 0) z[token * f.pool_rows + j] = sum;
    }
  }
}

/// to = y + scale_i z_i B_i; y and to may be the same memory.
template <class T>
__global__ void multiply_up(Factors f, const float* y, const float* z, const T* b, const float* scales, float* to) {
  for (int64_t at = first_unit(); at < f.tokens * f.out; at += unit_step()) {
    const int64_t token = at / f.out, rank = f.rank(token);
    const T* const column = b + (rank == 0 ? 0 : f.ranges[2 * token]) * f.out + at % f.out;
    float sum = 0.0F;
    for (int64_t j = 0; j < rank; ++j) sum += z[token * f.pool_rows + j] * to_float(column[j * f.out]);
    to[at] = rank == 0 ? y[at] : y[at] + scales[token] * sum;
  }
}

template <class T>
void down(const Run& run, const Factors& f, float* z) {
  launch(run, multiply_down<T>, {blocks_for(ceil_div(f.tokens * kTokenWarps, 8)), dim3(kWarpSize, 8)}, f,
         run.input<float>(kX), run.input<T>(kA), z);
}

template <class T>
void up(const Run& run, const Factors& f, const float* z) {
  launch(run, multiply_up<T>, grid_of(f.tokens * f.out), f, run.input<float>(kY), z, run.input<T>(kB),
         run.input<float>(kScales), run.output<float>(0));
}

Kernel compile_grouped_low_rank(const KernelRequest& request) {
  const Shape &y = request.inputs[kY].shape, &a = request.inputs[kA].shape;
  const int64_t tokens = y[0], out = y[1], rows = a[0], in = a[1];
  const bool half_a = request.inputs[kA].dtype == DType::kBF16, half_b = request.inputs[kB].dtype == DType::kBF16;
  if (tokens == 0) return nothing();
  const auto words =
      std::make_shared<const std::string>("ranges within the " + std::to_string(rows) + " rows of the pools");
  Kernel kernel;
  kernel.in_place = {{kY, 0}};
  kernel.scratch_bytes = static_cast<size_t>(tokens * rows) * sizeof(float);
  kernel.run = [=](const Run& run) {
    const Factors f{tokens, in, out, rows, run.input<int32_t>(kRanges), run.report.in_words(words->c_str())};
    auto* const z = run.scratch_at<float>(0);
    half_a ? down<Bf16>(run, f, z) : down<float>(run, f, z);
    if (out == 0) return;
    half_b ? up<Bf16>(run, f, z) : up<float>(run, f, z);
  };
  return kernel;
}

}  // namespace

void register_grouped_low_rank(KernelTable& table) { table["grouped_low_rank"] = compile_grouped_low_rank; }

}  // namespace heddle::cuda
