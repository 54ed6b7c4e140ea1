// The product of a BlockMatrix with rows of 16-bit codes.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/block_product.cpp"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_QUANT_BLOCK_PRODUCT_ONCE
#define HEDDLE_QUANT_BLOCK_PRODUCT_ONCE

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "core/fetch_ahead.h"
#include "quant/block_matrix.h"

#endif  // HEDDLE_QUANT_BLOCK_PRODUCT_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLargestCode = 32767.0F;

void round_block(const float* x, int16_t* codes, float* scale, float* sum) {
  const hn::CappedTag<float, 16> f;
  const hn::RebindToSigned<decltype(f)> i32;
  const hn::Rebind<int16_t, decltype(f)> i16;
  auto largest = hn::Zero(f);
  bool finite = true;
  for (size_t i = 0; i < kBlockLength; i += hn::Lanes(f)) {
    const auto values = hn::LoadU(f, x + i);
    finite = finite && hn::AllTrue(f, hn::IsFinite(values));
    largest = hn::Max(largest, hn::Abs(values));
  }
  const float top = hn::GetLane(hn::MaxOfLanes(f, largest));
  *scale = finite ? top / kLargestCode : std::numeric_limits<float>::quiet_NaN();
  // Below the least normal scale the inverse overflows: such values count as zero.
  const float inverse = finite && *scale >= std::numeric_limits<float>::min() ? kLargestCode / top : 0.0F;
  auto total = hn::Zero(i32);
  for (size_t i = 0; i < kBlockLength; i += hn::Lanes(f)) {
    const auto scaled = finite ? hn::Mul(hn::LoadU(f, x + i), hn::Set(f, inverse)) : hn::Zero(f);
    const auto rounded = hn::NearestInt(scaled);
    hn::StoreU(hn::DemoteTo(i16, rounded), i16, codes + i);
    total = hn::Add(total, rounded);
  }
  *sum = *scale * static_cast<float>(hn::GetLane(hn::SumOfLanes(i32, total)));
}

void round_rows(const float* x, size_t rows, size_t k, const BlockRows16& out) {
  for (size_t block = 0; block < rows * (k / kBlockLength); ++block)
    round_block(x + block * kBlockLength, out.codes + block * kBlockLength, out.scales + block, out.sums + block);
}

#if HWY_TARGET == HWY_SCALAR

/// One element of y: what the vectors below do for the rows of a panel at once, and what they mean.
template <BlockForm kForm>
float multiply_element(const BlockPanels& w, size_t panel, size_t lane, const BlockRows16& x, size_t row) {
  constexpr size_t kPairs = kForm == BlockForm::kQ8_0 ? 2 : 4;
  float total = 0.0F;
  for (size_t block = 0; block < w.blocks(); ++block) {
    const uint16_t* words = w.codes + (panel * w.blocks() + block) * w.words_per_block();
    const uint16_t* scales = w.scales + (panel * w.blocks() + block) * w.scales_per_block();
    const int16_t* codes = x.codes + row * w.k + block * kBlockLength;
    int32_t sum = 0;
    for (size_t i = 0; i < kBlockLength; ++i) {
      const int word =
          words[(i / (2 * kPairs) * kBlockPanelRows + lane) * 2 + i % 2] >> (i / 2 % kPairs * (16 / kPairs));
      sum += codes[i] * (kForm == BlockForm::kQ8_0 ? static_cast<int8_t>(word) : word & 15);
    }
    const size_t at = row * w.blocks() + block;
    const float scale = f16_to_f32(scales[lane]);
    float minimum = 0.0F;
    if (kForm == BlockForm::kQ4_0) minimum = -8.0F * scale;
    if (kForm == BlockForm::kQ4_1) minimum = f16_to_f32(scales[kBlockPanelRows + lane]);
    total += scale * x.scales[at] * static_cast<float>(sum) + minimum * x.sums[at];
  }
  return total;
}

template <BlockForm kForm>
void multiply_form(const BlockPanels& w, const BlockTile& tile, const BlockProduct& product, float* y) {
  const auto [first, last] = std::pair(tile.first_panel, tile.last_panel);
  for (size_t row = 0; row < product.rows; ++row)
    for (size_t column = first * kBlockPanelRows; column < std::min(w.n, last * kBlockPanelRows); ++column) {
      const size_t panel = column / kBlockPanelRows;
      const float total = multiply_element<kForm>(w, panel, column % kBlockPanelRows, product.x, row);
      const float* add = product.addend == nullptr ? nullptr : product.addend + (product.full ? row * w.n : 0) + column;
      y[row * w.n + column] = add == nullptr ? product.alpha * total : product.alpha * total + *add;
    }
}

#else

// Two 16-bit lanes per row of the panel.
using Words = hn::CappedTag<int16_t, 2 * kBlockPanelRows>;
using Sums = hn::RepartitionToWide<Words>;
using Floats = hn::RebindToFloat<Sums>;

/// Code number `pair` of every word.
template <BlockForm kForm, int kPair>
HWY_INLINE hn::Vec<Words> unpack(hn::Vec<Words> words) {
  if constexpr (kForm == BlockForm::kQ8_0) {
    if constexpr (kPair == 0) return hn::ShiftRight<8>(hn::ShiftLeft<8>(words));
    return hn::ShiftRight<8>(words);
  } else {
    const hn::RebindToUnsigned<Words> bits;
    const auto shifted = hn::ShiftRight<4 * kPair>(hn::BitCast(bits, words));
    return hn::BitCast(Words(), kPair == 3 ? shifted : hn::And(shifted, hn::Set(bits, 15)));
  }
}

/// Two neighbours in k in every 32-bit lane.
HWY_INLINE hn::Vec<Words> broadcast_pair(const int16_t* codes) {
  int32_t both;
  std::memcpy(&both, codes, sizeof both);
  return hn::BitCast(Words(), hn::Set(Sums(), both));
}

HWY_INLINE hn::Vec<Floats> from_half(const uint16_t* halves) {
  const hn::Rebind<hwy::float16_t, Floats> half;
  return hn::PromoteTo(Floats(), hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(halves)));
}

/// Columns side by side, one to a lane: a panel's, or with shorter vectors a part of them.
struct Columns {
  const uint16_t* words;
  const uint16_t* scales;
  size_t first;
  size_t count;
};

/// Adds one block's products to the totals of some rows and columns.
template <BlockForm kForm, size_t kRows, size_t kColumns>
HWY_INLINE void accumulate_block(const BlockPanels& w, const Columns* columns, const BlockRows16& x, size_t row,
                                 size_t block, hn::Vec<Floats> (&totals)[kRows][kColumns]) {
  constexpr size_t kPairs = kForm == BlockForm::kQ8_0 ? 2 : 4;
  const Words d;
  const Sums s;
  const Floats f;
  const int16_t* codes[kRows];
  // ReorderWidenMulAccumulate may leave half of the pairs in the second sum.
  hn::Vec<Sums> even[kRows][kColumns];
  hn::Vec<Sums> odd[kRows][kColumns];
  for (size_t r = 0; r < kRows; ++r) {
    codes[r] = x.codes + (row + r) * w.k + block * kBlockLength;
    for (size_t c = 0; c < kColumns; ++c) even[r][c] = odd[r][c] = hn::Zero(s);
  }
  for (size_t vector = 0; vector < kBlockLength / (2 * kPairs); ++vector) {
    hn::Vec<Words> packed[kColumns];
    for (size_t c = 0; c < kColumns; ++c) {
      const uint16_t* const words = columns[c].words + block * w.words_per_block() + vector * 2 * kBlockPanelRows;
      packed[c] = hn::LoadU(d, reinterpret_cast<const int16_t*>(words));
    }
    const size_t at = vector * 2 * kPairs;
    const auto add = [&]<int kPair>(std::integral_constant<int, kPair>) HWY_ATTR {
      hn::Vec<Words> values[kColumns];
      for (size_t c = 0; c < kColumns; ++c) values[c] = unpack<kForm, kPair>(packed[c]);
      for (size_t r = 0; r < kRows; ++r) {
        const auto pair = broadcast_pair(codes[r] + at + 2 * kPair);
        for (size_t c = 0; c < kColumns; ++c)
          even[r][c] = hn::ReorderWidenMulAccumulate(s, values[c], pair, even[r][c], odd[r][c]);
      }
    };
    add(std::integral_constant<int, 0>());
    add(std::integral_constant<int, 1>());
    if constexpr (kPairs == 4) {
      add(std::integral_constant<int, 2>());
      add(std::integral_constant<int, 3>());
    }
  }
  for (size_t c = 0; c < kColumns; ++c) {
    const uint16_t* const scales = columns[c].scales + block * w.scales_per_block();
    const auto scale = from_half(scales);
    for (size_t r = 0; r < kRows; ++r) {
      const size_t at = (row + r) * w.blocks() + block;
      const auto sum = hn::ConvertTo(f, hn::RearrangeToOddPlusEven(even[r][c], odd[r][c]));
      totals[r][c] = hn::MulAdd(hn::Mul(scale, hn::Set(f, x.scales[at])), sum, totals[r][c]);
      if constexpr (kForm == BlockForm::kQ4_0)
        totals[r][c] = hn::MulAdd(hn::Mul(scale, hn::Set(f, -8.0F)), hn::Set(f, x.sums[at]), totals[r][c]);
      if constexpr (kForm == BlockForm::kQ4_1)
        totals[r][c] = hn::MulAdd(from_half(scales + kBlockPanelRows), hn::Set(f, x.sums[at]), totals[r][c]);
    }
  }
}

/// y = alpha * totals + addend for `count` columns from `column` on.
HWY_INLINE void store_totals(const BlockPanels& w, const BlockProduct& product, size_t row, size_t column, size_t count,
                             hn::Vec<Floats> totals, float* y) {
  const Floats f;
  float* const to = y + row * w.n + column;
  const float* const add =
      product.addend == nullptr ? nullptr : product.addend + (product.full ? row * w.n : 0) + column;
  const auto scaled = hn::Mul(totals, hn::Set(f, product.alpha));
  if (count >= hn::Lanes(f)) {
    hn::StoreU(add == nullptr ? scaled : hn::Add(scaled, hn::LoadU(f, add)), f, to);
    return;
  }
  HWY_ALIGN float part[kBlockPanelRows];
  hn::Store(scaled, f, part);
  for (size_t i = 0; i < count; ++i) to[i] = add == nullptr ? part[i] : part[i] + add[i];
}

/// Asks for the block's part of columns that come next: weights are on their way while others are multiplied.
HWY_INLINE void prefetch_block(const BlockPanels& w, const Columns& next, size_t block) {
  constexpr size_t kLine = 64 / sizeof(uint16_t);
  const uint16_t* const words = next.words + block * w.words_per_block();
  for (size_t at = 0; at < w.words_per_block(); at += kLine) hwy::Prefetch(words + at);
  hwy::Prefetch(next.scales + block * w.scales_per_block());
}

template <BlockForm kForm, size_t kRows, size_t kColumns>
void multiply_columns(const BlockPanels& w, const Columns* columns, const BlockProduct& product, size_t row, float* y,
                      Fetcher& ahead) {
  const Floats f;
  hn::Vec<Floats> totals[kRows][kColumns];
  for (auto& total : totals)
    for (auto& each : total) each = hn::Zero(f);
  const bool is_last = row + kRows == product.rows;
  for (size_t block = 0; block < w.blocks(); ++block) {
    if (is_last)
      for (size_t c = 0; c < kColumns; ++c) prefetch_block(w, columns[kColumns + c], block);
    accumulate_block<kForm, kRows, kColumns>(w, columns, product.x, row, block, totals);
    ahead.step();
  }
  for (size_t r = 0; r < kRows; ++r)
    for (size_t c = 0; c < kColumns; ++c)
      store_totals(w, product, row + r, columns[c].first, columns[c].count, totals[r][c], y);
}

template <BlockForm kForm, size_t kColumns>
void multiply_rows(const BlockPanels& w, const Columns* columns, const BlockProduct& product, float* y,
                   Fetcher& ahead) {
  const size_t rows = product.rows;
  size_t row = 0;
  for (; row + 4 <= rows; row += 4) multiply_columns<kForm, 4, kColumns>(w, columns, product, row, y, ahead);
  if (rows - row == 3) multiply_columns<kForm, 3, kColumns>(w, columns, product, row, y, ahead);
  if (rows - row == 2) multiply_columns<kForm, 2, kColumns>(w, columns, product, row, y, ahead);
  if (rows - row == 1) multiply_columns<kForm, 1, kColumns>(w, columns, product, row, y, ahead);
}

/// What a vector holds of panel number `panel` from lane `lane` on.
HWY_INLINE Columns columns_of(const BlockPanels& w, size_t panel, size_t lane) {
  const size_t first = panel * kBlockPanelRows + lane;
  return {w.codes + panel * w.blocks() * w.words_per_block() + 2 * lane,
          w.scales + panel * w.blocks() * w.scales_per_block() + lane, first,
          std::min(w.n - first, hn::Lanes(Floats()))};
}

template <BlockForm kForm>
void multiply_form(const BlockPanels& w, const BlockTile& tile, const BlockProduct& product, float* y) {
  const size_t lanes = hn::Lanes(Floats());
  // Where a vector is a panel there are registers for the sums of two.
  constexpr size_t kPanels = HWY_MAX_BYTES == 64 ? 2 : 1;
  const size_t last = tile.last_panel;
  size_t panel = tile.first_panel;
  const size_t groups = (last - panel) * kBlockPanelRows / (kPanels * lanes) * ((product.rows + 3) / 4);
  Fetcher ahead(tile.ahead, tile.first_line, tile.last_line, groups * w.blocks());
  for (; kPanels == 2 && panel + 2 <= last; panel += 2) {
    // Those that follow, or the same ones again.
    const size_t next = panel + 4 <= w.panels() ? panel + 2 : panel;
    const Columns columns[] = {columns_of(w, panel, 0), columns_of(w, panel + 1, 0), columns_of(w, next, 0),
                               columns_of(w, next + 1, 0)};
    multiply_rows<kForm, 2>(w, columns, product, y, ahead);
  }
  for (; panel < last; ++panel)
    for (size_t lane = 0; lane < kBlockPanelRows && panel * kBlockPanelRows + lane < w.n; lane += lanes) {
      const size_t next = panel + 1 < w.panels() ? panel + 1 : panel;
      const Columns columns[] = {columns_of(w, panel, lane), columns_of(w, next, 0)};
      multiply_rows<kForm, 1>(w, columns, product, y, ahead);
    }
}

#endif  // HWY_TARGET == HWY_SCALAR

void multiply(const BlockPanels& w, const BlockTile& tile, const BlockProduct& product, float* y) {
  switch (w.form) {
    case BlockForm::kQ4_0: return multiply_form<BlockForm::kQ4_0>(w, tile, product, y);
    case BlockForm::kQ4_1: return multiply_form<BlockForm::kQ4_1>(w, tile, product, y);
    case BlockForm::kQ8_0: return multiply_form<BlockForm::kQ8_0>(w, tile, product, y);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heddle {

HWY_EXPORT(round_rows);
HWY_EXPORT(multiply);

void round_rows_to_16_bits(const float* x, size_t rows, size_t k, const BlockRows16& out) {
  HWY_DYNAMIC_DISPATCH(round_rows)(x, rows, k, out);
}

void multiply_panels(const BlockPanels& w, const BlockTile& tile, const BlockProduct& product, float* y) {
  HWY_DYNAMIC_DISPATCH(multiply)(w, tile, product, y);
}

}  // namespace heddle
#endif  // HWY_ONCE
