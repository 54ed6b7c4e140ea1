// Kernels on tiles that lie features first. The order of every sum is that of its index, whatever the vectors' width.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "structured/feature_tile.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_STRUCTURED_FEATURE_TILE_ONCE
#define HEDDLE_STRUCTURED_FEATURE_TILE_ONCE

#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "hwy/cache_control.h"
#include "structured/feature_tile.h"

#endif  // HEDDLE_STRUCTURED_FEATURE_TILE_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;

/// Rounded to the nearest bf16 (ties to even); NaN stays NaN.
HWY_INLINE hn::Vec<F> rounded(hn::Vec<F> x) {
  const F f;
  const hn::RebindToUnsigned<F> u;
  const auto bits = hn::BitCast(u, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u, 1));
  const auto near = hn::Add(bits, hn::Add(odd, hn::Set(u, 0x7fff)));
  const auto kept = hn::IfThenElse(hn::RebindMask(u, hn::IsNaN(x)), hn::Or(bits, hn::Set(u, 0x400000)), near);
  return hn::BitCast(f, hn::And(kept, hn::Set(u, 0xffff0000U)));
}

/// Four rows of four elements at `from` -> their transpose at `to`.
HWY_INLINE void transpose_quad(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 4; ++j) to[j * to_stride + i] = from[i * from_stride + j];
#else
  using Quad = hn::FixedTag<float, 4>;
  const Quad q;
  const hn::RepartitionToWide<Quad> wide;
  const auto a = hn::LoadU(q, from);
  const auto b = hn::LoadU(q, from + from_stride);
  const auto c = hn::LoadU(q, from + 2 * from_stride);
  const auto d = hn::LoadU(q, from + 3 * from_stride);
  const auto ab_low = hn::BitCast(wide, hn::InterleaveLower(q, a, b));
  const auto ab_high = hn::BitCast(wide, hn::InterleaveUpper(q, a, b));
  const auto cd_low = hn::BitCast(wide, hn::InterleaveLower(q, c, d));
  const auto cd_high = hn::BitCast(wide, hn::InterleaveUpper(q, c, d));
  hn::StoreU(hn::BitCast(q, hn::InterleaveLower(wide, ab_low, cd_low)), q, to);
  hn::StoreU(hn::BitCast(q, hn::InterleaveUpper(wide, ab_low, cd_low)), q, to + to_stride);
  hn::StoreU(hn::BitCast(q, hn::InterleaveLower(wide, ab_high, cd_high)), q, to + 2 * to_stride);
  hn::StoreU(hn::BitCast(q, hn::InterleaveUpper(wide, ab_high, cd_high)), q, to + 3 * to_stride);
#endif
}

/// Elements of a cache line: blocks of so many rows and columns touch whole lines on either side.
constexpr int64_t kLine = 16;

/// to[j][i] = from[i][j] for whole quads.
HWY_INLINE void transpose_quads(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                                int64_t to_stride) {
  for (int64_t row = 0; row < rows; row += 4)
    for (int64_t column = 0; column < columns; column += 4)
      transpose_quad(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
}

#if HWY_TARGET <= HWY_AVX3
/// Blocks of four elements of four vectors as a matrix of blocks -> its transpose.
template <class V>
HWY_INLINE void transpose_blocks(F f, V& a, V& b, V& c, V& d) {
  const auto ac_low = hn::ConcatLowerLower(f, c, a);
  const auto bd_low = hn::ConcatLowerLower(f, d, b);
  const auto ac_high = hn::ConcatUpperUpper(f, c, a);
  const auto bd_high = hn::ConcatUpperUpper(f, d, b);
  a = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(bd_low), ac_low);
  b = hn::OddEvenBlocks(bd_low, hn::SwapAdjacentBlocks(ac_low));
  c = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(bd_high), ac_high);
  d = hn::OddEvenBlocks(bd_high, hn::SwapAdjacentBlocks(ac_high));
}

/// 16 lines -> the 16 lines of their transpose; `streams`: past the caches, to lines that are aligned.
template <bool kStreams>
HWY_INLINE void transpose_lines(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  const F f;
  const hn::RepartitionToWide<F> wide;
  hn::Vec<F> v[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const auto a = hn::LoadU(f, from + i * from_stride);
    const auto b = hn::LoadU(f, from + (i + 1) * from_stride);
    const auto c = hn::LoadU(f, from + (i + 2) * from_stride);
    const auto d = hn::LoadU(f, from + (i + 3) * from_stride);
    const auto ab_low = hn::BitCast(wide, hn::InterleaveLower(f, a, b));
    const auto ab_high = hn::BitCast(wide, hn::InterleaveUpper(f, a, b));
    const auto cd_low = hn::BitCast(wide, hn::InterleaveLower(f, c, d));
    const auto cd_high = hn::BitCast(wide, hn::InterleaveUpper(f, c, d));
    v[i] = hn::BitCast(f, hn::InterleaveLower(wide, ab_low, cd_low));
    v[i + 1] = hn::BitCast(f, hn::InterleaveUpper(wide, ab_low, cd_low));
    v[i + 2] = hn::BitCast(f, hn::InterleaveLower(wide, ab_high, cd_high));
    v[i + 3] = hn::BitCast(f, hn::InterleaveUpper(wide, ab_high, cd_high));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    transpose_blocks(f, v[i], v[4 + i], v[8 + i], v[12 + i]);
#pragma GCC unroll 4
    for (int block = 0; block < 4; ++block) {
      float* line = to + (4 * block + i) * to_stride;
      if (kStreams)
        hn::Stream(v[4 * block + i], f, line);
      else
        hn::StoreU(v[4 * block + i], f, line);
    }
  }
}
#endif

/// to[j][i] = from[i][j] for whole quads, at most a line of either.
template <bool kStreams>
HWY_INLINE void transpose_block(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                                int64_t to_stride) {
#if HWY_TARGET <= HWY_AVX3
  if (rows == kLine && columns == kLine) return transpose_lines<kStreams>(from, from_stride, to, to_stride);
#endif
  transpose_quads(from, from_stride, rows, columns, to, to_stride);
}

/// Lines of a batch that will be needed soon: its rows are too far apart for the hardware to see a pattern.
HWY_INLINE void prefetch_rows(const float* line, int64_t stride, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) hwy::Prefetch(line + row * stride);
}

constexpr int64_t kAhead = 4 * kLine;

void round_lanes(float* tile, int64_t count) {
  const F f;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(f)))
    hn::StoreU(rounded(hn::LoadU(f, tile + i)), f, tile + i);
}

void to_features(const RowsToFeatures& job) {
  const int64_t whole_rows = job.rows / 4 * 4;
  const int64_t whole_columns = job.columns / 4 * 4;
  for (int64_t row = 0; row < whole_rows; row += kLine) {
    const int64_t rows = std::min(kLine, whole_rows - row);
    for (int64_t column = 0; column < whole_columns; column += kLine) {
      const float* from = job.x + row * job.stride + column;
      if (column + kAhead < job.columns) prefetch_rows(from + kAhead, job.stride, rows);
      transpose_block<false>(from, job.stride, rows, std::min(kLine, whole_columns - column),
                             job.tile + job.places.of(column) * job.lanes + row, job.lanes);
    }
  }
  for (int64_t row = 0; row < job.rows; ++row)
    for (int64_t column = row < whole_rows ? whole_columns : 0; column < job.columns; ++column)
      job.tile[job.places.of(column) * job.lanes + row] = job.x[row * job.stride + column];
  for (int64_t feature = job.rows < job.lanes ? 0 : job.columns; feature < job.features; ++feature) {
    float* const lanes = job.tile + job.places.of(feature) * job.lanes;
    std::fill(lanes + (feature < job.columns ? job.rows : 0), lanes + job.lanes, 0.0F);
  }
  if (!job.round) return;
  for (int64_t feature = 0; feature < job.columns; ++feature)
    round_lanes(job.tile + job.places.of(feature) * job.lanes, job.lanes);
}

template <bool kStreams>
void to_rows(const FeaturesToRows& job) {
  const int64_t whole_rows = job.rows / 4 * 4;
  const int64_t whole_columns = job.columns / 4 * 4;
  for (int64_t row = 0; row < whole_rows; row += kLine) {
    const int64_t rows = std::min(kLine, whole_rows - row);
    for (int64_t column = 0; column < whole_columns; column += kLine) {
      float* to = job.y + row * job.stride + column;
      if (!kStreams && column + kAhead < job.columns) prefetch_rows(to + kAhead, job.stride, rows);
      transpose_block<kStreams>(job.tile + job.places.of(column) * job.feature_stride + row, job.feature_stride,
                                std::min(kLine, whole_columns - column), rows, to, job.stride);
    }
  }
  for (int64_t row = 0; row < job.rows; ++row)
    for (int64_t column = row < whole_rows ? whole_columns : 0; column < job.columns; ++column)
      job.y[row * job.stride + column] = job.tile[job.places.of(column) * job.feature_stride + row];
}

void to_batch(const FeaturesToRows& job) {
  const bool aligned = reinterpret_cast<uintptr_t>(job.y) % 64 == 0 && job.stride % kLine == 0;
  if (!job.streams || !aligned) return to_rows<false>(job);
  to_rows<true>(job);
  hwy::FlushStream();
}

/// kRows rows of one panel times kVectors vectors of lanes.
template <int kRows, int kVectors>
HWY_INLINE void multiply(const PanelProduct& job, const float* w, const float* in, float* out, int64_t count) {
  const F f;
  const auto lanes = static_cast<int64_t>(hn::Lanes(f));
  hn::Vec<F> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::Zero(f);
  for (int64_t term = 0; term < job.terms; ++term) {
    const float* from = in + term * job.in_term;
    for (int64_t j = 0; j < job.k; ++j) {
      hn::Vec<F> x[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) x[v] = hn::LoadU(f, from + v * lanes);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const auto factor = hn::Set(f, w[i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::MulAdd(factor, x[v], sums[i][v]);
      }
      w += kChainPanelRows;
      from += job.in_item;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    if (i >= count) break;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(job.round ? rounded(sums[i][v]) : sums[i][v], f, out + i * job.out_item + v * lanes);
  }
}

template <int kRows, int kVectors>
HWY_INLINE void multiply_lanes(const PanelProduct& job, const float* w, const float* in, float* out, int64_t count) {
  const auto step = static_cast<int64_t>(hn::Lanes(F())) * kVectors;
  for (int64_t lane = 0; lane < job.lanes; lane += step)
    multiply<kRows, kVectors>(job, w, in + lane, out + lane, count);
}

/// Sums fill the registers: 24 of 32 wide vectors, 12 of 16 narrow ones.
void panel_product(const PanelProduct& job, int64_t first, int64_t last) {
  const bool wide = hn::Lanes(F()) == 16;
  const bool many = job.lanes == kTileLanes;
  for (int64_t panel = first; panel < last; ++panel) {
    const float* w = job.w + panel * job.terms * job.k * kChainPanelRows;
    float* out = job.out + panel * kChainPanelRows * job.out_item;
    const int64_t count = std::min(kChainPanelRows, job.m - panel * kChainPanelRows);
    if (wide && count > 4) {
      if (many)
        multiply_lanes<8, 3>(job, w, job.in, out, count);
      else
        multiply_lanes<8, 1>(job, w, job.in, out, count);
      continue;
    }
    for (int64_t half = 0; half < count; half += 4) {
      if (many)
        multiply_lanes<4, 3>(job, w + half, job.in, out + half * job.out_item, count - half);
      else
        multiply_lanes<4, 1>(job, w + half, job.in, out + half * job.out_item, count - half);
    }
  }
}

template <int kRows, int kVectors>
HWY_INLINE void outer(const OuterProduct& job, int64_t row, int64_t column) {
  const F f;
  const auto lanes = static_cast<int64_t>(hn::Lanes(f));
  float* dw = job.dw + row * job.columns + column;
  const float* g = job.g + row * job.g_item;
  hn::Vec<F> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::LoadU(f, dw + i * job.columns + v * lanes);
  for (int64_t t = 0; t < job.lanes; ++t) {
    const float* in = job.in + t * job.columns + column;
    hn::Vec<F> x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) x[v] = hn::LoadU(f, in + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const auto factor = hn::Set(f, g[i * job.g_item + t]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::MulAdd(factor, x[v], sums[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[i][v], f, dw + i * job.columns + v * lanes);
}

template <int kRows>
HWY_INLINE void outer_rows(const OuterProduct& job, int64_t row) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(F()));
  int64_t column = 0;
  for (; column + 3 * lanes <= job.columns; column += 3 * lanes) outer<kRows, 3>(job, row, column);
  for (; column + 2 * lanes <= job.columns; column += 2 * lanes) outer<kRows, 2>(job, row, column);
  for (; column < job.columns; column += lanes) outer<kRows, 1>(job, row, column);
}

void outer_product(const OuterProduct& job) {
  int64_t row = 0;
  if (hn::Lanes(F()) == 16)
    for (; row + 8 <= job.m; row += 8) outer_rows<8>(job, row);
  for (; row + 4 <= job.m; row += 4) outer_rows<4>(job, row);
  for (; row < job.m; ++row) outer_rows<1>(job, row);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(to_features);
HWY_EXPORT(to_batch);
HWY_EXPORT(panel_product);
HWY_EXPORT(outer_product);

}  // namespace

void rows_to_features(const RowsToFeatures& job) { HWY_DYNAMIC_DISPATCH(to_features)(job); }

void features_to_rows(const FeaturesToRows& job) { HWY_DYNAMIC_DISPATCH(to_batch)(job); }

void multiply_panels(const PanelProduct& job, int64_t first_panel, int64_t last_panel) {
  HWY_DYNAMIC_DISPATCH(panel_product)(job, first_panel, last_panel);
}

void accumulate_outer(const OuterProduct& job) { HWY_DYNAMIC_DISPATCH(outer_product)(job); }

}  // namespace heddle
#endif  // HWY_ONCE
