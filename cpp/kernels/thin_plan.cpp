#include "kernels/thin_plan.h"

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "hwy/cache_control.h"
#include "kernels/gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/thin_plan.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/bf16-inl.h"

#ifndef HEDDLE_KERNELS_THIN_PLAN_ONCE
#define HEDDLE_KERNELS_THIN_PLAN_ONCE

namespace heddle {
namespace {

// Thin columns are padded to this, a multiple of every register tile.
constexpr size_t kPadding = 16;
// Columns of the wide operand in one tile of work: a multiple of every vector length, and few enough that the smallest
// matrices make several tiles.
constexpr size_t kColumns = 96;
// Rows after which sums go back to memory, so that rows are read a few cache lines at a time.
constexpr size_t kRowBlock = 32;

/// Columns of the wide operand as they lie, and what they are summed with.
struct WideBlock {
  const void* values;
  /// Distance between rows.
  size_t stride;
  size_t rows;
  size_t columns;
  /// [rows, padded]
  const float* thin;
  size_t padded;
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_THIN_PLAN_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using VF = hn::Vec<F>;

// Sums held in registers: one vector of wide columns for so many thin ones.
constexpr size_t kSums = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM ? 16 : 8;

struct Plain {
  using Element = float;
  static HWY_INLINE VF load(const float* at) { return hn::LoadU(F(), at); }
};

struct Rounded {
  using Element = float;
  static HWY_INLINE VF load(const float* at) { return round_to_bf16(F(), hn::LoadU(F(), at)); }
};

struct Half {
  using Element = uint16_t;
  static HWY_INLINE VF load(const uint16_t* at) { return load_bf16(F(), at); }
};

/// sums [kSums, columns], one vector of columns: += rows of wide columns times rows of thin columns.
template <class Form>
HWY_INLINE void add_rows(const typename Form::Element* wide, size_t stride, const float* thin, size_t padded,
                         size_t rows, float* sums, size_t columns) {
  const F d;
  VF sum[kSums];
#pragma GCC unroll 16
  for (size_t j = 0; j < kSums; ++j) sum[j] = hn::LoadU(d, sums + j * columns);
  for (size_t row = 0; row < rows; ++row, wide += stride, thin += padded) {
    // Rows lie too far apart for the hardware to see where the next block of them begins.
    hwy::Prefetch(wide + kRowBlock * stride);
    const VF w = Form::load(wide);
#pragma GCC unroll 16
    for (size_t j = 0; j < kSums; ++j) sum[j] = hn::MulAdd(hn::Set(d, thin[j]), w, sum[j]);
  }
#pragma GCC unroll 16
  for (size_t j = 0; j < kSums; ++j) hn::StoreU(sum[j], d, sums + j * columns);
}

/// sums [padded, columns] = thin^T @ wide
template <class Form>
void sum_columns(const WideBlock& block, float* sums) {
  const auto* wide = static_cast<const typename Form::Element*>(block.values);
  std::fill_n(sums, block.padded * block.columns, 0.0F);
  for (size_t row = 0; row < block.rows; row += kRowBlock) {
    const size_t rows = std::min(kRowBlock, block.rows - row);
    for (size_t column = 0; column < block.columns; column += hn::Lanes(F()))
      for (size_t j = 0; j < block.padded; j += kSums)
        add_rows<Form>(wide + row * block.stride + column, block.stride, block.thin + row * block.padded + j,
                       block.padded, rows, sums + j * block.columns + column, block.columns);
  }
}

void sum_plain(const WideBlock& block, float* sums) { sum_columns<Plain>(block, sums); }
void sum_rounded(const WideBlock& block, float* sums) { sum_columns<Rounded>(block, sums); }
void sum_half(const WideBlock& block, float* sums) { sum_columns<Half>(block, sums); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heddle {
namespace {

HWY_EXPORT(sum_plain);
HWY_EXPORT(sum_rounded);
HWY_EXPORT(sum_half);

// A thin side is not worth more passes over the wide one than this many columns take.
constexpr int64_t kMaxThin = 64;
constexpr int64_t kLeastRows = 64;

/// Elements that f32 sums take as they lie, or round while they are in a register.
void sum_block(const OperandForm& form, bool rounds, const WideBlock& block, float* sums) {
  if (form.from == DType::kBF16)
    HWY_DYNAMIC_DISPATCH(sum_half)(block, sums);
  else if (rounds)
    HWY_DYNAMIC_DISPATCH(sum_rounded)(block, sums);
  else
    HWY_DYNAMIC_DISPATCH(sum_plain)(block, sums);
}

}  // namespace

bool ThinPlan::fits(const Problem& problem) {
  const auto [thin, wide] = std::minmax(problem.m, problem.n);
  return problem.batch == 1 && problem.transpose_a && !problem.transpose_b && thin <= kMaxThin && wide > thin &&
         wide % static_cast<int64_t>(kPadding) == 0 && problem.k >= kLeastRows && problem.addend != Addend::kBias;
}

ThinPlan::ThinPlan(const Problem& problem)
    : problem_(problem),
      rows_(problem.k),
      wide_(std::max(problem.m, problem.n)),
      thin_(std::min(problem.m, problem.n)),
      padded_((thin_ + kPadding - 1) / kPadding * kPadding),
      wide_is_a_(problem.m > problem.n),
      thin_bytes_(aligned(checked_mul(rows_, padded_ * sizeof(float), "matmul"))),
      sum_bytes_(aligned(padded_ * kColumns * sizeof(float))) {}

void ThinPlan::run(const RunArguments& args) const {
  auto* const thin = reinterpret_cast<float*>(args.scratch);
  widen_thin(args.in[wide_is_a_ ? 1 : 0], thin);
  const OperandForm& form = wide_is_a_ ? problem_.form_a : problem_.form_b;
  const auto* wide = args.input<std::byte>(wide_is_a_ ? 0 : 1);
  const float* c = problem_.addend == Addend::kNone ? nullptr : args.input<float>(2);
  float* y = args.output<float>(0);
  args.pool.run((wide_ + kColumns - 1) / kColumns, [&](size_t tile, size_t thread) {
    const size_t first = tile * kColumns;
    const size_t columns = std::min(kColumns, wide_ - first);
    auto* sums = reinterpret_cast<float*>(args.thread_scratch<std::byte>(thread) + thin_bytes_);
    sum_block(form, problem_.precision == Precision::kBF16,
              {wide + first * dtype_size(form.from), wide_, rows_, columns, thin, padded_}, sums);
    store(sums, first, columns, c, y);
  });
}

void ThinPlan::store(const float* sums, size_t first, size_t columns, const float* c, float* y) const {
  const auto place = [&](size_t at, float sum) { y[at] = problem_.alpha * sum + (c != nullptr ? c[at] : 0.0F); };
  if (wide_is_a_) {
    for (size_t i = 0; i < columns; ++i)
      for (size_t j = 0; j < thin_; ++j) place((first + i) * thin_ + j, sums[j * columns + i]);
  } else {
    for (size_t j = 0; j < thin_; ++j)
      for (size_t i = 0; i < columns; ++i) place(j * wide_ + first + i, sums[j * columns + i]);
  }
}

/// The thin operand [rows, thin] as the numbers that are multiplied, in f32 [rows, padded].
void ThinPlan::widen_thin(const void* source, float* target) const {
  const DType from = (wide_is_a_ ? problem_.form_b : problem_.form_a).from;
  const bool rounds = problem_.precision == Precision::kBF16 && from == DType::kF32;
  const OperandForm form{from, DType::kF32, rounds};
  if (padded_ == thin_) return convert_rows(form, source, thin_, rows_, thin_, target);
  std::fill_n(target, rows_ * padded_, 0.0F);
  for (size_t row = 0; row < rows_; ++row)
    convert_rows(form, static_cast<const std::byte*>(source) + row * thin_ * dtype_size(from), thin_, 1, thin_,
                 target + row * padded_);
}

}  // namespace heddle
#endif  // HWY_ONCE
