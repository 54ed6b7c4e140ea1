// The gradient of attention from the forward pass's lse: a pass over tiles of rows for dq and one over tiles of keys
// for dk and dv, seven products of a pair of tiles in all, so that every sum has one owner and a fixed order.
#include "cuda/kernels/attention_tiles.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kTile = static_cast<unsigned>(kKeys);
constexpr unsigned kR = kTile / kSide;

using Offsets = Shared<int64_t, kTile>;
using Depths = Shared<float, kTile * kLine>;
using Weights = Shared<float, kTile * kKeyLine>;

struct Gradient {
  AttentionProblem p;
  const float *o, *lse, *g;
  /// Σ o g of each row, at its number.
  float* delta;
  float *dq, *dk, *dv;
};

/// delta, a warp for each row.
__global__ void sum_products(const float* o, const float* g, float* delta, int64_t rows, int64_t dim) {
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    float sum = 0.0F;
    for (int64_t i = threadIdx.x; i < dim; i += kWarpSize) sum += o[row * dim + i] * g[row * dim + i];
    sum = warp_reduce(sum, Sum());
    if (threadIdx.x == 0) delta[row] = sum;
  }
}

/// A tile of rows and one of keys, as the threads of a block hold them.
struct Pair {
  int64_t b, kv_head, first_row, first_key;

  __device__ int64_t row(unsigned i) const { return first_row + line() * kR + i; }
  __device__ int64_t key(unsigned j) const { return first_key + place() + kSide * j; }

  /// Which keys the rows see, and whether any thread of the block found one. A barrier.
  __device__ bool look(const AttentionProblem& p, Seen& seen) const {
    for (unsigned i = 0; i < kR; ++i) {
      const bool exists = row(i) < p.queries * p.group;
      const Sight sight(p, b, exists ? row(i) : first_row);
      for (unsigned j = 0; j < 4; ++j) seen.add(i, j, exists && sight.sees(p, b, key(j)));
    }
    return __syncthreads_or(static_cast<int>(seen.bits)) != 0;
  }
};

/// What a pair of tiles is computed in.
struct Tiles {
  Offsets &row_at, &key_at;
  Depths &q, &k, &g, &v;

  __device__ void place_rows(const AttentionProblem& p, const Pair& pair) const {
    if (threadIdx.x >= kTile) return;
    const int64_t row = pair.first_row + threadIdx.x;
    row_at[threadIdx.x] = row < p.queries * p.group ? p.row_offset(pair.b, pair.kv_head, row) : -1;
  }
  __device__ void place_keys(const AttentionProblem& p, const Pair& pair) const {
    if (threadIdx.x >= kTile) return;
    const int64_t key = pair.first_key + threadIdx.x;
    key_at[threadIdx.x] = key < p.keys ? p.key_offset(pair.b, pair.kv_head, key) : -1;
  }

  /// The softmax weights, and the slopes of the loss along q k.
  __device__ void differentiate(const Gradient& all, const Pair& pair, const Seen& seen, float (&weight)[kR][4],
                                float (&slope)[kR][4]) const {
    const AttentionProblem& p = all.p;
    for (unsigned i = 0; i < kR; ++i)
      for (unsigned j = 0; j < 4; ++j) weight[i][j] = slope[i][j] = 0.0F;
    for (int64_t depth = 0; depth < p.dim; depth += kSide) {
      __syncthreads();
      load_depth(p.q, row_at, depth, p.dim, q);
      load_depth(static_cast<const float*>(p.k), key_at, depth, p.dim, k);
      load_depth(all.g, row_at, depth, p.dim, g);
      load_depth(static_cast<const float*>(p.v), key_at, depth, p.dim, v);
      __syncthreads();
      multiply_depth<kR>(q, k, weight);
      multiply_depth<kR>(g, v, slope);
    }
    const float cap = p.softcap * kLog2E;
    for (unsigned i = 0; i < kR; ++i) {
      const int64_t row = pair.row(i);
      const bool exists = row < p.queries * p.group;
      const float lse = exists ? all.lse[p.statistic_offset(pair.b, pair.kv_head, row)] * kLog2E : 0.0F;
      const float delta = exists ? all.delta[p.row_offset(pair.b, pair.kv_head, row) / p.dim] : 0.0F;
      for (unsigned j = 0; j < 4; ++j) {
        const float x = bend(weight[i][j], p.scale * kLog2E, cap);
        const float bent = cap == 0.0F ? 1.0F : 1.0F - (x / cap) * (x / cap);
        weight[i][j] = seen(i, j) ? exp2f(x - lse) : 0.0F;
        slope[i][j] = seen(i, j) ? weight[i][j] * (slope[i][j] - delta) * p.scale * bent : 0.0F;
      }
    }
  }
};

/// dq of a tile of rows and a slice of columns: Σ over keys of slope k.
template <unsigned kC>
__global__ void __launch_bounds__(kSquare, kC == 4 ? kBlocksTogether : 1)
    backward_rows(Gradient all, int64_t units, int64_t row_blocks) {
  __shared__ Offsets row_at, key_at;
  __shared__ Depths q, k, g, v;
  __shared__ Weights slopes;
  __shared__ Shared<float, kSide * kSide * kC> values;
  const Tiles tiles{row_at, key_at, q, k, g, v};
  const AttentionProblem& p = all.p;
  const int64_t slices = ceil_div(p.dim, kSide * kC);
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t column = unit % slices * kSide * kC;
    const int64_t head = unit / slices / row_blocks;
    Pair pair{head / p.kv_heads, head % p.kv_heads, unit / slices % row_blocks * kTile, 0};
    __syncthreads();
    tiles.place_rows(p, pair);
    const int64_t end = Sight(p, pair.b, min(pair.first_row + kTile, p.queries * p.group) - 1).end;
    float sum[kR][kC] = {};
    for (pair.first_key = Sight(p, pair.b, pair.first_row).floor / kKeys * kKeys; pair.first_key < end;
         pair.first_key += kKeys) {
      Seen seen;
      float weight[kR][4], slope[kR][4];
      if (!pair.look(p, seen)) continue;
      tiles.place_keys(p, pair);
      tiles.differentiate(all, pair, seen, weight, slope);
      for (unsigned i = 0; i < kR; ++i)
        for (unsigned j = 0; j < 4; ++j) slopes[(line() * kR + i) * kKeyLine + place() + kSide * j] = slope[i][j];
      for (unsigned key = 0; key < kTile; key += kSide) {
        __syncthreads();
        load_columns<kC>(static_cast<const float*>(p.k), key_at, key, column, p.dim, values);
        __syncthreads();
#pragma unroll 4
        for (unsigned x = 0; x < kSide; ++x)
#pragma unroll
          for (unsigned i = 0; i < kR; ++i) {
            const float factor = slopes[(line() * kR + i) * kKeyLine + key + x];
#pragma unroll
            for (unsigned c = 0; c < kC; ++c) sum[i][c] += factor * values[(x * kC + c) * kSide + place()];
          }
      }
    }
    for (unsigned i = 0; i < kR; ++i)
      for (unsigned c = 0; c < kC; ++c) {
        const int64_t at = column + place() + kSide * c;
        if (pair.row(i) < p.queries * p.group && at < p.dim)
          all.dq[p.row_offset(pair.b, pair.kv_head, pair.row(i)) + at] = sum[i][c];
      }
  }
}

/// sum [key, column] += Σ over the tile's rows of factor [row, key] times the row of `from`.
template <unsigned kC>
__device__ void gather_rows(const Gradient& all, const float* from, Offsets& row_at, int64_t column,
                            const float (&factor)[kR][4], Weights& factors, Shared<float, kSide * kSide * kC>& values,
                            float (&sum)[4][kC]) {
  __syncthreads();
  for (unsigned i = 0; i < kR; ++i)
    for (unsigned j = 0; j < 4; ++j) factors[(line() * kR + i) * kKeyLine + place() + kSide * j] = factor[i][j];
  for (unsigned row = 0; row < kTile; row += kSide) {
    __syncthreads();
    load_columns<kC>(from, row_at, row, column, all.p.dim, values);
    __syncthreads();
#pragma unroll 4
    for (unsigned x = 0; x < kSide; ++x)
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) {
        const float by = factors[(row + x) * kKeyLine + line() * 4 + j];
#pragma unroll
        for (unsigned c = 0; c < kC; ++c) sum[j][c] += by * values[(x * kC + c) * kSide + place()];
      }
  }
}

template <unsigned kC>
__device__ void store_keys(const AttentionProblem& p, const Pair& pair, int64_t column, const float (&sum)[4][kC],
                           float* to) {
  for (unsigned j = 0; j < 4; ++j)
    for (unsigned c = 0; c < kC; ++c) {
      const int64_t key = pair.first_key + line() * 4 + j, at = column + place() + kSide * c;
      if (key < p.keys && at < p.dim) to[p.key_offset(pair.b, pair.kv_head, key) + at] = sum[j][c];
    }
}

/// dk and dv of a tile of keys and a slice of columns; either may be null.
template <unsigned kC>
__global__ void __launch_bounds__(kSquare, kC == 4 ? kBlocksTogether : 1)
    backward_keys(Gradient all, int64_t units, int64_t key_blocks) {
  __shared__ Offsets row_at, key_at;
  __shared__ Depths q, k, g, v;
  __shared__ Weights factors;
  __shared__ Shared<float, kSide * kSide * kC> values;
  const Tiles tiles{row_at, key_at, q, k, g, v};
  const AttentionProblem& p = all.p;
  const int64_t slices = ceil_div(p.dim, kSide * kC), rows = p.queries * p.group;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t column = unit % slices * kSide * kC;
    const int64_t head = unit / slices / key_blocks;
    Pair pair{head / p.kv_heads, head % p.kv_heads, 0, unit / slices % key_blocks * kKeys};
    __syncthreads();
    tiles.place_keys(p, pair);
    float dk[4][kC] = {}, dv[4][kC] = {};
    // Under a causal mask the queries before the first key see none of the tile.
    for (pair.first_row = p.causal ? pair.first_key * p.group / kTile * kTile : 0; pair.first_row < rows;
         pair.first_row += kTile) {
      if (Sight(p, pair.b, pair.first_row).floor >= pair.first_key + kKeys) break;
      Seen seen;
      float weight[kR][4], slope[kR][4];
      if (!pair.look(p, seen)) continue;
      tiles.place_rows(p, pair);
      tiles.differentiate(all, pair, seen, weight, slope);
      if (all.dv != nullptr) gather_rows<kC>(all, all.g, row_at, column, weight, factors, values, dv);
      if (all.dk != nullptr) gather_rows<kC>(all, p.q, row_at, column, slope, factors, values, dk);
    }
    if (all.dv != nullptr) store_keys<kC>(p, pair, column, dv, all.dv);
    if (all.dk != nullptr) store_keys<kC>(p, pair, column, dk, all.dk);
  }
}

template <unsigned kC>
void start(const Run& run, const Gradient& all) {
  const AttentionProblem& p = all.p;
  const int64_t rows = p.all_rows(), heads = p.batch * p.kv_heads, slices = ceil_div(p.dim, kSide * kC);
  if (rows > 0)
    launch(run, sum_products, {blocks_for(ceil_div(rows, 8)), dim3(kWarpSize, 8)}, all.o, all.g, all.delta, rows,
           p.dim);
  const int64_t row_blocks = ceil_div(p.queries * p.group, kTile), key_blocks = ceil_div(p.keys, kKeys);
  const int64_t row_units = heads * row_blocks * slices, key_units = heads * key_blocks * slices;
  if (all.dq != nullptr && row_units > 0)
    launch(run, backward_rows<kC>, {blocks_for(row_units), kSquare}, all, row_units, row_blocks);
  if ((all.dk != nullptr || all.dv != nullptr) && key_units > 0)
    launch(run, backward_keys<kC>, {blocks_for(key_units), kSquare}, all, key_units, key_blocks);
}

Kernel compile_attention_vjp(const KernelRequest& request) {
  AttentionProblem problem = read_attention(request);
  problem.causal = request.attributes.integer("causal", 0) == 1;
  Kernel kernel;
  kernel.scratch_bytes = static_cast<size_t>(problem.all_rows()) * sizeof(float);
  kernel.run = [problem](const Run& run) {
    Gradient all{.p = problem,
                 .o = run.input<float>(4),
                 .lse = run.input<float>(5),
                 .g = run.input<float>(6),
                 .delta = run.scratch_at<float>(0),
                 .dq = run.output<float>(0),
                 .dk = run.output<float>(1),
                 .dv = run.output<float>(2)};
    all.p.q = run.input<float>(0);
    all.p.k = run.in[1];
    all.p.v = run.in[2];
    all.p.segments = run.input<int32_t>(3);
    problem.dim <= 64 ? start<4>(run, all) : start<8>(run, all);
  };
  return kernel;
}

}  // namespace

void register_attention_backward(KernelTable& table) { table["attention_vjp"] = compile_attention_vjp; }

}  // namespace heddle::cuda
