// Attention of a few rows, as in decoding: keys and values are used where they lie, for several kv heads in one pass
// over memory. Every sum runs in the order of the form for many rows (attention-inl.h), so that results are the same
// bit for bit. Included once per target (see foreach_target.h), inside no namespace.
#if defined(HEDDLE_KERNELS_ATTENTION_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEDDLE_KERNELS_ATTENTION_FEW_INL_H_
#undef HEDDLE_KERNELS_ATTENTION_FEW_INL_H_
#else
#define HEDDLE_KERNELS_ATTENTION_FEW_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/attention-inl.h"
#include "kernels/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Keys that are scored at once: as many sums as hide the latency of one.
constexpr size_t kKeyStep = 8;
constexpr size_t kLine = 64;

HWY_INLINE VF load_elements(const float* at) { return hn::LoadU(F(), at); }
HWY_INLINE VF load_elements(const uint16_t* at) { return load_bf16(F(), at); }
/// The first `count` elements, then zeros.
template <class Element>
HWY_INLINE VF load_elements(const Element* at, size_t count) {
  HWY_ALIGN Element whole[kPad] = {};
  std::copy_n(at, count, whole);
  return load_elements(whole);
}

/// Where the keys of a block, and the values beside them, begin for kv head 0. Those that no row sees, and those that
/// fill the last kKeyStep, are where a neighbour is.
struct KeyPlaces {
  size_t count = 0;
  size_t offset[kKeys] = {};

  KeyPlaces(const AttentionProblem& p, const RowBlock& rows, size_t first) {
    if (first >= rows.key_end()) return;
    count = HWY_MIN(kKeys, rows.key_end() - first);
    const auto floor = static_cast<size_t>(rows.floor[0]);
    const size_t hidden = floor > first ? floor - first : 0;
    for (size_t j = hidden; j < count;) {
      const size_t end = j + HWY_MIN(count - j, p.keys_together(first + j));
      size_t at = p.key_offset(rows.b, 0, first + j);
      for (; j < end; ++j, at += p.kv_heads * p.dim) offset[j] = at;
    }
    for (size_t j = 0; j < hidden; ++j) offset[j] = offset[hidden];
    for (size_t j = count; j < round_up(count, kKeyStep); ++j) offset[j] = offset[count - 1];
  }
};

/// The keys of kKeyStep places as f32 rows; those in bf16 by way of `wide` [kKeyStep, padded_dim].
HWY_INLINE void key_rows(const AttentionProblem&, const float* keys, const size_t* offset, float*,
                         const float* (&row)[kKeyStep]) {
  for (size_t i = 0; i < kKeyStep; ++i) row[i] = keys + offset[i];
}

HWY_INLINE void key_rows(const AttentionProblem& p, const uint16_t* keys, const size_t* offset, float* wide,
                         const float* (&row)[kKeyStep]) {
  for (size_t i = 0; i < kKeyStep; ++i) {
    copy_row(keys + offset[i], p.dim, p.padded_dim, wide + i * p.padded_dim);
    row[i] = wide + i * p.padded_dim;
  }
}

/// Brings the next block into the second cache in the order in which it lies in memory, so that the hardware helps, in
/// steps as small as those of the computation that it runs beside.
template <class Element>
class Prefetch {
 public:
  /// `keys` and `values` of the first of `heads` kv heads.
  Prefetch(const AttentionProblem& p, const Element* keys, const Element* values, size_t heads, const KeyPlaces& next)
      : keys_(keys), values_(values), width_(heads * p.dim), steps_(heads * (kKeys / kKeyStep)), next_(next) {}

  HWY_INLINE void step() {
    ++step_;
    for (const size_t end = HWY_MIN(step_ * kKeys / steps_, next_.count); row_ < end; ++row_)
      for (size_t i = 0; i < width_; i += kLine / sizeof(Element)) {
        __builtin_prefetch(keys_ + next_.offset[row_] + i, 0, 2);
        __builtin_prefetch(values_ + next_.offset[row_] + i, 0, 2);
      }
  }

 private:
  const Element* keys_;
  const Element* values_;
  size_t width_;
  size_t steps_;
  const KeyPlaces& next_;
  size_t step_ = 0;
  size_t row_ = 0;
};

/// out [key, row] = keys @ transposed [dim, row].
template <size_t kRowStride, class Element>
HWY_NOINLINE void score_few(const AttentionProblem& p, const Element* keys, const KeyPlaces& places,
                            const float* HWY_RESTRICT transposed, Prefetch<Element>& prefetch, float* HWY_RESTRICT wide,
                            float* HWY_RESTRICT out) {
  const RowTag<kRowStride> d;
  using V = hn::Vec<decltype(d)>;
  for (size_t j = 0; j < places.count; j += kKeyStep) {
    prefetch.step();
    const float* row[kKeyStep];
    key_rows(p, keys, places.offset + j, wide, row);
    for (size_t column = 0; column < kRowStride; column += hn::Lanes(d)) {
      V sum[kKeyStep];
#pragma GCC unroll 8
      for (size_t i = 0; i < kKeyStep; ++i) sum[i] = hn::Zero(d);
      for (size_t k = 0; k < p.dim; ++k) {
        const V q = hn::Load(d, transposed + k * kRowStride + column);
#pragma GCC unroll 8
        for (size_t i = 0; i < kKeyStep; ++i) sum[i] = hn::MulAdd(hn::Set(d, row[i][k]), q, sum[i]);
      }
#pragma GCC unroll 8
      for (size_t i = 0; i < kKeyStep; ++i) hn::Store(sum[i], d, out + (j + i) * kRowStride + column);
    }
  }
}

/// What the values of a kv head are mixed with: rows of `weights` [key, kRowStride], the first `depth` keys of them.
template <class Element>
struct Mixing {
  const Element* values;
  const KeyPlaces& places;
  size_t depth;
  const float* weights;
  const float* factor;
  float* out;
  size_t out_stride;
};

/// out = out * factor + weights^T @ values for kTileRows rows and kVectors vectors of columns, the last `partial` wide
/// if it is not 0.
template <size_t kRowStride, size_t kTileRows, size_t kVectors, class Element>
HWY_INLINE void mix_tile(const Mixing<Element>& m, size_t column, size_t partial) {
  const F d;
  const size_t n = hn::Lanes(d);
  VF sum[kTileRows][kVectors];
#pragma GCC unroll 4
  for (size_t r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < kVectors; ++c) sum[r][c] = hn::Zero(d);
  for (size_t j = 0; j < m.depth; ++j) {
    const Element* value = m.values + m.places.offset[j] + column;
    VF v[kVectors];
#pragma GCC unroll 4
    for (size_t c = 0; c < kVectors; ++c)
      v[c] = partial == 0 ? load_elements(value + c * n) : load_elements(value, partial);
#pragma GCC unroll 4
    for (size_t r = 0; r < kTileRows; ++r) {
      const VF weight = hn::Set(d, m.weights[j * kRowStride + r]);
#pragma GCC unroll 4
      for (size_t c = 0; c < kVectors; ++c) sum[r][c] = hn::MulAdd(weight, v[c], sum[r][c]);
    }
  }
#pragma GCC unroll 4
  for (size_t r = 0; r < kTileRows; ++r) {
    float* out = m.out + r * m.out_stride + column;
#pragma GCC unroll 4
    for (size_t c = 0; c < kVectors; ++c)
      hn::Store(hn::MulAdd(hn::Set(d, m.factor[r]), hn::Load(d, out + c * n), sum[r][c]), d, out + c * n);
  }
}

template <size_t kRowStride, size_t kTileRows, class Element>
HWY_NOINLINE void mix_rows(const Mixing<Element>& m, size_t dim) {
  const size_t n = lanes();
  size_t column = 0;
  for (; column + kTileVectors * n <= dim; column += kTileVectors * n)
    mix_tile<kRowStride, kTileRows, kTileVectors>(m, column, 0);
  for (; column + n <= dim; column += n) mix_tile<kRowStride, kTileRows, 1>(m, column, 0);
  if (column < dim) mix_tile<kRowStride, kTileRows, 1>(m, column, dim - column);
}

/// out [row, dim] = out * factor + weights^T [row, key] @ values [key, dim].
template <size_t kRowStride, class Element>
void mix_few(const AttentionProblem& p, const RowBlock& rows, const KeyBlock& keys, Mixing<Element> m) {
  for (size_t r = 0; r < rows.count; r += kStep) {
    const size_t tile_rows = HWY_MIN(kStep, rows.count - r);
    m.depth = keys.depth(rows, r + tile_rows - 1);
    if (tile_rows == 1)
      mix_rows<kRowStride, 1>(m, p.dim);
    else if (tile_rows == 2)
      mix_rows<kRowStride, 2>(m, p.dim);
    else if (tile_rows == 3)
      mix_rows<kRowStride, 3>(m, p.dim);
    else
      mix_rows<kRowStride, kStep>(m, p.dim);
    m.weights += kStep;
    m.factor += kStep;
    m.out += kStep * m.out_stride;
  }
}

/// What is kept of a kv head between blocks of keys.
template <size_t kRowStride>
struct FewRows {
  float *maximum, *sum, *transposed, *out;

  FewRows(const AttentionProblem& p, float* scratch, size_t head) {
    maximum = scratch + head * few_rows_floats(p);
    sum = maximum + kFewRows;
    transposed = sum + kFewRows;
    out = transposed + kFewRows * p.padded_dim;
  }
};

/// One row block of at most kRowStride rows, for kv heads [kv_begin, kv_end).
template <size_t kRowStride, class Element>
void forward_few(const AttentionProblem& p, RowBlock rows, size_t kv_end, float* scratch) {
  const size_t kv_begin = rows.kv_head;
  float* scores = scratch;
  float* wide = scores + kKeys * kFewRows;
  float* states = wide + kKeyStep * p.padded_dim;
  HWY_ALIGN float factor[kRows];
  for (size_t head = kv_begin; head < kv_end; ++head) {
    const FewRows<kRowStride> state(p, states, head - kv_begin);
    rows.kv_head = head;
    load_rows(p, p.q, rows, state.out);
    transpose<kRowStride>(state.out, p.padded_dim, p.dim, rows.width, p.scale * kLog2E, state.transposed);
    start_rows<kRowStride>(p, rows, state.maximum, state.sum, state.out);
  }
  KeyPlaces next(p, rows, rows.key_begin());
  for (size_t first = rows.key_begin(); first < rows.key_end(); first += kKeys) {
    const KeyPlaces places = next;
    next = KeyPlaces(p, rows, first + kKeys);
    const KeyBlock keys(p, rows, first);
    if (!keys.visible) continue;
    const auto* k = static_cast<const Element*>(p.k) + kv_begin * p.dim;
    const auto* v = static_cast<const Element*>(p.v) + kv_begin * p.dim;
    Prefetch<Element> prefetch(p, k, v, kv_end - kv_begin, next);
    for (size_t head = kv_begin; head < kv_end; ++head, k += p.dim, v += p.dim) {
      const FewRows<kRowStride> state(p, states, head - kv_begin);
      score_few<kRowStride>(p, k, places, state.transposed, prefetch, wide, scores);
      if (p.softcap != 0.0F) cap_scores<kRowStride>(rows, keys, p.softcap * kLog2E, scores);
      softmax_step<kRowStride>(rows, keys, scores, state.maximum, state.sum, factor);
      mix_few<kRowStride, Element>(p, rows, keys, {v, places, 0, scores, factor, state.out, p.padded_dim});
    }
  }
  for (size_t head = kv_begin; head < kv_end; ++head) {
    const FewRows<kRowStride> state(p, states, head - kv_begin);
    rows.kv_head = head;
    finish_rows(p, rows, state.maximum, state.sum, state.out);
  }
}

template <size_t kRowStride>
void forward_few(const AttentionProblem& p, const RowBlock& rows, size_t kv_end, float* scratch) {
  if (p.bf16_keys)
    forward_few<kRowStride, uint16_t>(p, rows, kv_end, scratch);
  else
    forward_few<kRowStride, float>(p, rows, kv_end, scratch);
}

/// One row block of kv heads [kv_begin, kv_end) of sequence b, in forward_scratch_floats.
void attention_forward(const AttentionProblem& p, size_t b, size_t kv_begin, size_t kv_end, size_t block,
                       float* scratch) {
  const size_t left = p.rows(b) - block * kRows;
  if (left <= 4) {
    forward_few<4>(p, RowBlock(p, b, kv_begin, block, 4), kv_end, scratch);
  } else if (left <= kFewRows) {
    forward_few<kFewRows>(p, RowBlock(p, b, kv_begin, block, kFewRows), kv_end, scratch);
  } else {
    for (size_t head = kv_begin; head < kv_end; ++head) forward_many(p, RowBlock(p, b, head, block), scratch);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#endif
