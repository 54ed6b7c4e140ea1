// Grouped-query attention, forward and backward, that never holds a [t, s] matrix: blocks of queries meet blocks of
// keys and the softmax is kept running (Dao et al. 2022, "FlashAttention"; Milakov & Gimelshein 2018).
//
// A "row" is one (query, head) pair of the kv head at hand: row r is query r / group under head r % group. All heads
// of a group thus share one pass over their keys, and a decode step is the same code with a handful of rows.
// Scores are kept transposed, [key, row]: softmax statistics run down the columns without horizontal sums, and of the
// five products only q and g must be transposed, once per row block.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/attention_few-inl.h"

#ifndef HEDDLE_KERNELS_ATTENTION_ONCE
#define HEDDLE_KERNELS_ATTENTION_ONCE

namespace heddle {
namespace {

/// What one call of backward covers. kGroup makes all three gradients of a kv head with five products per block pair;
/// the other two split a kv head further, at the price of seven.
enum class BackwardPart { kGroup, kRowBlock, kKeyBlock };

size_t backward_scratch_floats(const AttentionProblem& p) {
  return 2 * (kRows * p.dim) + 2 * kKeys * kRows + 6 * kKeys * p.padded_dim;
}

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_ATTENTION_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

/// weights [key, row]: scores -> softmax weights p; slopes [key, row]: dp -> ds = p * (dp - delta), times the slope of
/// the cap, 1 - (score / cap)^2, where there is one.
template <bool kCapped>
HWY_NOINLINE void softmax_slopes(const RowBlock& rows, const KeyBlock& keys, const float* HWY_RESTRICT lse,
                                 const float* HWY_RESTRICT delta, float cap, float* HWY_RESTRICT weights,
                                 float* HWY_RESTRICT slopes) {
  const F d;
  const VF inverse_cap = hn::Set(d, 1.0F / cap);
  for (size_t column = 0; column < rows.width; column += lanes()) {
    const VF row_lse = hn::Load(d, lse + column);
    const VF row_delta = hn::Load(d, delta + column);
    for (size_t j = 0; j < keys.count && keys.start[j / kStep] <= column; j += kStep) {
      const bool masked = keys.masked(d, rows, j, column);
#pragma GCC unroll 4
      for (size_t i = 0; i < kStep; ++i) {
        float* w = weights + (j + i) * kRows + column;
        float* s = slopes + (j + i) * kRows + column;
        const VF x = hn::Load(d, w);
        VF p = exp2_nonpositive(d, hn::Sub(x, row_lse));
        if (masked) p = hn::IfThenElseZero(keys.mask(d, rows, j + i, column), p);
        hn::Store(p, d, w);
        VF slope = hn::Mul(p, hn::Sub(hn::Load(d, s), row_delta));
        if constexpr (kCapped) {
          const VF y = hn::Mul(x, inverse_cap);
          slope = hn::Mul(slope, hn::NegMulAdd(y, y, hn::Set(d, 1.0F)));
        }
        hn::Store(slope, d, s);
      }
    }
  }
}

/// gradient (rows of keys in memory) += weights [key, row] @ tile [row, dim], by way of a scratch tile.
HWY_NOINLINE void gather_rows_into(const AttentionProblem& p, const RowBlock& rows, const KeyBlock& keys,
                                   const float* weights, const float* tile, float* sums, float* gradient) {
  for (size_t j = 0; j < keys.count; j += kStep) {
    const size_t start = keys.start[j / kStep];
    strip<Layout::kRowMajor, Finish::kStore>(
        {rows.count - start, weights + j * kRows + start, kRows, tile + start * p.padded_dim, p.padded_dim,
         sums + j * p.padded_dim, p.padded_dim},
        0, p.padded_dim);
  }
  const F d;
  for (size_t j = 0; j < keys.count; ++j) {
    float* to = gradient + p.key_offset(rows.b, rows.kv_head, keys.first + j);
    const float* from = sums + j * p.padded_dim;
    size_t i = 0;
    for (; i + lanes() <= p.dim; i += lanes())
      hn::StoreU(hn::Add(hn::LoadU(d, to + i), hn::Load(d, from + i)), d, to + i);
    for (; i < p.dim; ++i) to[i] += from[i];
  }
}

struct BackwardTiles {
  float *q, *g, *q_transposed, *g_transposed, *key, *value, *weights, *slopes, *dq, *sums;

  BackwardTiles(const AttentionProblem& p, float* scratch) {
    const size_t tile = kKeys * p.padded_dim;
    weights = scratch;
    slopes = weights + kKeys * kRows;
    q_transposed = slopes + kKeys * kRows;
    g_transposed = q_transposed + kRows * p.dim;
    q = g_transposed + kRows * p.dim;
    g = q + tile;
    key = g + tile;
    value = key + tile;
    dq = value + tile;
    sums = dq + tile;
  }
};

/// All gradients that one row block takes part in, over keys [key_begin, key_end).
void backward_rows(const AttentionProblem& p, const RowBlock& rows, size_t key_begin, size_t key_end, bool want_dq,
                   bool want_dkv, const BackwardTiles& t) {
  const F d;
  HWY_ALIGN float lse[kRows] = {};
  HWY_ALIGN float delta[kRows] = {};
  load_rows(p, p.q, rows, t.q);
  load_rows(p, p.g, rows, t.g);
  transpose<kRows>(t.q, p.padded_dim, p.dim, rows.width, p.scale * kLog2E, t.q_transposed);
  // Scaling g here and delta below scales every slope, as both dq and dk need.
  transpose<kRows>(t.g, p.padded_dim, p.dim, rows.width, p.scale, t.g_transposed);
  for (size_t r = 0; r < rows.count; ++r) {
    lse[r] = p.saved_lse[p.statistic_offset(rows.b, rows.kv_head, rows.first + r)] * kLog2E;
    const float* o = p.saved_o + p.row_offset(rows.b, rows.kv_head, rows.first + r);
    const float* g = t.g + r * p.padded_dim;
    VF dot = hn::Zero(d);
    size_t i = 0;
    for (; i + lanes() <= p.dim; i += lanes()) dot = hn::MulAdd(hn::LoadU(d, o + i), hn::Load(d, g + i), dot);
    float total = hn::GetLane(hn::SumOfLanes(d, dot));
    for (; i < p.dim; ++i) total += o[i] * g[i];
    delta[r] = total * p.scale;
  }
  if (want_dq) zero(t.dq, rows.width * p.padded_dim);

  const float cap = p.softcap * kLog2E;
  const size_t end = HWY_MIN(key_end, rows.key_end());
  for (size_t first = HWY_MAX(key_begin, rows.key_begin()); first < end; first += kKeys) {
    const KeyBlock keys(p, rows, first);
    if (!keys.visible) continue;
    load_keys(p, p.k, rows, keys, t.key);
    load_keys(p, p.v, rows, keys, t.value);
    score(p, rows, keys, t.key, t.q_transposed, t.weights);
    score(p, rows, keys, t.value, t.g_transposed, t.slopes);
    if (cap != 0.0F) {
      cap_scores<kRows>(rows, keys, cap, t.weights);
      softmax_slopes<true>(rows, keys, lse, delta, cap, t.weights, t.slopes);
    } else {
      softmax_slopes<false>(rows, keys, lse, delta, 1.0F, t.weights, t.slopes);
    }
    if (want_dkv && p.dv != nullptr) gather_rows_into(p, rows, keys, t.weights, t.g, t.sums, p.dv);
    if (want_dkv && p.dk != nullptr) gather_rows_into(p, rows, keys, t.slopes, t.q, t.sums, p.dk);
    if (want_dq) gather_keys<Finish::kAdd>(p, rows, keys, t.slopes, t.key, t.dq, nullptr);
  }

  if (!want_dq) return;
  for (size_t r = 0; r < rows.count; ++r)
    std::copy_n(t.dq + r * p.padded_dim, p.dim, p.dq + p.row_offset(rows.b, rows.kv_head, rows.first + r));
}

void zero_keys(const AttentionProblem& p, size_t b, size_t kv_head, size_t begin, size_t end) {
  for (float* gradient : {p.dk, p.dv}) {
    if (gradient == nullptr) continue;
    for (size_t key = begin; key < end; ++key) std::fill_n(gradient + p.key_offset(b, kv_head, key), p.dim, 0.0F);
  }
}

/// One tile of the backward pass; `block` is a row block or a key block as `part` says.
void attention_backward(const AttentionProblem& p, BackwardPart part, size_t b, size_t kv_head, size_t block,
                        float* scratch) {
  const BackwardTiles tiles(p, scratch);
  if (part == BackwardPart::kRowBlock) {
    backward_rows(p, RowBlock(p, b, kv_head, block), 0, p.keys, true, false, tiles);
    return;
  }
  const bool whole = part == BackwardPart::kGroup;
  const size_t begin = whole ? 0 : block * kKeys;
  const size_t end = whole ? p.keys : HWY_MIN(p.keys, begin + kKeys);
  zero_keys(p, b, kv_head, begin, end);
  for (size_t row_block = 0; row_block < p.row_blocks(b); ++row_block) {
    const RowBlock rows(p, b, kv_head, row_block);
    if (!whole && (rows.key_end() <= begin || rows.key_begin() >= end)) continue;
    backward_rows(p, rows, begin, end, whole && p.dq != nullptr, true, tiles);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(attention_forward);
HWY_EXPORT(attention_backward);

// From this many kv heads (over the whole batch) on, the backward pass gives each one tile: fewer would leave cores
// idle for longer than the two extra products of the finer split take.
constexpr size_t kGroupTiles = 4;

/// Checks q, k and v (the first three inputs) and reads the dimensions off them.
AttentionProblem read_problem(const KernelRequest& request, DType key_dtype) {
  const Operand& q = request.inputs[0];
  const Operand& k = request.inputs[1];
  request.check(q.present && q.dtype == DType::kF32 && q.shape.rank() == 4, "q f32 [b, t, h, d]", q.shape.str());
  request.check(k.present && k.dtype == key_dtype && k.shape.rank() == 4, "k [b, s, hk, d]", k.shape.str());
  check_operand(request, request.inputs[2], "v", key_dtype, k.shape);
  request.check(k.shape[0] == q.shape[0], "k with the batch dimension of q " + q.shape.str(), k.shape.str());
  // Key indices are compared as 32-bit integers.
  constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max() / 2;
  request.check(q.shape[1] <= kMaxLength && k.shape[1] <= kMaxLength, "sequences below 2^30",
                q.shape.str() + " and " + k.shape.str());

  AttentionProblem p;
  p.batch = static_cast<size_t>(q.shape[0]);
  p.queries = static_cast<size_t>(q.shape[1]);
  p.keys = static_cast<size_t>(k.shape[1]);
  p.bf16_keys = key_dtype == DType::kBF16;
  read_heads_and_scores(request, p);
  return p;
}

/// The part that `attention` and `attention_vjp` share: causal or not, segments (input 3) or not.
AttentionProblem read_training_problem(const KernelRequest& request) {
  AttentionProblem p = read_problem(request, DType::kF32);
  const int64_t causal = request.attributes.integer("causal", 0);
  request.check(causal == 0 || causal == 1, "causal 0 or 1", std::to_string(causal));
  p.visibility = causal == 1 ? Visibility::kCausal : Visibility::kAll;
  request.check(causal == 1 || request.attributes.integer("window", 0) == 0, "a window under a causal mask only",
                "a window without one");
  const bool square = p.queries == p.keys;
  request.check(causal == 0 || square, "as many queries as keys under a causal mask", request.inputs[1].shape.str());
  const Operand& segments = request.inputs[3];
  request.check(!segments.present || square, "as many queries as keys with segments", request.inputs[1].shape.str());
  check_optional(request, segments, "segments", DType::kI32,
                 Shape{request.inputs[0].shape[0], request.inputs[1].shape[1]});
  return p;
}

Shape statistic_shape(const KernelRequest& request) {
  const Shape& q = request.inputs[0].shape;
  return Shape{q[0], q[2], q[1]};
}

void run_forward(const AttentionProblem& p, const RunArguments& arguments) {
  const size_t blocks = p.row_blocks(0);
  arguments.pool.run(p.batch * p.kv_heads * blocks, [&](size_t tile, size_t thread) {
    // Under a causal mask later rows cost more: starting with them leaves the small tiles for the end.
    const size_t block = blocks - 1 - tile / (p.batch * p.kv_heads);
    const size_t head = tile % (p.batch * p.kv_heads);
    HWY_DYNAMIC_DISPATCH(attention_forward)
    (p, head / p.kv_heads, head % p.kv_heads, head % p.kv_heads + 1, block, arguments.thread_scratch<float>(thread));
  });
}

CompiledKernel compile_attention(const KernelRequest& request) {
  request.expect_counts(4, 2);
  AttentionProblem p = read_training_problem(request);
  check_operand(request, request.outputs[0], "o", DType::kF32, request.inputs[0].shape);
  check_optional(request, request.outputs[1], "lse", DType::kF32, statistic_shape(request));
  const bool empty = request.inputs[0].shape.count() == 0;

  CompiledKernel kernel;
  kernel.scratch_per_thread = forward_scratch_floats(p) * sizeof(float);
  kernel.run = [p, empty](const RunArguments& arguments) {
    if (empty) return;
    AttentionProblem bound = p;
    bound.q = arguments.input<float>(0);
    bound.k = arguments.in[1];
    bound.v = arguments.in[2];
    bound.segments = arguments.input<int32_t>(3);
    bound.o = arguments.output<float>(0);
    bound.lse = arguments.output<float>(1);
    run_forward(bound, arguments);
  };
  return kernel;
}

CompiledKernel compile_attention_cached(const KernelRequest& request) {
  request.expect_counts(4, 1);
  const DType cache = request.inputs[1].dtype;
  request.check(cache == DType::kF32 || cache == DType::kBF16, "a cache of f32 or bf16", dtype_name(cache));
  AttentionProblem p = read_problem(request, cache);
  p.visibility = Visibility::kFromPosition;
  check_operand(request, request.inputs[3], "position", DType::kI32, Shape{request.inputs[0].shape[0]});
  check_operand(request, request.outputs[0], "o", DType::kF32, request.inputs[0].shape);
  const bool empty = request.inputs[0].shape.count() == 0;

  CompiledKernel kernel;
  kernel.scratch_per_thread = forward_scratch_floats(p) * sizeof(float);
  kernel.run = [p, empty](const RunArguments& arguments) {
    if (empty) return;
    AttentionProblem bound = p;
    bound.q = arguments.input<float>(0);
    bound.k = arguments.in[1];
    bound.v = arguments.in[2];
    bound.position = arguments.input<int32_t>(3);
    bound.o = arguments.output<float>(0);
    for (size_t b = 0; b < p.batch; ++b) {
      const int64_t end = static_cast<int64_t>(bound.position[b]) + static_cast<int64_t>(p.queries);
      require(bound.position[b] >= 0 && end <= static_cast<int64_t>(p.keys), ErrorCode::kArgument, "attention_cached",
              "positions within the cache", std::to_string(bound.position[b]));
    }
    run_forward(bound, arguments);
  };
  return kernel;
}

void run_backward(const AttentionProblem& p, BackwardPart part, size_t blocks, const RunArguments& arguments) {
  const size_t heads = p.batch * p.kv_heads;
  arguments.pool.run(heads * blocks, [&](size_t tile, size_t thread) {
    // The dearest tiles first: under a causal mask the last rows and the first keys.
    const size_t rank = tile / heads;
    const size_t block = part == BackwardPart::kRowBlock ? blocks - 1 - rank : rank;
    HWY_DYNAMIC_DISPATCH(attention_backward)
    (p, part, tile % heads / p.kv_heads, tile % p.kv_heads, block, arguments.thread_scratch<float>(thread));
  });
}

CompiledKernel compile_attention_vjp(const KernelRequest& request) {
  request.expect_counts(7, 3);
  AttentionProblem p = read_training_problem(request);
  const Shape& q = request.inputs[0].shape;
  const Shape& k = request.inputs[1].shape;
  check_operand(request, request.inputs[4], "o", DType::kF32, q);
  check_operand(request, request.inputs[5], "lse", DType::kF32, statistic_shape(request));
  check_operand(request, request.inputs[6], "g", DType::kF32, q);
  check_optional(request, request.outputs[0], "dq", DType::kF32, q);
  check_optional(request, request.outputs[1], "dk", DType::kF32, k);
  check_optional(request, request.outputs[2], "dv", DType::kF32, k);
  const bool empty = q.count() == 0 && k.count() == 0;

  CompiledKernel kernel;
  kernel.scratch_per_thread = backward_scratch_floats(p) * sizeof(float);
  kernel.run = [p, empty](const RunArguments& arguments) {
    if (empty) return;
    AttentionProblem bound = p;
    bound.q = arguments.input<float>(0);
    bound.k = arguments.in[1];
    bound.v = arguments.in[2];
    bound.segments = arguments.input<int32_t>(3);
    bound.saved_o = arguments.input<float>(4);
    bound.saved_lse = arguments.input<float>(5);
    bound.g = arguments.input<float>(6);
    bound.dq = arguments.output<float>(0);
    bound.dk = arguments.output<float>(1);
    bound.dv = arguments.output<float>(2);
    const bool want_dkv = bound.dk != nullptr || bound.dv != nullptr;
    if (want_dkv && p.batch * p.kv_heads >= kGroupTiles) {
      run_backward(bound, BackwardPart::kGroup, 1, arguments);
      return;
    }
    if (bound.dq != nullptr) run_backward(bound, BackwardPart::kRowBlock, p.row_blocks(0), arguments);
    if (want_dkv) run_backward(bound, BackwardPart::kKeyBlock, p.key_blocks(), arguments);
  };
  return kernel;
}

}  // namespace

void read_heads_and_scores(const KernelRequest& request, AttentionProblem& p) {
  const Shape& q = request.inputs[0].shape;
  const Shape& k = request.inputs[1].shape;
  request.check(q.back(0) == k.back(0), "k with the head dimension of q " + q.str(), k.str());
  request.check(q.back(1) >= 1 && k.back(1) >= 1 && q.back(1) % k.back(1) == 0,
                "a number of heads divisible by that of kv heads", q.str() + " and " + k.str());
  request.check(q.back(0) >= 1 && q.back(0) <= static_cast<int64_t>(kMaxDim),
                "a head dimension of 1 to " + std::to_string(kMaxDim), std::to_string(q.back(0)));
  p.heads = static_cast<size_t>(q.back(1));
  p.kv_heads = static_cast<size_t>(k.back(1));
  p.group = p.heads / p.kv_heads;
  p.dim = static_cast<size_t>(q.back(0));
  p.padded_dim = round_up(p.dim, kPad);
  const double scale = request.attributes.number("scale");
  request.check(std::isfinite(scale), "a finite scale", std::to_string(scale));
  p.scale = static_cast<float>(scale);
  const double softcap = request.attributes.number("softcap", 0.0);
  request.check(std::isfinite(softcap) && softcap >= 0, "a softcap that is positive, or 0 for none",
                std::to_string(softcap));
  p.softcap = static_cast<float>(softcap);
  const int64_t window = request.attributes.integer("window", 0);
  request.check(window >= 0, "a window that is positive, or 0 for none", std::to_string(window));
  if (window > 0) p.window = static_cast<size_t>(window);
}

void register_attention(KernelTable& table) {
  table["attention"] = compile_attention;
  table["attention_vjp"] = compile_attention_vjp;
  table["attention_cached"] = compile_attention_cached;
}

}  // namespace heddle

#endif  // HWY_ONCE
