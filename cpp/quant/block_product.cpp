// The product of a BlockMatrix with rows of 16-bit codes.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/block_product.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_QUANT_BLOCK_PRODUCT_ONCE
#define HEDDLE_QUANT_BLOCK_PRODUCT_ONCE

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/dtype.h"
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

/// Columns of one panel for `kRows` rows from `row` on.
template <BlockForm kForm, size_t kRows>
void multiply_panel(const BlockPanels& w, size_t panel, const BlockProduct& product, size_t row, float* y) {
  for (size_t column = panel * kBlockPanelRows; column < std::min(w.n, (panel + 1) * kBlockPanelRows); ++column) {
    for (size_t r = row; r < row + kRows; ++r) {
      const float result = product.alpha * multiply_element<kForm>(w, panel, column % kBlockPanelRows, product.x, r);
      const float* add = product.addend == nullptr ? nullptr : product.addend + (product.full ? r * w.n : 0) + column;
      y[r * w.n + column] = add == nullptr ? result : result + *add;
    }
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

template <BlockForm kForm, size_t kRows>
HWY_INLINE void accumulate_block(const BlockPanels& w, const uint16_t* words, const uint16_t* scales,
                                 const BlockRows16& x, size_t row, size_t block, hn::Vec<Floats> (&totals)[kRows]) {
  constexpr size_t kPairs = kForm == BlockForm::kQ8_0 ? 2 : 4;
  const Words d;
  const Sums s;
  const Floats f;
  const int16_t* codes[kRows];
  // ReorderWidenMulAccumulate may leave half of the pairs in the second sum.
  hn::Vec<Sums> even[kRows];
  hn::Vec<Sums> odd[kRows];
  for (size_t r = 0; r < kRows; ++r) {
    codes[r] = x.codes + (row + r) * w.k + block * kBlockLength;
    even[r] = odd[r] = hn::Zero(s);
  }
  for (size_t vector = 0; vector < kBlockLength / (2 * kPairs); ++vector) {
    const auto packed = hn::LoadU(d, reinterpret_cast<const int16_t*>(words) + vector * 2 * kBlockPanelRows);
    const size_t at = vector * 2 * kPairs;
    const auto add = [&](hn::Vec<Words> values, size_t pair) HWY_ATTR {
      for (size_t r = 0; r < kRows; ++r)
        even[r] = hn::ReorderWidenMulAccumulate(s, values, broadcast_pair(codes[r] + at + 2 * pair), even[r], odd[r]);
    };
    add(unpack<kForm, 0>(packed), 0);
    add(unpack<kForm, 1>(packed), 1);
    if constexpr (kPairs == 4) {
      add(unpack<kForm, 2>(packed), 2);
      add(unpack<kForm, 3>(packed), 3);
    }
  }
  const auto scale = from_half(scales);
  for (size_t r = 0; r < kRows; ++r) {
    const size_t at = (row + r) * w.blocks() + block;
    const auto sum = hn::ConvertTo(f, hn::RearrangeToOddPlusEven(even[r], odd[r]));
    totals[r] = hn::MulAdd(hn::Mul(scale, hn::Set(f, x.scales[at])), sum, totals[r]);
    if constexpr (kForm == BlockForm::kQ4_0)
      totals[r] = hn::MulAdd(hn::Mul(scale, hn::Set(f, -8.0F)), hn::Set(f, x.sums[at]), totals[r]);
    if constexpr (kForm == BlockForm::kQ4_1)
      totals[r] = hn::MulAdd(from_half(scales + kBlockPanelRows), hn::Set(f, x.sums[at]), totals[r]);
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

/// Columns of one panel for `kRows` rows from `row` on.
template <BlockForm kForm, size_t kRows>
void multiply_panel(const BlockPanels& w, size_t panel, const BlockProduct& product, size_t row, float* y) {
  const Floats f;
  const size_t first = panel * kBlockPanelRows;
  const size_t lanes = std::min(kBlockPanelRows, w.n - first);
  const uint16_t* words = w.codes + panel * w.blocks() * w.words_per_block();
  const uint16_t* scales = w.scales + panel * w.blocks() * w.scales_per_block();
  for (size_t lane = 0; lane < lanes; lane += hn::Lanes(f)) {
    hn::Vec<Floats> totals[kRows];
    for (auto& total : totals) total = hn::Zero(f);
    for (size_t block = 0; block < w.blocks(); ++block)
      accumulate_block<kForm, kRows>(w, words + block * w.words_per_block() + 2 * lane,
                                     scales + block * w.scales_per_block() + lane, product.x, row, block, totals);
    for (size_t r = 0; r < kRows; ++r)
      store_totals(w, product, row + r, first + lane, std::min(lanes - lane, hn::Lanes(f)), totals[r], y);
  }
}

#endif  // HWY_TARGET == HWY_SCALAR

template <BlockForm kForm>
void multiply_form(const BlockPanels& w, size_t first, size_t last, const BlockProduct& product, float* y) {
  const size_t rows = product.rows;
  for (size_t panel = first; panel < last; ++panel) {
    size_t row = 0;
    for (; row + 4 <= rows; row += 4) multiply_panel<kForm, 4>(w, panel, product, row, y);
    if (rows - row == 3) multiply_panel<kForm, 3>(w, panel, product, row, y);
    if (rows - row == 2) multiply_panel<kForm, 2>(w, panel, product, row, y);
    if (rows - row == 1) multiply_panel<kForm, 1>(w, panel, product, row, y);
  }
}

void multiply(const BlockPanels& w, size_t first, size_t last, const BlockProduct& product, float* y) {
  switch (w.form) {
    case BlockForm::kQ4_0: return multiply_form<BlockForm::kQ4_0>(w, first, last, product, y);
    case BlockForm::kQ4_1: return multiply_form<BlockForm::kQ4_1>(w, first, last, product, y);
    case BlockForm::kQ8_0: return multiply_form<BlockForm::kQ8_0>(w, first, last, product, y);
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

void multiply_panels(const BlockPanels& w, size_t first, size_t last, const BlockProduct& product, float* y) {
  HWY_DYNAMIC_DISPATCH(multiply)(w, first, last, product, y);
}

}  // namespace heddle
#endif  // HWY_ONCE
