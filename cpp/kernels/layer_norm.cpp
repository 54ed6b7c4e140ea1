// Layer normalisation (Ba et al. 2016, arXiv 1607.06450): y = (x - mean) * rstd * w + b with
// rstd = 1 / sqrt(mean((x - mean)^2) + eps), over the last axis.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/layer_norm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/row_sum-inl.h"

#ifndef HEDDLE_KERNELS_LAYER_NORM_ONCE
#define HEDDLE_KERNELS_LAYER_NORM_ONCE

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

namespace heddle {
namespace {

// Columns of dw and db that one tile sums over all rows.
constexpr size_t kColumns = 256;

/// Operands of the forward pass; w, b, mean and rstd may be null.
struct LayerNormRows {
  const float *x, *w, *b;
  float *y, *mean, *rstd;
  size_t width;
  float eps;
};

/// Operands of the gradient with respect to x; w may be null; g and dx may be the same memory.
struct LayerNormVjpRows {
  const float *x, *w, *mean, *rstd, *g;
  float* dx;
  size_t width;
};

/// Operands of the gradients with respect to w and b, either of which may be null.
struct LayerNormColumns {
  const float *x, *mean, *rstd, *g;
  size_t rows, width;
  float *dw, *db;
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_LAYER_NORM_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using VF = hn::Vec<F>;

/// The affine part is chosen at compile time, so that the loop over a row has no branches.
template <bool kWeight, bool kBias>
HWY_INLINE void scale_row(const LayerNormRows& rows, const float* x, float mean, float rstd, float* y) {
  const F d;
  const size_t n = hn::Lanes(d);
  const VF vector_mean = hn::Set(d, mean);
  const VF vector_rstd = hn::Set(d, rstd);
  size_t i = 0;
  for (; i + n <= rows.width; i += n) {
    VF value = hn::Mul(hn::Sub(hn::LoadU(d, x + i), vector_mean), vector_rstd);
    if constexpr (kWeight && kBias)
      value = hn::MulAdd(value, hn::LoadU(d, rows.w + i), hn::LoadU(d, rows.b + i));
    else if constexpr (kWeight)
      value = hn::Mul(value, hn::LoadU(d, rows.w + i));
    else if constexpr (kBias)
      value = hn::Add(value, hn::LoadU(d, rows.b + i));
    hn::StoreU(value, d, y + i);
  }
  for (; i < rows.width; ++i) {
    float value = (x[i] - mean) * rstd;
    if constexpr (kWeight) value *= rows.w[i];
    if constexpr (kBias) value += rows.b[i];
    y[i] = value;
  }
}

void normalise_rows(const LayerNormRows& rows, size_t begin, size_t end) {
  const F d;
  const auto width = static_cast<float>(rows.width);
  for (size_t row = begin; row < end; ++row) {
    const float* x = rows.x + row * rows.width;
    float* y = rows.y + row * rows.width;
    const float mean = sum_over(
                           rows.width, [&](size_t i) { return hn::LoadU(d, x + i); }, [&](size_t i) { return x[i]; }) /
                       width;
    const VF vector_mean = hn::Set(d, mean);
    // Around the mean: a large mean would take all the precision of mean(x^2) - mean^2.
    const float squares = sum_over(
        rows.width,
        [&](size_t i) {
          const VF v = hn::Sub(hn::LoadU(d, x + i), vector_mean);
          return hn::Mul(v, v);
        },
        [&](size_t i) { return (x[i] - mean) * (x[i] - mean); });
    const float rstd = 1.0F / std::sqrt(squares / width + rows.eps);
    if (rows.mean != nullptr) rows.mean[row] = mean;
    if (rows.rstd != nullptr) rows.rstd[row] = rstd;
    if (rows.w != nullptr && rows.b != nullptr)
      scale_row<true, true>(rows, x, mean, rstd, y);
    else if (rows.w != nullptr)
      scale_row<true, false>(rows, x, mean, rstd, y);
    else if (rows.b != nullptr)
      scale_row<false, true>(rows, x, mean, rstd, y);
    else
      scale_row<false, false>(rows, x, mean, rstd, y);
  }
}

/// dx = rstd * (g w - mean(g w) - xhat * mean(g w xhat)).
template <bool kWeight>
HWY_INLINE void normalise_row_vjp(const LayerNormVjpRows& rows, size_t row) {
  const F d;
  const size_t n = hn::Lanes(d);
  const float* x = rows.x + row * rows.width;
  const float* g = rows.g + row * rows.width;
  float* dx = rows.dx + row * rows.width;
  const float mean = rows.mean[row];
  const float rstd = rows.rstd[row];
  const VF vector_mean = hn::Set(d, mean);
  const auto weighted = [&](size_t i) {
    const VF value = hn::LoadU(d, g + i);
    if constexpr (kWeight) return hn::Mul(value, hn::LoadU(d, rows.w + i));
    return value;
  };
  const auto weighted_scalar = [&](size_t i) {
    if constexpr (kWeight) return g[i] * rows.w[i];
    return g[i];
  };
  const float total = sum_over(rows.width, weighted, weighted_scalar);
  const float dot = sum_over(
      rows.width, [&](size_t i) { return hn::Mul(weighted(i), hn::Sub(hn::LoadU(d, x + i), vector_mean)); },
      [&](size_t i) { return weighted_scalar(i) * (x[i] - mean); });
  const float shift = total / static_cast<float>(rows.width);
  const float pull = rstd * rstd * dot / static_cast<float>(rows.width);
  const VF vector_shift = hn::Set(d, shift);
  const VF vector_pull = hn::Set(d, pull);
  const VF vector_rstd = hn::Set(d, rstd);
  size_t i = 0;
  for (; i + n <= rows.width; i += n) {
    const VF centred = hn::Sub(hn::LoadU(d, x + i), vector_mean);
    const VF value = hn::NegMulAdd(centred, vector_pull, hn::Sub(weighted(i), vector_shift));
    hn::StoreU(hn::Mul(vector_rstd, value), d, dx + i);
  }
  for (; i < rows.width; ++i) dx[i] = rstd * (weighted_scalar(i) - shift - (x[i] - mean) * pull);
}

void normalise_rows_vjp(const LayerNormVjpRows& rows, size_t begin, size_t end) {
  for (size_t row = begin; row < end; ++row) {
    if (rows.w != nullptr)
      normalise_row_vjp<true>(rows, row);
    else
      normalise_row_vjp<false>(rows, row);
  }
}

/// dw = sum over rows of g * (x - mean) * rstd and db = sum over rows of g, for columns [begin, end); rows are summed
/// in chunks, and the chunks in order, which keeps the rounding error of long sums small.
void parameter_gradients(const LayerNormColumns& of, size_t begin, size_t end) {
  constexpr size_t kChunk = 64;
  const F d;
  const size_t n = hn::Lanes(d);
  HWY_ALIGN float products[kColumns];
  HWY_ALIGN float sums[kColumns];
  const size_t columns = end - begin;
  if (of.dw != nullptr) std::fill_n(of.dw + begin, columns, 0.0F);
  if (of.db != nullptr) std::fill_n(of.db + begin, columns, 0.0F);
  for (size_t first = 0; first < of.rows; first += kChunk) {
    std::fill_n(products, columns, 0.0F);
    std::fill_n(sums, columns, 0.0F);
    for (size_t row = first; row < HWY_MIN(of.rows, first + kChunk); ++row) {
      const float* x = of.x + row * of.width + begin;
      const float* g = of.g + row * of.width + begin;
      const VF mean = hn::Set(d, of.mean[row]);
      const VF rstd = hn::Set(d, of.rstd[row]);
      size_t i = 0;
      for (; i + n <= columns; i += n) {
        const VF gradient = hn::LoadU(d, g + i);
        const VF hat = hn::Mul(hn::Sub(hn::LoadU(d, x + i), mean), rstd);
        hn::Store(hn::MulAdd(hat, gradient, hn::Load(d, products + i)), d, products + i);
        hn::Store(hn::Add(gradient, hn::Load(d, sums + i)), d, sums + i);
      }
      for (; i < columns; ++i) {
        products[i] += (x[i] - of.mean[row]) * of.rstd[row] * g[i];
        sums[i] += g[i];
      }
    }
    for (size_t i = 0; i < columns; ++i) {
      if (of.dw != nullptr) of.dw[begin + i] += products[i];
      if (of.db != nullptr) of.db[begin + i] += sums[i];
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(normalise_rows);
HWY_EXPORT(normalise_rows_vjp);
HWY_EXPORT(parameter_gradients);

CompiledKernel compile_layer_norm(const KernelRequest& request) {
  request.expect_counts(3, 3);
  const Operand& x = request.inputs[0];
  const RowShape shape = read_row_shape(request, x);
  const Shape parameter{x.shape.back(0)};
  check_optional(request, request.inputs[1], "weight", DType::kF32, parameter);
  check_optional(request, request.inputs[2], "bias", DType::kF32, parameter);
  check_operand(request, request.outputs[0], "y", DType::kF32, x.shape);
  check_optional(request, request.outputs[1], "mean", DType::kF32, shape.leading);
  check_optional(request, request.outputs[2], "rstd", DType::kF32, shape.leading);
  const auto eps = static_cast<float>(request.attributes.number("eps"));

  return {.run = [shape, eps](const RunArguments& arguments) {
    const LayerNormRows rows{arguments.input<float>(0),
                             arguments.input<float>(1),
                             arguments.input<float>(2),
                             arguments.output<float>(0),
                             arguments.output<float>(1),
                             arguments.output<float>(2),
                             shape.width,
                             eps};
    for_row_ranges(arguments.pool, shape.count, rows_per_tile(shape.width), [&](size_t begin, size_t end) {
      HWY_DYNAMIC_DISPATCH(normalise_rows)(rows, begin, end);
    });
  }};
}

CompiledKernel compile_layer_norm_vjp(const KernelRequest& request) {
  request.expect_counts(5, 3);
  const Operand& x = request.inputs[0];
  const RowShape shape = read_row_shape(request, x);
  const Shape parameter{x.shape.back(0)};
  check_optional(request, request.inputs[1], "weight", DType::kF32, parameter);
  check_operand(request, request.inputs[2], "mean", DType::kF32, shape.leading);
  check_operand(request, request.inputs[3], "rstd", DType::kF32, shape.leading);
  check_operand(request, request.inputs[4], "g", DType::kF32, x.shape);
  check_optional(request, request.outputs[0], "dx", DType::kF32, x.shape);
  check_optional(request, request.outputs[1], "dw", DType::kF32, parameter);
  check_optional(request, request.outputs[2], "db", DType::kF32, parameter);

  CompiledKernel kernel;
  kernel.run = [shape](const RunArguments& arguments) {
    const auto* x = arguments.input<float>(0);
    const auto* mean = arguments.input<float>(2);
    const auto* rstd = arguments.input<float>(3);
    const auto* g = arguments.input<float>(4);
    // The parameters' gradients first: dx may overwrite g.
    const LayerNormColumns columns{
        x, mean, rstd, g, shape.count, shape.width, arguments.output<float>(1), arguments.output<float>(2)};
    if (columns.dw != nullptr || columns.db != nullptr)
      for_row_ranges(arguments.pool, shape.width, kColumns, [&](size_t begin, size_t end) {
        HWY_DYNAMIC_DISPATCH(parameter_gradients)(columns, begin, end);
      });
    auto* dx = arguments.output<float>(0);
    if (dx == nullptr) return;
    const LayerNormVjpRows rows{x, arguments.input<float>(1), mean, rstd, g, dx, shape.width};
    for_row_ranges(arguments.pool, shape.count, rows_per_tile(shape.width), [&](size_t begin, size_t end) {
      HWY_DYNAMIC_DISPATCH(normalise_rows_vjp)(rows, begin, end);
    });
  };
  kernel.in_place = {{4, 0}};
  return kernel;
}

}  // namespace

void register_layer_norm(KernelTable& table) {
  table["layer_norm"] = compile_layer_norm;
  table["layer_norm_vjp"] = compile_layer_norm_vjp;
}

}  // namespace heddle

#endif  // HWY_ONCE
