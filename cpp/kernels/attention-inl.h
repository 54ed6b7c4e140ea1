// The inner code of attention: one block of rows against all keys that it sees, and what backward shares with it.
// Included once per target (see foreach_target.h), inside no namespace.
#if defined(HEDDLE_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEDDLE_KERNELS_ATTENTION_INL_H_
#undef HEDDLE_KERNELS_ATTENTION_INL_H_
#else
#define HEDDLE_KERNELS_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/attention.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, kPad>;
using VF = hn::Vec<F>;

// Scores lie as [key, row] with kRowStride rows side by side, as many as one row block has at most: a few rows go
// through short vectors, of which processors compute more at a time.
template <size_t kRowStride>
using RowTag = hn::CappedTag<float, HWY_MIN(kRowStride, kPad)>;

// Vectors side by side in a register tile: 16 accumulators where there are 32 registers, else 8.
constexpr size_t kTileVectors = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM ? 4 : 2;

// Masked scores are -infinity; the running maximum starts at a finite floor so that their difference is never NaN.
constexpr float kFloor = -1e30F;
constexpr float kLog2E = 1.44269504088896341F;
constexpr float kLn2 = 0.693147180559945309F;

size_t lanes() { return hn::Lanes(F()); }

/// 2^x for x <= 0, about 1 ulp; below 2^-126 it is 0. Arguments of Max in this order keep NaN on x86.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_nonpositive(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  x = hn::Max(hn::Set(d, -127.0F), x);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it, with the exponent's bias, in the low bits.
  const V magic = hn::Set(d, 12582912.0F + 127.0F);
  const V shifted = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  // Interpolates 2^f at the Chebyshev points of [-1/2, 1/2]: relative error 2e-8 before rounding.
  V y = hn::Set(d, 0.000154614446986F);
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

/// Rows [0, width) of tile [.., padded] -> transposed [dim, kRowStride], times factor. width is a multiple of 4.
template <size_t kRowStride>
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
      float* to = transposed + i * kRowStride + r;
      hn::StoreU(hn::InterleaveLower(d4, ac_low, be_low), d4, to);
      hn::StoreU(hn::InterleaveUpper(d4, ac_low, be_low), d4, to + kRowStride);
      hn::StoreU(hn::InterleaveLower(d4, ac_high, be_high), d4, to + 2 * kRowStride);
      hn::StoreU(hn::InterleaveUpper(d4, ac_high, be_high), d4, to + 3 * kRowStride);
    }
#endif
    for (; i < dim; ++i)
      for (size_t j = 0; j < 4; ++j) transposed[i * kRowStride + r + j] = rows[j * padded + i] * factor;
  }
}

/// One block of rows and which keys each of them may see.
struct RowBlock {
  size_t b, kv_head, first, count;
  // count rounded up to whole vectors; the rows beyond count are computed and dropped.
  size_t width;
  // Row r sees keys below limit[r], which never falls as r rises.
  HWY_ALIGN int32_t limit[kRows] = {};
  // ... and from floor[r] on, which never falls either.
  HWY_ALIGN int32_t floor[kRows] = {};
  HWY_ALIGN int32_t segment[kRows] = {};
  int32_t segment_low, segment_high;
  // The last key that query 0 sees, where queries see different keys.
  size_t last_of_first;

  RowBlock(const AttentionProblem& p, size_t b_, size_t kv_head_, size_t block, size_t pad = kPad)
      : b(b_),
        kv_head(kv_head_),
        first(block * kRows),
        count(HWY_MIN(kRows, p.rows(b_) - first)),
        width(round_up(count, pad)) {
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
  template <class D>
  bool masked(D d, const RowBlock& rows, size_t j, size_t column) const {
    return check_segments || static_cast<size_t>(rows.limit[column]) < first + j + kStep ||
           static_cast<size_t>(rows.floor[column + hn::Lanes(d) - 1]) > first + j;
  }

  /// Lanes of rows column.. that may see key j.
  template <class D>
  HWY_INLINE auto mask(D d, const RowBlock& rows, size_t j, size_t column) const {
    const hn::RebindToSigned<D> di;
    const auto key = hn::Set(di, static_cast<int32_t>(first + j));
    auto seen =
        hn::AndNot(hn::Gt(hn::Load(di, rows.floor + column), key), hn::Gt(hn::Load(di, rows.limit + column), key));
    // Keys beyond count are beyond every limit; their segment must not be read.
    if (check_segments && j < count)
      seen = hn::And(seen, hn::Eq(hn::Load(di, rows.segment + column), hn::Set(di, segment[j])));
    return hn::RebindMask(d, seen);
  }

  /// Keys of this block that row `row` sees, segments aside.
  size_t depth(const RowBlock& rows, size_t row) const {
    const auto limit = static_cast<size_t>(rows.limit[row]);
    return limit > first ? HWY_MIN(limit - first, count) : 0;
  }
};

/// Keys or values of a block -> tile [kKeys, padded_dim]; zero where no row sees them, and up to a multiple of kStep.
HWY_NOINLINE void load_keys(const AttentionProblem& p, const void* source, const RowBlock& rows, const KeyBlock& keys,
                            float* tile) {
  const size_t stride = p.kv_heads * p.dim;
  const auto floor = static_cast<size_t>(rows.floor[0]);
  const size_t hidden = floor > keys.first ? floor - keys.first : 0;
  zero(tile, hidden * p.padded_dim);
  size_t j = hidden;
  while (j < keys.count) {
    size_t offset = p.key_offset(rows.b, rows.kv_head, keys.first + j);
    const size_t end = j + HWY_MIN(keys.count - j, p.keys_together(keys.first + j));
    for (; j < end; ++j, offset += stride) {
      float* to = tile + j * p.padded_dim;
      if (p.bf16_keys)
        copy_row(static_cast<const uint16_t*>(source) + offset, p.dim, p.padded_dim, to);
      else
        copy_row(static_cast<const float*>(source) + offset, p.dim, p.padded_dim, to);
    }
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
template <size_t kRowStride>
HWY_NOINLINE void cap_scores(const RowBlock& rows, const KeyBlock& keys, float cap, float* HWY_RESTRICT scores) {
  const RowTag<kRowStride> d;
  using V = hn::Vec<decltype(d)>;
  const V one = hn::Set(d, 1.0F);
  const V steepness = hn::Set(d, -2.0F * kLog2E / cap);
  for (size_t j = 0; j < round_up(keys.count, kStep); ++j) {
    for (size_t column = keys.start[j / kStep]; column < rows.width; column += hn::Lanes(d)) {
      float* s = scores + j * kRowStride + column;
      const V x = hn::Load(d, s);
      const V e = exp2_nonpositive(d, hn::Mul(hn::Abs(x), steepness));
      const V y = hn::Div(hn::Sub(one, e), hn::Add(one, e));
      hn::Store(hn::CopySign(hn::Mul(y, hn::Set(d, cap)), x), d, s);
    }
  }
}

/// Turns scores (base 2 logarithms) into weights relative to the running maximum, and keeps maximum, sum and the
/// factor that earlier sums must shrink by.
template <size_t kRowStride>
HWY_NOINLINE void softmax_step(const RowBlock& rows, const KeyBlock& keys, float* HWY_RESTRICT scores,
                               float* HWY_RESTRICT maximum, float* HWY_RESTRICT sum, float* HWY_RESTRICT factor) {
  const RowTag<kRowStride> d;
  using V = hn::Vec<decltype(d)>;
  const V hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (size_t column = 0; column < rows.width; column += hn::Lanes(d)) {
    const V old = hn::Load(d, maximum + column);
    V top = old;
    size_t end = 0;
    for (; end < keys.count && keys.start[end / kStep] <= column; end += kStep) {
      float* s = scores + end * kRowStride + column;
      V x[kStep];
#pragma GCC unroll 4
      for (size_t i = 0; i < kStep; ++i) x[i] = hn::Load(d, s + i * kRowStride);
      if (keys.masked(d, rows, end, column)) {
#pragma GCC unroll 4
        for (size_t i = 0; i < kStep; ++i) {
          x[i] = hn::IfThenElse(keys.mask(d, rows, end + i, column), x[i], hidden);
          hn::Store(x[i], d, s + i * kRowStride);
        }
      }
      top = hn::Max(top, hn::Max(hn::Max(x[0], x[1]), hn::Max(x[2], x[3])));
    }
    const V shrink = exp2_nonpositive(d, hn::Sub(old, top));
    V total0 = hn::Mul(hn::Load(d, sum + column), shrink);
    V total1 = hn::Zero(d);
    for (size_t j = 0; j < end; j += kStep) {
      float* s = scores + j * kRowStride + column;
      V w[kStep];
#pragma GCC unroll 4
      for (size_t i = 0; i < kStep; ++i) {
        w[i] = exp2_nonpositive(d, hn::Sub(hn::Load(d, s + i * kRowStride), top));
        hn::Store(w[i], d, s + i * kRowStride);
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

/// A row block before its first key.
template <size_t kRowStride>
void start_rows(const AttentionProblem& p, const RowBlock& rows, float* maximum, float* sum, float* out) {
  const RowTag<kRowStride> d;
  zero(out, rows.width * p.padded_dim);
  for (size_t r = 0; r < kRowStride; r += hn::Lanes(d)) {
    hn::Store(hn::Zero(d), d, sum + r);
    hn::Store(hn::Set(d, kFloor), d, maximum + r);
  }
}

/// Sums -> results, after the last key.
void finish_rows(const AttentionProblem& p, const RowBlock& rows, const float* maximum, const float* sum, float* out) {
  const F d;
  for (size_t r = 0; r < rows.count; ++r) {
    // A row that saw no key (only possible when there are none) is 0, as an empty sum is.
    const VF norm = hn::Set(d, sum[r] == 0.0F ? 0.0F : 1.0F / sum[r]);
    float* from = out + r * p.padded_dim;
    for (size_t i = 0; i < p.padded_dim; i += lanes()) hn::Store(hn::Mul(hn::Load(d, from + i), norm), d, from + i);
    std::copy_n(from, p.dim, p.o + p.row_offset(rows.b, rows.kv_head, rows.first + r));
    if (p.lse != nullptr)
      p.lse[p.statistic_offset(rows.b, rows.kv_head, rows.first + r)] = maximum[r] * kLn2 + std::log(sum[r]);
  }
}

/// One row block of the forward pass.
void forward_many(const AttentionProblem& p, const RowBlock& rows, float* scratch) {
  float* q_transposed = scratch;
  float* scores = q_transposed + kRows * p.dim;
  float* key_tile = scores + kKeys * kRows;
  float* value_tile = key_tile + kKeys * p.padded_dim;
  float* out = value_tile + kKeys * p.padded_dim;
  HWY_ALIGN float maximum[kRows];
  HWY_ALIGN float sum[kRows];
  HWY_ALIGN float factor[kRows];

  load_rows(p, p.q, rows, out);
  transpose<kRows>(out, p.padded_dim, p.dim, rows.width, p.scale * kLog2E, q_transposed);
  start_rows<kRows>(p, rows, maximum, sum, out);
  for (size_t first = rows.key_begin(); first < rows.key_end(); first += kKeys) {
    const KeyBlock keys(p, rows, first);
    if (!keys.visible) continue;
    load_keys(p, p.k, rows, keys, key_tile);
    load_keys(p, p.v, rows, keys, value_tile);
    score(p, rows, keys, key_tile, q_transposed, scores);
    if (p.softcap != 0.0F) cap_scores<kRows>(rows, keys, p.softcap * kLog2E, scores);
    softmax_step<kRows>(rows, keys, scores, maximum, sum, factor);
    gather_keys<Finish::kScaleAdd>(p, rows, keys, scores, value_tile, out, factor);
  }
  finish_rows(p, rows, maximum, sum, out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#endif
