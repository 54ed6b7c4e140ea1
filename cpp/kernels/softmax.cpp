// Softmax, its gradient, and the logarithm of a sum of exponentials, over the last axis. The maximum is taken off
// first, so that no exponential overflows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/softmax.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/vector_math-inl.h"

#ifndef HEDDLE_KERNELS_SOFTMAX_ONCE
#define HEDDLE_KERNELS_SOFTMAX_ONCE

#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

#endif  // HEDDLE_KERNELS_SOFTMAX_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using VF = hn::Vec<F>;

constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// The largest element; a NaN is the result of any row that has one.
HWY_INLINE float row_maximum(const float* x, size_t width) {
  const F d;
  const size_t n = hn::Lanes(d);
  VF top = hn::Set(d, kLowest);
  VF nan = hn::Zero(d);
  size_t i = 0;
  for (; i + n <= width; i += n) {
    const VF value = hn::LoadU(d, x + i);
    top = hn::Max(top, value);
    nan = hn::IfThenElse(hn::IsNaN(value), value, nan);
  }
  float best = hn::GetLane(hn::MaxOfLanes(d, top));
  if (!hn::AllFalse(d, hn::IsNaN(nan))) return std::numeric_limits<float>::quiet_NaN();
  for (; i < width; ++i) {
    if (x[i] != x[i]) return x[i];
    best = x[i] > best ? x[i] : best;
  }
  return best;
}

/// Sum of e^(x - shift); y, where given, gets the terms.
template <bool kStore>
HWY_INLINE float sum_exponentials(const float* x, float shift, size_t width, float* y) {
  const F d;
  const size_t n = hn::Lanes(d);
  const VF vector_shift = hn::Set(d, shift);
  VF total = hn::Zero(d);
  size_t i = 0;
  for (; i + n <= width; i += n) {
    const VF term = vector_exp(d, hn::Sub(hn::LoadU(d, x + i), vector_shift));
    if constexpr (kStore) hn::StoreU(term, d, y + i);
    total = hn::Add(total, term);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, total));
  if (i == width) return sum;
  HWY_ALIGN float tail[16];
  for (size_t k = 0; k < 16; ++k) tail[k] = i + k < width ? x[i + k] : shift;
  for (size_t k = 0; i + k < width; k += n)
    hn::Store(vector_exp(d, hn::Sub(hn::Load(d, tail + k), vector_shift)), d, tail + k);
  for (size_t k = 0; i + k < width; ++k) {
    if constexpr (kStore) y[i + k] = tail[k];
    sum += tail[k];
  }
  return sum;
}

HWY_INLINE void scale_row(float* y, float factor, size_t width) {
  const F d;
  const size_t n = hn::Lanes(d);
  const VF vector_factor = hn::Set(d, factor);
  size_t i = 0;
  for (; i + n <= width; i += n) hn::StoreU(hn::Mul(hn::LoadU(d, y + i), vector_factor), d, y + i);
  for (; i < width; ++i) y[i] *= factor;
}

/// x and y may be the same memory.
void softmax_rows(const float* x, float* y, size_t width, size_t begin, size_t end) {
  for (size_t row = begin; row < end; ++row) {
    const float* from = x + row * width;
    float* to = y + row * width;
    const float top = row_maximum(from, width);
    scale_row(to, 1.0F / sum_exponentials<true>(from, top, width, to), width);
  }
}

void log_sum_exp_rows(const float* x, float* y, size_t width, size_t begin, size_t end) {
  for (size_t row = begin; row < end; ++row) {
    const float top = row_maximum(x + row * width, width);
    // A row of -inf alone sums up to e^-inf = 0; inf - inf would be NaN.
    y[row] = std::isinf(top) ? top : top + std::log(sum_exponentials<false>(x + row * width, top, width, nullptr));
  }
}

/// dx = y * (g - sum(g * y)); g and dx may be the same memory.
void softmax_vjp_rows(const float* y, const float* g, float* dx, size_t width, size_t begin, size_t end) {
  const F d;
  const size_t n = hn::Lanes(d);
  for (size_t row = begin; row < end; ++row) {
    const float* probability = y + row * width;
    const float* gradient = g + row * width;
    float* to = dx + row * width;
    VF total = hn::Zero(d);
    size_t i = 0;
    for (; i + n <= width; i += n) total = hn::MulAdd(hn::LoadU(d, probability + i), hn::LoadU(d, gradient + i), total);
    float dot = hn::GetLane(hn::SumOfLanes(d, total));
    for (; i < width; ++i) dot += probability[i] * gradient[i];
    const VF vector_dot = hn::Set(d, dot);
    for (i = 0; i + n <= width; i += n)
      hn::StoreU(hn::Mul(hn::LoadU(d, probability + i), hn::Sub(hn::LoadU(d, gradient + i), vector_dot)), d, to + i);
    for (; i < width; ++i) to[i] = probability[i] * (gradient[i] - dot);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(softmax_rows);
HWY_EXPORT(softmax_vjp_rows);
HWY_EXPORT(log_sum_exp_rows);

CompiledKernel compile_softmax(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const RowShape shape = read_row_shape(request, request.inputs[0]);
  check_operand(request, request.outputs[0], "y", DType::kF32, request.inputs[0].shape);
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [shape](const RunArguments& arguments) {
    for_row_ranges(arguments.pool, shape.count, rows_per_tile(shape.width), [&](size_t begin, size_t end) {
      HWY_DYNAMIC_DISPATCH(softmax_rows)
      (arguments.input<float>(0), arguments.output<float>(0), shape.width, begin, end);
    });
  };
  return kernel;
}

CompiledKernel compile_softmax_vjp(const KernelRequest& request) {
  request.expect_counts(2, 1);
  const RowShape shape = read_row_shape(request, request.inputs[0]);
  check_operand(request, request.inputs[1], "g", DType::kF32, request.inputs[0].shape);
  check_operand(request, request.outputs[0], "dx", DType::kF32, request.inputs[0].shape);
  CompiledKernel kernel;
  kernel.in_place = {{1, 0}};
  kernel.run = [shape](const RunArguments& arguments) {
    for_row_ranges(arguments.pool, shape.count, rows_per_tile(shape.width), [&](size_t begin, size_t end) {
      HWY_DYNAMIC_DISPATCH(softmax_vjp_rows)
      (arguments.input<float>(0), arguments.input<float>(1), arguments.output<float>(0), shape.width, begin, end);
    });
  };
  return kernel;
}

CompiledKernel compile_log_sum_exp(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const RowShape shape = read_row_shape(request, request.inputs[0]);
  check_operand(request, request.outputs[0], "y", DType::kF32, shape.leading);
  return {.run = [shape](const RunArguments& arguments) {
    for_row_ranges(arguments.pool, shape.count, rows_per_tile(shape.width), [&](size_t begin, size_t end) {
      HWY_DYNAMIC_DISPATCH(log_sum_exp_rows)
      (arguments.input<float>(0), arguments.output<float>(0), shape.width, begin, end);
    });
  }};
}

}  // namespace

void register_softmax(KernelTable& table) {
  table["softmax"] = compile_softmax;
  table["softmax_vjp"] = compile_softmax_vjp;
  table["log_sum_exp"] = compile_log_sum_exp;
}

}  // namespace heddle

#endif  // HWY_ONCE
