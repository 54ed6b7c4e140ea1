// y = a @ b + c + alpha * z @ v with z = alpha_z * (a @ u). The first product is the library's. With many rows and a
// small rank the rest is one kernel that keeps its rows of z in shared memory and adds to y where it lies; otherwise
// two more of the library's products: few rows are too few blocks, and a large rank is work for its tiles.
#include <algorithm>
#include <array>
#include <memory>

#include "cuda/core/elements.cuh"
#include "cuda/core/warp.cuh"
#include "cuda/kernels/kernel_table.h"
#include "cuda/library/products.h"
#include "cuda/quant/weight.cuh"

namespace heddle::cuda {
namespace {

enum Input : size_t { kA, kB, kU, kV, kC };
enum Output : size_t { kY, kZ };

constexpr int64_t kFusedRows = 512;
constexpr unsigned kFusedRank = 64;
/// From here on there are blocks enough for each warp to have two rows, which share what it reads of u.
constexpr int64_t kManyRows = 4096;

constexpr unsigned kWarps = 8;
constexpr unsigned kThreads = kWarps * kWarpSize;
/// Columns of u (rows of v) that a thread has at once.
constexpr unsigned kRanks = 16;
/// Rows of u in shared memory at once.
constexpr unsigned kDepth = 128;

struct LowRank {
  int64_t m, n, k, r;
  /// From one row, and one column, to the next.
  int64_t u_row, u_column, v_row, v_column;
  const float *u, *v;
  float alpha, alpha_z;
};

__device__ inline float rounded(float value, float) { return value; }
__device__ inline float rounded(float value, Bf16) { return to_float(to_bf16(value)); }

using DownTile = Shared<float, kRanks*(kDepth + 1)>;

/// Rows [first, first + kDepth) of kRanks columns of u from `rank0` on, a column after the other; zeros outside.
template <class Element>
__device__ void load_down(const LowRank& all, int64_t first, int64_t rank0, DownTile& tile) {
#pragma unroll 2
  for (unsigned at = threadIdx.x; at < kRanks * kDepth; at += kThreads) {
    // Neighbouring threads read neighbouring numbers.
    const bool along_ranks = all.u_column == 1;
    const unsigned j = along_ranks ? at % kRanks : at / kDepth, i = along_ranks ? at / kRanks : at % kDepth;
    const bool inside = rank0 + j < all.r && first + i < all.k;
    tile[j * (kDepth + 1) + i] =
        inside ? rounded(all.u[(first + i) * all.u_row + (rank0 + j) * all.u_column], Element{}) : 0.0F;
  }
}

/// The rows of z of this warp, for kRanks columns: every lane has a share of the sums over k.
template <class Element, unsigned kRows>
__device__ void multiply_down(const LowRank& all, const Element* a, int64_t row0, int64_t rank0, DownTile& tile,
                              float (&sums)[kRows][kRanks]) {
  const unsigned lane = threadIdx.x % kWarpSize;
  for (int64_t first = 0; first < all.k; first += kDepth) {
    __syncthreads();
    load_down<Element>(all, first, rank0, tile);
    __syncthreads();
    // More at once would take registers from the sums; so it is where the tile is filled.
#pragma unroll 2
    for (unsigned i = lane; i < kDepth && first + i < all.k; i += kWarpSize) {
      float x[kRows];
#pragma unroll
      for (unsigned row = 0; row < kRows; ++row)
        x[row] = row0 + row < all.m ? to_float(a[(row0 + row) * all.k + first + i]) : 0.0F;
#pragma unroll
      for (unsigned j = 0; j < kRanks; ++j) {
        const float factor = tile[j * (kDepth + 1) + i];
#pragma unroll
        for (unsigned row = 0; row < kRows; ++row) sums[row][j] += x[row] * factor;
      }
    }
  }
}

/// Four neighbours of a row of z each, rounded as an operand is.
template <unsigned kBlockRows>
using Kept = Shared<float4, kBlockRows * kFusedRank / 4>;

/// z of the block's rows, into memory and into shared memory.
template <class Element, unsigned kRows>
__device__ void make_z(const LowRank& all, const Element* a, int64_t block_row0, float* z, DownTile& tile,
                       Kept<kWarps * kRows>& kept) {
  const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t row0 = block_row0 + warp * kRows;
  for (unsigned rank0 = 0; rank0 < all.r; rank0 += kRanks) {
    float sums[kRows][kRanks] = {};
    multiply_down<Element, kRows>(all, a, row0, rank0, tile, sums);
#pragma unroll
    for (unsigned row = 0; row < kRows; ++row) {
#pragma unroll
      for (unsigned j = 0; j < kRanks; ++j) {
        float& value = sums[row][j];
        value = all.alpha_z * warp_reduce(value, Sum());
        if (lane == j && row0 + row < all.m && rank0 + j < all.r) z[(row0 + row) * all.r + rank0 + j] = value;
        value = rounded(value, Element{});
      }
#pragma unroll
      for (unsigned j = 0; j < kRanks; j += 4)
        if (lane == j)
          kept[((warp * kRows + row) * kFusedRank + rank0 + j) / 4] =
              make_float4(sums[row][j], sums[row][j + 1], sums[row][j + 2], sums[row][j + 3]);
    }
  }
}

/// kRanks rows of a column of v from `rank0` on, zeros behind the last.
template <class Element>
__device__ void load_up(const LowRank& all, unsigned rank0, int64_t column, float (&factors)[kRanks]) {
#pragma unroll
  for (unsigned j = 0; j < kRanks; ++j)
    factors[j] = rank0 + j < all.r ? rounded(all.v[(rank0 + j) * all.v_row + column * all.v_column], Element{}) : 0.0F;
}

/// y += alpha z v. `a` [m, k] and what is multiplied are of the type Element, sums f32. A block has kWarps * kRows
/// rows.
template <class Element, unsigned kRows>
__global__ void __launch_bounds__(kThreads, 2) add_low_rank(LowRank all, const Element* a, float* z, float* y) {
  constexpr unsigned kBlockRows = kWarps * kRows;
  __shared__ DownTile tile;
  __shared__ Kept<kBlockRows> kept;
  for (int64_t row0 = static_cast<int64_t>(blockIdx.x) * kBlockRows; row0 < all.m;
       row0 += static_cast<int64_t>(gridDim.x) * kBlockRows) {
    make_z<Element, kRows>(all, a, row0, z, tile, kept);
    __syncthreads();
    for (int64_t column = threadIdx.x; column < all.n; column += kThreads) {
      float sums[kBlockRows] = {};
      for (unsigned rank0 = 0; rank0 < all.r; rank0 += kRanks) {
        float factors[kRanks];
        load_up<Element>(all, rank0, column, factors);
#pragma unroll
        for (unsigned row = 0; row < kBlockRows; ++row)
#pragma unroll
          for (unsigned j = 0; j < kRanks; j += 4) {
            const float4 four = kept[(row * kFusedRank + rank0 + j) / 4];
            sums[row] +=
                four.x * factors[j] + four.y * factors[j + 1] + four.z * factors[j + 2] + four.w * factors[j + 3];
          }
      }
#pragma unroll
      for (unsigned row = 0; row < kBlockRows; ++row)
        if (row0 + row < all.m) y[(row0 + row) * all.n + column] += all.alpha * sums[row];
    }
    // The next rows' z takes the place of these.
    __syncthreads();
  }
}

template <class Element>
void start_fused(const Run& run, const LowRank& all, const void* a_at) {
  const auto* const a = static_cast<const Element*>(a_at);
  auto *const z = run.output<float>(kZ), *const y = run.output<float>(kY);
  const auto grid = [&](unsigned rows) { return Grid{blocks_for(ceil_div(all.m, kWarps * rows)), kThreads}; };
  if (all.m >= kManyRows)
    launch(run, add_low_rank<Element, 2>, grid(2), all, a, z, y);
  else
    launch(run, add_low_rank<Element, 1>, grid(1), all, a, z, y);
}

struct Plan {
  DType element = DType::kF32;
  LowRank all;
  bool has_c = false, fused = false;
  /// a, and where the library does it all u, v and z; b is the base product's.
  std::array<ProductOperand, 5> matrices;
  WeightProduct base;
  std::shared_ptr<const Product> down, up;
  ScratchLayout scratch;
  size_t workspace = 0;
};

constexpr size_t kOfZ = 4;

LowRank sizes_of(const KernelRequest& request) {
  const bool turned_u = request.attributes.integer("transpose_u", 0) != 0;
  const bool turned_v = request.attributes.integer("transpose_v", 0) != 0;
  LowRank all{};
  all.m = request.inputs[kA].shape[0];
  all.k = request.inputs[kA].shape[1];
  all.n = request.outputs[kY].shape[1];
  all.r = request.outputs[kZ].shape[1];
  all.u_row = turned_u ? 1 : all.r;
  all.u_column = turned_u ? all.k : 1;
  all.v_row = turned_v ? 1 : all.n;
  all.v_column = turned_v ? all.r : 1;
  all.alpha = static_cast<float>(request.attributes.number("alpha", 1.0));
  all.alpha_z = static_cast<float>(request.attributes.number("alpha_z", 1.0));
  return all;
}

void plan_separate(const KernelRequest& request, Plan& plan) {
  const auto& [m, n, k, r, u_row, u_column, v_row, v_column, u, v, alpha, alpha_z] = plan.all;
  plan.matrices[kU] = {request.inputs[kU], plan.element, plan.scratch};
  plan.matrices[kV] = {request.inputs[kV], plan.element, plan.scratch};
  plan.matrices[kOfZ] = {request.outputs[kZ], plan.element, plan.scratch};
  plan.down = Product::get({.m = m,
                            .n = r,
                            .k = k,
                            .transpose_b = request.attributes.integer("transpose_u", 0) != 0,
                            .element = plan.element,
                            .alpha = alpha_z});
  plan.up = Product::get({.m = m,
                          .n = n,
                          .k = r,
                          .transpose_b = request.attributes.integer("transpose_v", 0) != 0,
                          .element = plan.element,
                          .alpha = alpha,
                          .beta = 1.0});
}

Plan make_plan(const KernelRequest& request) {
  Plan plan;
  plan.all = sizes_of(request);
  if (request.attributes.has("precision") && request.attributes.text("precision") != "f32") plan.element = DType::kBF16;
  plan.matrices[kA] = {request.inputs[kA], plan.element, plan.scratch};
  plan.has_c = request.inputs.size() == 5 && request.inputs[kC].present;
  plan.fused = plan.all.m >= kFusedRows && plan.all.r <= kFusedRank;
  plan.base = {{.m = plan.all.m,
                .n = plan.all.n,
                .k = plan.all.k,
                .transpose_b = request.attributes.integer("transpose_b", 0) != 0,
                .element = plan.element,
                .beta = plan.has_c ? 1.0 : 0.0},
               request.inputs[kB],
               plan.scratch};
  if (!plan.fused) plan_separate(request, plan);
  size_t bytes = plan.base.scratch_bytes();
  for (const auto& product : {plan.down, plan.up})
    if (product != nullptr) bytes = std::max(bytes, product->scratch_bytes());
  plan.workspace = plan.scratch.take(static_cast<int64_t>(bytes), 1);
  return plan;
}

void run_separate(const Run& run, const Plan& plan, const void* a) {
  void *const y = run.out[kY], *const z = run.out[kZ], *const workspace = run.scratch_at<void>(plan.workspace);
  plan.down->run(run.stream, a, plan.matrices[kU].start(run, run.in[kU]), z, z, workspace);
  plan.up->run(run.stream, plan.matrices[kOfZ].start(run, z), plan.matrices[kV].start(run, run.in[kV]), y, y,
               workspace);
}

void run_fused(const Run& run, const Plan& plan, const void* a) {
  LowRank all = plan.all;
  all.u = run.input<float>(kU);
  all.v = run.input<float>(kV);
  plan.element == DType::kBF16 ? start_fused<Bf16>(run, all, a) : start_fused<float>(run, all, a);
}

Kernel compile_low_rank_matmul(const KernelRequest& request) {
  const Plan plan = make_plan(request);
  Kernel kernel;
  if (plan.has_c) kernel.in_place = {{kC, kY}};
  plan.base.claim(kB, kernel);
  kernel.scratch_bytes = plan.scratch.bytes;
  kernel.run = [plan](const Run& run) {
    const void* const a = plan.matrices[kA].start(run, run.in[kA]);
    plan.base.run(run, a, run.in[kB], plan.has_c ? run.in[kC] : run.out[kY], run.out[kY],
                  run.scratch_at<void>(plan.workspace));
    plan.fused ? run_fused(run, plan, a) : run_separate(run, plan, a);
  };
  return kernel;
}

}  // namespace

void register_low_rank_matmul(KernelTable& table) { table["low_rank_matmul"] = compile_low_rank_matmul; }

}  // namespace heddle::cuda
