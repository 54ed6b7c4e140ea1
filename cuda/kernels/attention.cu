// Grouped-query attention that never holds a [t, s] matrix: tiles of rows meet tiles of keys and the softmax is kept
// running (Dao et al. 2022, "FlashAttention"; Milakov & Gimelshein 2018). Where few rows meet many keys, parts of the
// keys are gone through side by side and joined in their order (Dao et al. 2023, "Flash-Decoding"). Heads wider than a
// tile have it once per slice of their columns.
#include <algorithm>

#include "cuda/kernels/attention_tiles.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr size_t kMostPartial = size_t{1} << 28;

/// A block's share of the work.
struct Unit {
  int64_t b, kv_head, first, count, part, column;

  __device__ Unit(const AttentionProblem& p, int64_t unit, int64_t rows, int64_t row_blocks, int64_t width) {
    const int64_t slices = ceil_div(p.dim, width);
    column = unit % slices * width;
    unit /= slices;
    part = unit % p.parts;
    unit /= p.parts;
    kv_head = unit % p.kv_heads;
    unit /= p.kv_heads;
    b = unit / row_blocks;
    int64_t block = unit % row_blocks;
    if (p.page != 0) {
      // Sequences have blocks of their own: this is number `unit` of them all.
      block = unit;
      for (b = 0; b < p.batch; ++b) {
        const int64_t own = ceil_div(p.tokens(b) * p.group, rows);
        if (block < own) break;
        block -= own;
      }
    }
    first = block * rows;
    count = b < p.batch ? min(rows, p.tokens(b) * p.group - first) : 0;
  }
};

/// What a thread knows of its kR rows.
template <unsigned kR, unsigned kC>
struct RowSums {
  float maximum[kR], sum[kR], out[kR][kC];

  __device__ RowSums() {
    for (unsigned i = 0; i < kR; ++i) {
      maximum[i] = kFloor;
      sum[i] = 0.0F;
      for (unsigned c = 0; c < kC; ++c) out[i][c] = 0.0F;
    }
  }

  /// Turns scores into weights relative to the running maximum; what was summed up before shrinks.
  __device__ void take(float (&score)[kR][4], const Seen& seen) {
#pragma unroll
    for (unsigned i = 0; i < kR; ++i) {
      float top = maximum[i];
#pragma unroll
      for (unsigned j = 0; j < 4; ++j)
        if (seen(i, j)) top = Maximum()(top, score[i][j]);
      top = line_reduce(top, Maximum());
      const float factor = exp2f(maximum[i] - top);
      maximum[i] = top;
      sum[i] *= factor;
#pragma unroll
      for (unsigned c = 0; c < kC; ++c) out[i][c] *= factor;
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) {
        score[i][j] = seen(i, j) ? exp2f(score[i][j] - top) : 0.0F;
        sum[i] += score[i][j];
      }
    }
  }
};

template <unsigned kR, unsigned kC>
__device__ void store_rows(const AttentionProblem& p, const Unit& unit, const RowSums<kR, kC>& sums) {
  for (unsigned i = 0; i < kR; ++i) {
    const float sum = line_reduce(sums.sum[i], Sum());
    const int64_t row = unit.first + line() * kR + i;
    if (row >= unit.first + unit.count) continue;
    const int64_t at = p.row_offset(unit.b, unit.kv_head, row);
    const bool whole = p.parts == 1;
    // A row that saw no key is 0, as an empty sum is.
    const float norm = !whole ? 1.0F : sum == 0.0F ? 0.0F : 1.0F / sum;
    float* const to = whole ? p.o : p.partial + unit.part * p.all_rows() * p.dim;
    for (unsigned c = 0; c < kC; ++c) {
      const int64_t column = unit.column + place() + kSide * c;
      if (column < p.dim) to[at + column] = sums.out[i][c] * norm;
    }
    if (place() != 0 || unit.column != 0) continue;
    if (!whole) {
      float* const statistics = p.partial + p.parts * p.all_rows() * p.dim;
      const int64_t index = unit.part * p.all_rows() + at / p.dim;
      statistics[index] = sums.maximum[i];
      statistics[p.parts * p.all_rows() + index] = sum;
    } else if (p.lse != nullptr) {
      p.lse[p.statistic_offset(unit.b, unit.kv_head, row)] = sums.maximum[i] * kLn2 + logf(sum);
    }
  }
}

template <class Element, unsigned kR, unsigned kC>
__global__ void __launch_bounds__(kSquare, kR == 1 ? 2 * kBlocksTogether : kBlocksTogether)
    attend(AttentionProblem p, int64_t units, int64_t row_blocks) {
  constexpr unsigned kRows = kSide * kR;
  constexpr unsigned kTile = static_cast<unsigned>(kKeys);
  __shared__ Shared<int64_t, kRows> row_at;
  __shared__ Shared<int64_t, kTile> key_at;
  __shared__ Shared<float, kRows * kLine> rows;
  __shared__ Shared<float, kTile * kLine> keys;
  __shared__ Shared<float, kRows * kKeyLine> weights;
  __shared__ Shared<float, kSide * kSide * kC> values;
  if (p.valid != nullptr && *p.valid == 0) return;
  const auto* const k = static_cast<const Element*>(p.k);
  const auto* const v = static_cast<const Element*>(p.v);
  const float scale = p.scale * kLog2E, cap = p.softcap * kLog2E;

  for (int64_t number = blockIdx.x; number < units; number += gridDim.x) {
    const Unit unit(p, number, kRows, row_blocks, kSide * kC);
    if (unit.count <= 0) continue;
    __syncthreads();
    if (threadIdx.x < kRows)
      row_at[threadIdx.x] =
          threadIdx.x < unit.count ? p.row_offset(unit.b, unit.kv_head, unit.first + threadIdx.x) : -1;
    const Sight lowest(p, unit.b, unit.first), highest(p, unit.b, unit.first + unit.count - 1);
    RowSums<kR, kC> sums;
    const int64_t begin = max(lowest.floor / kKeys * kKeys, p.parts == 1 ? 0 : unit.part * kPartKeys);
    const int64_t end = p.parts == 1 ? highest.end : min(highest.end, (unit.part + 1) * kPartKeys);
    for (int64_t first = begin; first < end; first += kKeys) {
      Seen seen;
      for (unsigned i = 0; i < kR; ++i) {
        const int64_t row = min(unit.first + line() * kR + i, unit.first + unit.count - 1);
        const Sight sight(p, unit.b, row);
        for (unsigned j = 0; j < 4; ++j) seen.add(i, j, sight.sees(p, unit.b, first + place() + kSide * j));
      }
      if (__syncthreads_or(static_cast<int>(seen.bits)) == 0) continue;
      if (threadIdx.x < kTile) {
        const int64_t key = first + threadIdx.x;
        key_at[threadIdx.x] = key >= lowest.floor && key < end ? p.key_offset(unit.b, unit.kv_head, key) : -1;
      }
      float score[kR][4] = {};
      for (int64_t depth = 0; depth < p.dim; depth += kSide) {
        __syncthreads();
        load_depth(p.q, row_at, depth, p.dim, rows);
        load_depth(k, key_at, depth, p.dim, keys);
        __syncthreads();
        multiply_depth<kR>(rows, keys, score);
      }
      for (unsigned i = 0; i < kR; ++i)
        for (unsigned j = 0; j < 4; ++j) score[i][j] = bend(score[i][j], scale, cap);
      sums.take(score, seen);
      for (unsigned i = 0; i < kR; ++i)
        for (unsigned j = 0; j < 4; ++j) weights[(line() * kR + i) * kKeyLine + place() + kSide * j] = score[i][j];
      for (unsigned key = 0; key < kTile && first + key < end; key += kSide) {
        __syncthreads();
        load_columns<kC>(v, key_at, key, unit.column, p.dim, values);
        __syncthreads();
#pragma unroll 4
        for (unsigned x = 0; x < kSide; ++x) {
          float weight[kR];
#pragma unroll
          for (unsigned i = 0; i < kR; ++i) weight[i] = weights[(line() * kR + i) * kKeyLine + key + x];
#pragma unroll
          for (unsigned c = 0; c < kC; ++c) {
            const float value = values[(x * kC + c) * kSide + place()];
#pragma unroll
            for (unsigned i = 0; i < kR; ++i) sums.out[i][c] += weight[i] * value;
          }
        }
      }
    }
    store_rows(p, unit, sums);
  }
}

/// o from the parts, in their order.
static __global__ void join_parts(AttentionProblem p) {
  if (p.valid != nullptr && *p.valid == 0) return;
  const int64_t rows = p.all_rows();
  const float* const maxima = p.partial + p.parts * rows * p.dim;
  const float* const weights = maxima + p.parts * rows;
  const int64_t used = p.page == 0 ? rows : p.starts[p.batch] * p.heads;
  for (int64_t at = first_unit(); at < used * p.dim; at += unit_step()) {
    const int64_t row = at / p.dim;
    float top = kFloor;
    for (int64_t part = 0; part < p.parts; ++part) top = Maximum()(top, maxima[part * rows + row]);
    float total = 0.0F, sum = 0.0F;
    for (int64_t part = 0; part < p.parts; ++part) {
      const float factor = exp2f(maxima[part * rows + row] - top);
      total += factor * p.partial[part * rows * p.dim + at];
      sum += factor * weights[part * rows + row];
    }
    p.o[at] = sum == 0.0F ? 0.0F : total / sum;
  }
}

template <class Element, unsigned kR, unsigned kC>
void start(const Run& run, const AttentionProblem& p) {
  constexpr int64_t kRows = kSide * kR;
  const int64_t row_blocks = ceil_div(p.queries * p.group, kRows);
  // Each packed sequence may leave a block unfilled.
  const int64_t blocks = p.page == 0 ? p.batch * row_blocks : p.batch + p.queries * p.group / kRows;
  const int64_t units = blocks * p.kv_heads * p.parts * ceil_div(p.dim, kSide * kC);
  launch(run, attend<Element, kR, kC>, {blocks_for(units), kSquare}, p, units, row_blocks);
  if (p.parts > 1) launch(run, join_parts, grid_of(p.all_rows() * p.dim), p);
}

template <class Element>
void start(const Run& run, const AttentionProblem& p, bool few) {
  const bool narrow = p.dim <= 64;
  if (few)
    narrow ? start<Element, 1, 4>(run, p) : start<Element, 1, 8>(run, p);
  else
    narrow ? start<Element, 4, 4>(run, p) : start<Element, 4, 8>(run, p);
}

Kernel compile_attention(const KernelRequest& request) {
  AttentionProblem problem = read_attention(request);
  problem.causal = request.attributes.integer("causal", 0) == 1;
  if (request.inputs[0].shape.count() == 0) return nothing();
  return {.run = [problem](const Run& run) {
    AttentionProblem p = problem;
    p.q = run.input<float>(0);
    p.k = run.in[1];
    p.v = run.in[2];
    p.segments = run.input<int32_t>(3);
    p.o = run.output<float>(0);
    p.lse = run.output<float>(1);
    start_attention(run, p, DType::kF32, false);
  }};
}

constexpr const char* kPositions = "positions within the cache";

/// valid = whether every sequence of `queries` tokens from its position on has room for them.
static __global__ void check_positions(const int32_t* position, int64_t batch, int64_t queries, int64_t keys,
                                       int32_t* valid, Report report) {
  int wrong = 0;
  for (int64_t b = threadIdx.x; b < batch; b += blockDim.x)
    if (!within(report, position[b], 0, keys - queries + 1)) wrong = 1;
  wrong = __syncthreads_or(wrong);
  if (threadIdx.x == 0) *valid = wrong == 0 ? 1 : 0;
}

Kernel compile_attention_cached(const KernelRequest& request) {
  AttentionProblem problem = read_attention(request);
  problem.causal = true;
  if (request.inputs[0].shape.count() == 0) return nothing();
  const DType dtype = request.inputs[1].dtype;
  Kernel kernel;
  const size_t partial = split_keys(problem);
  kernel.scratch_bytes = partial + sizeof(int32_t);
  kernel.run = [problem, dtype, partial](const Run& run) {
    AttentionProblem p = problem;
    p.q = run.input<float>(0);
    p.k = run.in[1];
    p.v = run.in[2];
    p.position = run.input<int32_t>(3);
    p.o = run.output<float>(0);
    p.partial = run.scratch_at<float>(0);
    auto* const valid = run.scratch_at<int32_t>(partial);
    p.valid = valid;
    launch(run, check_positions, {1, kThreads}, p.position, p.batch, p.queries, p.keys, valid,
           run.report.in_words(kPositions));
    start_attention(run, p, dtype, p.queries * p.group <= 2 * kSide);
  };
  return kernel;
}

}  // namespace

AttentionProblem read_attention(const KernelRequest& request) {
  const Shape &q = request.inputs[0].shape, &k = request.inputs[1].shape;
  AttentionProblem p;
  p.batch = q[0];
  p.queries = q.rank() == 4 ? q[1] : q[0];
  p.keys = k[1];
  p.heads = q.back(1);
  p.kv_heads = k.back(1);
  p.group = p.heads / p.kv_heads;
  p.dim = q.back(0);
  p.scale = static_cast<float>(request.attributes.number("scale"));
  p.softcap = static_cast<float>(request.attributes.number("softcap", 0.0));
  const int64_t window = request.attributes.integer("window", 0);
  if (window > 0) p.window = window;
  return p;
}

size_t split_keys(AttentionProblem& p) {
  const int64_t parts = ceil_div(p.keys, kPartKeys);
  if (parts <= 1) return 0;
  const double bytes = static_cast<double>(parts * p.all_rows()) * static_cast<double>(p.dim + 2) * sizeof(float);
  if (bytes > static_cast<double>(kMostPartial)) return 0;
  p.parts = parts;
  return (static_cast<size_t>(bytes) + 255) / 256 * 256;
}

void start_attention(const Run& run, const AttentionProblem& problem, DType key_dtype, bool few) {
  if (key_dtype == DType::kBF16)
    start<Bf16>(run, problem, few);
  else
    start<float>(run, problem, few);
}

void register_attention(KernelTable& table) {
  table["attention"] = compile_attention;
  table["attention_cached"] = compile_attention_cached;
}

}  // namespace heddle::cuda
