// Grouped-query attention, forward and backward, that never holds a [t, s] matrix: blocks of queries meet blocks of
// keys and the softmax is kept running (Dao et al. 2022, "FlashAttention"; Milakov & Gimelshein 2018).
//
// A "row" is one (query, head) pair of the kv head at hand: row r is query r / group under head r % group. All heads
// of a group thus share one pass over their keys, and a decode step is the same code with a handful of rows.
// Scores are kept transposed, [key, row]: softmax statistics run down the columns without horizontal sums, and of the
// five products only q and g must be transposed, once per row block.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "kernels/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_KERNELS_ATTENTION_ONCE
#define HEDDLE_KERNELS_ATTENTION_ONCE

namespace heddle {
namespace {

constexpr size_t kRows = 64;
constexpr size_t kKeys = 64;
// Output rows of one register tile; divides kRows and kKeys.
constexpr size_t kStep = 4;
// Row counts and head dimensions are padded to this, a multiple of every vector length in use.
constexpr size_t kPad = 16;
constexpr size_t kMaxDim = 1024;

constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

enum class Visibility { kAll, kCausal, kFromPosition };

struct AttentionProblem {
  size_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, group = 0, dim = 0, padded_dim = 0;
  Visibility visibility = Visibility::kAll;
  // A row sees at most this many keys, the latest ones.
  size_t window = std::numeric_limits<size_t>::max();
  float scale = 1.0F;
  // Scores are bent to softcap * tanh(score / softcap); 0 leaves them as they are.
  float softcap = 0.0F;
  bool bf16_keys = false;

  const float* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const int32_t* segments = nullptr;
  const int32_t* position = nullptr;
  float* o = nullptr;
  float* lse = nullptr;
  // Backward only: the forward pass's results, the cotangent of o, and the gradients wanted.
  const float* saved_o = nullptr;
  const float* saved_lse = nullptr;
  const float* g = nullptr;
  float* dq = nullptr;
  float* dk = nullptr;
  float* dv = nullptr;

  size_t rows() const { return queries * group; }
  size_t row_blocks() const { return (rows() + kRows - 1) / kRows; }
  size_t key_blocks() const { return (keys + kKeys - 1) / kKeys; }
  size_t row_offset(size_t b, size_t kv_head, size_t row) const {
    return ((b * queries + row / group) * heads + kv_head * group + row % group) * dim;
  }
  size_t key_offset(size_t b, size_t kv_head, size_t key) const {
    return ((b * keys + key) * kv_heads + kv_head) * dim;
  }
  size_t statistic_offset(size_t b, size_t kv_head, size_t row) const {
    return (b * heads + kv_head * group + row % group) * queries + row / group;
  }
};

/// What one call of backward covers. kGroup makes all three gradients of a kv head with five products per block pair;
/// the other two split a kv head further, at the price of seven.
enum class BackwardPart { kGroup, kRowBlock, kKeyBlock };

size_t forward_scratch_floats(const AttentionProblem& p) {
  return (kRows * p.dim) + kKeys * kRows + 3 * kKeys * p.padded_dim;
}

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

using F = hn::CappedTag<float, kPad>;
using I = hn::RebindToSigned<F>;
using VF = hn::Vec<F>;

// Vectors side by side in a register tile: 16 accumulators where there are 32 registers, else 8.
constexpr size_t kTileVectors = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM ? 4 : 2;

// Masked scores are -infinity; the running maximum starts at a finite floor so that their difference is never NaN.
constexpr float kFloor = -1e30F;
constexpr float kLog2E = 1.44269504088896341F;
constexpr float kLn2 = 0.693147180559945309F;

size_t lanes() { return hn::Lanes(F()); }

/// 2^x for x <= 0, about 1 ulp; below 2^-126 it is 0. Arguments of Max in this order keep NaN on x86.
HWY_INLINE VF exp2_nonpositive(VF x) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  x = hn::Max(hn::Set(d, -127.0F), x);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it, with the exponent's bias, in the low bits.
  const VF magic = hn::Set(d, 12582912.0F + 127.0F);
  const VF shifted = hn::Add(x, magic);
  const VF f = hn::Sub(x, hn::Sub(shifted, magic));
  const VF power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  // Interpolates 2^f at the Chebyshev points of [-1/2, 1/2]: relative error 2e-8 before rounding.
  VF y = hn::Set(d, 0.000154614446986F);
  y = hn::MulAdd(y, f, hn::Set(d, 0.00134004281776F));
  y = hn::MulAdd(y, f, hn::Set(d, 0.00961805667852F));
  y = hn::MulAdd(y, f, hn::Set(d, 0.0555032722667F));
  y = hn::MulAdd(y, f, hn::Set(d, 0.240226509223F));
  y = hn::MulAdd(y, f, hn::Set(d, 0.693147206703F));
  y = hn::MulAdd(y, f, hn::Set(d, 1.0F));
  return hn::Mul(y, power);
}

/// How a left operand of a product lies in memory: element (row, k) at row * stride + k, or at k * stride + row.
enum class Layout { kRowMajor, kColumnMajor };
/// out = product, out += product, out = out * factor[row] + product.
enum class Finish { kStore, kAdd, kScaleAdd };

struct Product {
  size_t depth;
  const float* left;
  size_t left_stride;
  const float* right;
  size_t right_stride;
  float* out;
  size_t out_stride;
  const float* factor = nullptr;
};

/// kStep rows by kVectors vectors of a product, held in registers.
template <Layout kLayout, Finish kFinish, size_t kVectors>
HWY_INLINE void register_tile(const Product& p, size_t column) {
  const F d;
  const size_t n = lanes();
  VF sum[kStep][kVectors];
#pragma GCC unroll 8
  for (size_t r = 0; r < kStep; ++r)
#pragma GCC unroll 8
    for (size_t c = 0; c < kVectors; ++c) sum[r][c] = hn::Zero(d);

  const float* right = p.right + column;
  for (size_t k = 0; k < p.depth; ++k, right += p.right_stride) {
    VF b[kVectors];
#pragma GCC unroll 8
    for (size_t c = 0; c < kVectors; ++c) b[c] = hn::LoadU(d, right + c * n);
#pragma GCC unroll 8
    for (size_t r = 0; r < kStep; ++r) {
      const size_t at = kLayout == Layout::kRowMajor ? r * p.left_stride + k : k * p.left_stride + r;
      const VF a = hn::Set(d, p.left[at]);
#pragma GCC unroll 8
      for (size_t c = 0; c < kVectors; ++c) sum[r][c] = hn::MulAdd(a, b[c], sum[r][c]);
    }
  }

#pragma GCC unroll 8
  for (size_t r = 0; r < kStep; ++r) {
    float* out = p.out + r * p.out_stride + column;
#pragma GCC unroll 8
    for (size_t c = 0; c < kVectors; ++c) {
      VF y = sum[r][c];
      if constexpr (kFinish == Finish::kAdd) y = hn::Add(y, hn::Load(d, out + c * n));
      if constexpr (kFinish == Finish::kScaleAdd) y = hn::MulAdd(hn::Set(d, p.factor[r]), hn::Load(d, out + c * n), y);
      hn::Store(y, d, out + c * n);
    }
  }
}

/// kStep rows of a product over columns [begin, end), both multiples of the vector length.
template <Layout kLayout, Finish kFinish>
HWY_NOINLINE void strip(const Product& p, size_t begin, size_t end) {
  const size_t n = lanes();
  size_t column = begin;
  for (; column + kTileVectors * n <= end; column += kTileVectors * n)
    register_tile<kLayout, kFinish, kTileVectors>(p, column);
  if constexpr (kTileVectors == 4) {
    if (column + 2 * n <= end) {
      register_tile<kLayout, kFinish, 2>(p, column);
      column += 2 * n;
    }
  }
  if (column < end) register_tile<kLayout, kFinish, 1>(p, column);
}

/// tile[row][0 .. padded) = source row, zero beyond dim.
HWY_INLINE void copy_row(const float* HWY_RESTRICT source, size_t dim, size_t padded, float* HWY_RESTRICT tile) {
  const F d;
  const size_t n = lanes();
  size_t i = 0;
  for (; i + n <= dim; i += n) hn::Store(hn::LoadU(d, source + i), d, tile + i);
  for (; i < dim; ++i) tile[i] = source[i];
  for (; i < padded; ++i) tile[i] = 0.0F;
}

HWY_INLINE void copy_row(const uint16_t* HWY_RESTRICT source, size_t dim, size_t padded, float* HWY_RESTRICT tile) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  const hn::Rebind<uint16_t, F> dh;
  const size_t n = lanes();
  size_t i = 0;
  for (; i + n <= dim; i += n) {
    const auto bits = hn::PromoteTo(du, hn::LoadU(dh, source + i));
    hn::Store(hn::BitCast(d, hn::ShiftLeft<16>(bits)), d, tile + i);
  }
  for (; i < dim; ++i) tile[i] = bf16_to_f32(source[i]);
  for (; i < padded; ++i) tile[i] = 0.0F;
}

void zero(float* tile, size_t count) {
  for (size_t i = 0; i < count; i += lanes()) hn::Store(hn::Zero(F()), F(), tile + i);
}

/// Rows [0, width) of tile [.., padded] -> transposed [dim, kRows], times factor. width is a multiple of 4.
HWY_NOINLINE void transpose(const float* HWY_RESTRICT tile, size_t padded, size_t dim, size_t width, float factor,
                            float* HWY_RESTRICT transposed) {
  for (size_t r = 0; r < width; r += 4) {
    const float* rows = tile + r * padded;
    size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::FixedTag<float, 4> d4;
    const auto scale = hn::Set(d4, factor);
    for (; i + 4 <= dim; i += 4) {
      const auto a = hn::Mul(scale, hn::LoadU(d4, rows + i));
      const auto b = hn::Mul(scale, hn::LoadU(d4, rows + padded + i));
      const auto c = hn::Mul(scale, hn::LoadU(d4, rows + 2 * padded + i));
      const auto e = hn::Mul(scale, hn::LoadU(d4, rows + 3 * padded + i));
      const auto ac_low = hn::InterleaveLower(d4, a, c);
      const auto ac_high = hn::InterleaveUpper(d4, a, c);
      const auto be_low = hn::InterleaveLower(d4, b, e);
      const auto be_high = hn::InterleaveUpper(d4, b, e);
      float* to = transposed + i * kRows + r;
      hn::StoreU(hn::InterleaveLower(d4, ac_low, be_low), d4, to);
      hn::StoreU(hn::InterleaveUpper(d4, ac_low, be_low), d4, to + kRows);
      hn::StoreU(hn::InterleaveLower(d4, ac_high, be_high), d4, to + 2 * kRows);
      hn::StoreU(hn::InterleaveUpper(d4, ac_high, be_high), d4, to + 3 * kRows);
    }
#endif
    for (; i < dim; ++i)
      for (size_t j = 0; j < 4; ++j) transposed[i * kRows + r + j] = rows[j * padded + i] * factor;
  }
}

/// One block of rows and which keys each of them may see.
struct RowBlock {
  size_t b, kv_head, first, count;
  // count rounded up to kPad; the rows beyond count are computed and dropped.
  size_t width;
  // Row r sees keys below limit[r], which never falls as r rises.
  HWY_ALIGN int32_t limit[kRows] = {};
  // ... and from floor[r] on, which never falls either.
  HWY_ALIGN int32_t floor[kRows] = {};
  HWY_ALIGN int32_t segment[kRows] = {};
  int32_t segment_low, segment_high;
  // The last key that query 0 sees, where queries see different keys.
  size_t last_of_first;

  RowBlock(const AttentionProblem& p, size_t b_, size_t kv_head_, size_t block)
      : b(b_),
        kv_head(kv_head_),
        first(block * kRows),
        count(HWY_MIN(kRows, p.rows() - first)),
        width(round_up(count, kPad)) {
    last_of_first = p.visibility == Visibility::kFromPosition ? static_cast<size_t>(p.position[b]) : 0;
    segment_low = std::numeric_limits<int32_t>::max();
    segment_high = std::numeric_limits<int32_t>::min();
    for (size_t r = 0; r < width; ++r) {
      const size_t query = (first + HWY_MIN(r, count - 1)) / p.group;
      const size_t end = p.visibility == Visibility::kAll ? p.keys : last_of_first + query + 1;
      limit[r] = static_cast<int32_t>(end);
      floor[r] = static_cast<int32_t>(end - HWY_MIN(end, p.window));
      if (p.segments == nullptr) continue;
      segment[r] = p.segments[b * p.keys + query];
      segment_low = HWY_MIN(segment_low, segment[r]);
      segment_high = HWY_MAX(segment_high, segment[r]);
    }
  }

  /// Keys [0, key_end) are visible to the last row.
  size_t key_end() const { return static_cast<size_t>(limit[count - 1]); }
  /// The block of keys in which the first row starts to see.
  size_t key_begin() const { return static_cast<size_t>(floor[0]) / kKeys * kKeys; }
};

/// One block of keys as a row block sees it.
struct KeyBlock {
  size_t first, count;
  bool visible = true;
  bool check_segments = false;
  const int32_t* segment = nullptr;
  // Per kStep keys: rows before this one see none of them. A multiple of the register tile and the vector.
  size_t start[kKeys / kStep] = {};

  KeyBlock(const AttentionProblem& p, const RowBlock& rows, size_t first_)
      : first(first_), count(HWY_MIN(kKeys, rows.key_end() - first_)) {
    const size_t granule = HWY_MAX(kStep, lanes());
    for (size_t j = 0; j < count; j += kStep) {
      const size_t key = first + j;
      size_t row = 0;
      if (p.visibility != Visibility::kAll && key > rows.last_of_first) row = (key - rows.last_of_first) * p.group;
      start[j / kStep] = row > rows.first ? (row - rows.first) / granule * granule : 0;
    }
    if (p.segments == nullptr) return;
    segment = p.segments + rows.b * p.keys + first;
    int32_t low = segment[0];
    int32_t high = segment[0];
    for (size_t j = 1; j < count; ++j) {
      low = HWY_MIN(low, segment[j]);
      high = HWY_MAX(high, segment[j]);
    }
    visible = low <= rows.segment_high && rows.segment_low <= high;
    check_segments = low != high || rows.segment_low != rows.segment_high;
  }

  /// Whether some lane of the rows from `column` on may not see some of the keys j .. j + kStep.
  bool masked(const RowBlock& rows, size_t j, size_t column) const {
    return check_segments || static_cast<size_t>(rows.limit[column]) < first + j + kStep ||
           static_cast<size_t>(rows.floor[column + lanes() - 1]) > first + j;
  }

  /// Lanes of rows column.. that may see key j.
  HWY_INLINE auto mask(const RowBlock& rows, size_t j, size_t column) const {
    const I di;
    const auto key = hn::Set(di, static_cast<int32_t>(first + j));
    auto seen =
        hn::AndNot(hn::Gt(hn::Load(di, rows.floor + column), key), hn::Gt(hn::Load(di, rows.limit + column), key));
    // Keys beyond count are beyond every limit; their segment must not be read.
    if (check_segments && j < count)
      seen = hn::And(seen, hn::Eq(hn::Load(di, rows.segment + column), hn::Set(di, segment[j])));
    return hn::RebindMask(F(), seen);
  }

  /// Keys of this block that row `row` sees, segments aside.
  size_t depth(const RowBlock& rows, size_t row) const {
    const auto limit = static_cast<size_t>(rows.limit[row]);
    return limit > first ? HWY_MIN(limit - first, count) : 0;
  }
};

/// Keys or values [first, first + count) of a kv head -> tile [kKeys, padded_dim], zero up to a multiple of kStep.
HWY_NOINLINE void load_keys(const AttentionProblem& p, const void* source, const RowBlock& rows, const KeyBlock& keys,
                            float* tile) {
  const size_t stride = p.kv_heads * p.dim;
  const size_t offset = p.key_offset(rows.b, rows.kv_head, keys.first);
  for (size_t j = 0; j < keys.count; ++j) {
    float* to = tile + j * p.padded_dim;
    if (p.bf16_keys)
      copy_row(static_cast<const uint16_t*>(source) + offset + j * stride, p.dim, p.padded_dim, to);
    else
      copy_row(static_cast<const float*>(source) + offset + j * stride, p.dim, p.padded_dim, to);
  }
  zero(tile + keys.count * p.padded_dim, (round_up(keys.count, kStep) - keys.count) * p.padded_dim);
}

HWY_NOINLINE void load_rows(const AttentionProblem& p, const float* source, const RowBlock& rows, float* tile) {
  for (size_t r = 0; r < rows.count; ++r)
    copy_row(source + p.row_offset(rows.b, rows.kv_head, rows.first + r), p.dim, p.padded_dim, tile + r * p.padded_dim);
  zero(tile + rows.count * p.padded_dim, (rows.width - rows.count) * p.padded_dim);
}

/// out [key, row] = keys [key, dim] @ transposed [dim, row], where the row sees the key.
HWY_INLINE void score(const AttentionProblem& p, const RowBlock& rows, const KeyBlock& keys, const float* tile,
                      const float* transposed, float* out) {
  for (size_t j = 0; j < keys.count; j += kStep)
    strip<Layout::kRowMajor, Finish::kStore>(
        {p.dim, tile + j * p.padded_dim, p.padded_dim, transposed, kRows, out + j * kRows, kRows},
        keys.start[j / kStep], rows.width);
}

/// Scores x, base 2 logarithms as the cap is -> cap * tanh(x / cap).
HWY_NOINLINE void cap_scores(const RowBlock& rows, const KeyBlock& keys, float cap, float* HWY_RESTRICT scores) {
  const F d;
  const VF one = hn::Set(d, 1.0F);
  const VF steepness = hn::Set(d, -2.0F * kLog2E / cap);
  for (size_t j = 0; j < round_up(keys.count, kStep); ++j) {
    for (size_t column = keys.start[j / kStep]; column < rows.width; column += lanes()) {
      float* s = scores + j * kRows + column;
      const VF x = hn::Load(d, s);
      const VF e = exp2_nonpositive(hn::Mul(hn::Abs(x), steepness));
      const VF y = hn::Div(hn::Sub(one, e), hn::Add(one, e));
      hn::Store(hn::CopySign(hn::Mul(y, hn::Set(d, cap)), x), d, s);
    }
  }
}

/// Turns scores (base 2 logarithms) into weights relative to the running maximum, and keeps maximum, sum and the
/// factor that earlier sums must shrink by.
HWY_NOINLINE void softmax_step(const RowBlock& rows, const KeyBlock& keys, float* HWY_RESTRICT scores,
                               float* HWY_RESTRICT maximum, float* HWY_RESTRICT sum, float* HWY_RESTRICT factor) {
  const F d;
  const VF hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (size_t column = 0; column < rows.width; column += lanes()) {
    const VF old = hn::Load(d, maximum + column);
    VF top = old;
    size_t end = 0;
    for (; end < keys.count && keys.start[end / kStep] <= column; end += kStep) {
      float* s = scores + end * kRows + column;
      VF x[kStep];
#pragma GCC unroll 4
      for (size_t i = 0; i < kStep; ++i) x[i] = hn::Load(d, s + i * kRows);
      if (keys.masked(rows, end, column)) {
#pragma GCC unroll 4
        for (size_t i = 0; i < kStep; ++i) {
          x[i] = hn::IfThenElse(keys.mask(rows, end + i, column), x[i], hidden);
          hn::Store(x[i], d, s + i * kRows);
        }
      }
      top = hn::Max(top, hn::Max(hn::Max(x[0], x[1]), hn::Max(x[2], x[3])));
    }
    const VF shrink = exp2_nonpositive(hn::Sub(old, top));
    VF total0 = hn::Mul(hn::Load(d, sum + column), shrink);
    VF total1 = hn::Zero(d);
    for (size_t j = 0; j < end; j += kStep) {
      float* s = scores + j * kRows + column;
      VF w[kStep];
#pragma GCC unroll 4
      for (size_t i = 0; i < kStep; ++i) {
        w[i] = exp2_nonpositive(hn::Sub(hn::Load(d, s + i * kRows), top));
        hn::Store(w[i], d, s + i * kRows);
      }
      total0 = hn::Add(total0, hn::Add(w[0], w[1]));
      total1 = hn::Add(total1, hn::Add(w[2], w[3]));
    }
    hn::Store(top, d, maximum + column);
    hn::Store(hn::Add(total0, total1), d, sum + column);
    hn::Store(shrink, d, factor + column);
  }
}

/// out [row, dim] = out * factor + weights^T [row, key] @ tile [key, dim]; weights lie as [key, row].
template <Finish kFinish>
HWY_INLINE void gather_keys(const AttentionProblem& p, const RowBlock& rows, const KeyBlock& keys, const float* weights,
                            const float* tile, float* out, const float* factor) {
  for (size_t r = 0; r < rows.count; r += kStep)
    strip<Layout::kColumnMajor, kFinish>({keys.depth(rows, r + kStep - 1), weights + r, kRows, tile, p.padded_dim,
                                          out + r * p.padded_dim, p.padded_dim, factor + r},
                                         0, p.padded_dim);
}

/// One (batch, kv head, row block) of the forward pass.
void attention_forward(const AttentionProblem& p, size_t b, size_t kv_head, size_t block, float* scratch) {
  const F d;
  const RowBlock rows(p, b, kv_head, block);
  float* q_transposed = scratch;
  float* scores = q_transposed + kRows * p.dim;
  float* key_tile = scores + kKeys * kRows;
  float* value_tile = key_tile + kKeys * p.padded_dim;
  float* out = value_tile + kKeys * p.padded_dim;
  HWY_ALIGN float maximum[kRows];
  HWY_ALIGN float sum[kRows];
  HWY_ALIGN float factor[kRows];

  load_rows(p, p.q, rows, out);
  transpose(out, p.padded_dim, p.dim, rows.width, p.scale * kLog2E, q_transposed);
  zero(out, rows.width * p.padded_dim);
  zero(sum, kRows);
  for (size_t r = 0; r < kRows; r += lanes()) hn::Store(hn::Set(d, kFloor), d, maximum + r);

  for (size_t first = rows.key_begin(); first < rows.key_end(); first += kKeys) {
    const KeyBlock keys(p, rows, first);
    if (!keys.visible) continue;
    load_keys(p, p.k, rows, keys, key_tile);
    load_keys(p, p.v, rows, keys, value_tile);
    score(p, rows, keys, key_tile, q_transposed, scores);
    if (p.softcap != 0.0F) cap_scores(rows, keys, p.softcap * kLog2E, scores);
    softmax_step(rows, keys, scores, maximum, sum, factor);
    gather_keys<Finish::kScaleAdd>(p, rows, keys, scores, value_tile, out, factor);
  }

  for (size_t r = 0; r < rows.count; ++r) {
    // A row that saw no key (only possible when there are none) is 0, as an empty sum is.
    const VF norm = hn::Set(d, sum[r] == 0.0F ? 0.0F : 1.0F / sum[r]);
    float* from = out + r * p.padded_dim;
    for (size_t i = 0; i < p.padded_dim; i += lanes()) hn::Store(hn::Mul(hn::Load(d, from + i), norm), d, from + i);
    std::copy_n(from, p.dim, p.o + p.row_offset(b, kv_head, rows.first + r));
    if (p.lse != nullptr) p.lse[p.statistic_offset(b, kv_head, rows.first + r)] = maximum[r] * kLn2 + std::log(sum[r]);
  }
}

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
      const bool masked = keys.masked(rows, j, column);
#pragma GCC unroll 4
      for (size_t i = 0; i < kStep; ++i) {
        float* w = weights + (j + i) * kRows + column;
        float* s = slopes + (j + i) * kRows + column;
        const VF x = hn::Load(d, w);
        VF p = exp2_nonpositive(hn::Sub(x, row_lse));
        if (masked) p = hn::IfThenElseZero(keys.mask(rows, j + i, column), p);
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
  transpose(t.q, p.padded_dim, p.dim, rows.width, p.scale * kLog2E, t.q_transposed);
  // Scaling g here and delta below scales every slope, as both dq and dk need.
  transpose(t.g, p.padded_dim, p.dim, rows.width, p.scale, t.g_transposed);
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
      cap_scores(rows, keys, cap, t.weights);
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
  for (size_t row_block = 0; row_block < p.row_blocks(); ++row_block) {
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

void check_operand(const KernelRequest& request, const Operand& operand, const char* name, const Shape& shape,
                   DType dtype) {
  request.check(operand.present && operand.shape == shape && operand.dtype == dtype,
                std::string(name) + " " + dtype_name(dtype) + " " + shape.str(),
                operand.present ? std::string(dtype_name(operand.dtype)) + " " + operand.shape.str() : "nothing");
}

void check_optional(const KernelRequest& request, const Operand& operand, const char* name, const Shape& shape,
                    DType dtype) {
  if (operand.present) check_operand(request, operand, name, shape, dtype);
}

/// Checks q, k and v (the first three inputs) and reads the dimensions off them.
AttentionProblem read_problem(const KernelRequest& request, DType key_dtype) {
  const Operand& q = request.inputs[0];
  const Operand& k = request.inputs[1];
  request.check(q.present && q.dtype == DType::kF32 && q.shape.rank() == 4, "q f32 [b, t, h, d]", q.shape.str());
  request.check(k.present && k.dtype == key_dtype && k.shape.rank() == 4, "k [b, s, hk, d]", k.shape.str());
  check_operand(request, request.inputs[2], "v", k.shape, key_dtype);
  request.check(k.shape[0] == q.shape[0] && k.shape[3] == q.shape[3],
                "k with the batch and head dimensions of q " + q.shape.str(), k.shape.str());
  request.check(q.shape[2] >= 1 && k.shape[2] >= 1 && q.shape[2] % k.shape[2] == 0,
                "a number of heads divisible by that of kv heads", q.shape.str() + " and " + k.shape.str());
  request.check(q.shape[3] >= 1 && q.shape[3] <= static_cast<int64_t>(kMaxDim),
                "a head dimension of 1 to " + std::to_string(kMaxDim), std::to_string(q.shape[3]));
  // Key indices are compared as 32-bit integers.
  constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max() / 2;
  request.check(q.shape[1] <= kMaxLength && k.shape[1] <= kMaxLength, "sequences below 2^30",
                q.shape.str() + " and " + k.shape.str());

  AttentionProblem p;
  p.batch = static_cast<size_t>(q.shape[0]);
  p.queries = static_cast<size_t>(q.shape[1]);
  p.heads = static_cast<size_t>(q.shape[2]);
  p.dim = static_cast<size_t>(q.shape[3]);
  p.keys = static_cast<size_t>(k.shape[1]);
  p.kv_heads = static_cast<size_t>(k.shape[2]);
  p.group = p.heads / p.kv_heads;
  p.padded_dim = round_up(p.dim, kPad);
  p.bf16_keys = key_dtype == DType::kBF16;
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
  check_optional(request, segments, "segments", Shape{request.inputs[0].shape[0], request.inputs[1].shape[1]},
                 DType::kI32);
  return p;
}

Shape statistic_shape(const KernelRequest& request) {
  const Shape& q = request.inputs[0].shape;
  return Shape{q[0], q[2], q[1]};
}

void run_forward(const AttentionProblem& p, const RunArguments& arguments) {
  const size_t blocks = p.row_blocks();
  arguments.pool.run(p.batch * p.kv_heads * blocks, [&](size_t tile, size_t thread) {
    // Under a causal mask later rows cost more: starting with them leaves the small tiles for the end.
    const size_t block = blocks - 1 - tile / (p.batch * p.kv_heads);
    const size_t head = tile % (p.batch * p.kv_heads);
    HWY_DYNAMIC_DISPATCH(attention_forward)
    (p, head / p.kv_heads, head % p.kv_heads, block, arguments.thread_scratch<float>(thread));
  });
}

CompiledKernel compile_attention(const KernelRequest& request) {
  request.expect_counts(4, 2);
  AttentionProblem p = read_training_problem(request);
  check_operand(request, request.outputs[0], "o", request.inputs[0].shape, DType::kF32);
  check_optional(request, request.outputs[1], "lse", statistic_shape(request), DType::kF32);
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
  check_operand(request, request.inputs[3], "position", Shape{request.inputs[0].shape[0]}, DType::kI32);
  check_operand(request, request.outputs[0], "o", request.inputs[0].shape, DType::kF32);
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
  check_operand(request, request.inputs[4], "o", q, DType::kF32);
  check_operand(request, request.inputs[5], "lse", statistic_shape(request), DType::kF32);
  check_operand(request, request.inputs[6], "g", q, DType::kF32);
  check_optional(request, request.outputs[0], "dq", q, DType::kF32);
  check_optional(request, request.outputs[1], "dk", k, DType::kF32);
  check_optional(request, request.outputs[2], "dv", k, DType::kF32);
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
    if (bound.dq != nullptr) run_backward(bound, BackwardPart::kRowBlock, p.row_blocks(), arguments);
    if (want_dkv) run_backward(bound, BackwardPart::kKeyBlock, p.key_blocks(), arguments);
  };
  return kernel;
}

}  // namespace

void register_attention(KernelTable& table) {
  table["attention"] = compile_attention;
  table["attention_vjp"] = compile_attention_vjp;
  table["attention_cached"] = compile_attention_cached;
}

}  // namespace heddle

#endif  // HWY_ONCE
