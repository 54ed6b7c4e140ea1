// Root-mean-square normalisation (Zhang & Sennrich 2019): y = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + eps).
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/row_sum-inl.h"

#ifndef HEDDLE_KERNELS_NORM_ONCE
#define HEDDLE_KERNELS_NORM_ONCE

namespace heddle {
namespace {

// Columns of dw that one tile sums over all rows.
constexpr size_t kColumns = 256;

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_NORM_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using VF = hn::Vec<F>;

void normalise_row(const float* x, const float* w, size_t width, float eps, float* y, float* rstd) {
  const F d;
  const size_t n = hn::Lanes(d);
  const float squares = sum_over(
      width,
      [&](size_t i) {
        const VF v = hn::LoadU(d, x + i);
        return hn::Mul(v, v);
      },
      [&](size_t i) { return x[i] * x[i]; });
  const float scale = 1.0F / std::sqrt(squares / static_cast<float>(width) + eps);
  if (rstd != nullptr) *rstd = scale;
  const VF vector_scale = hn::Set(d, scale);
  size_t i = 0;
  for (; i + n <= width; i += n)
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), vector_scale), hn::LoadU(d, w + i)), d, y + i);
  for (; i < width; ++i) y[i] = x[i] * scale * w[i];
}

/// dx = rstd * (g * w - xhat * mean(g * w * xhat)); g and dx may be the same memory.
void normalise_row_vjp(const float* x, const float* w, float rstd, const float* g, size_t width, float* dx) {
  const F d;
  const size_t n = hn::Lanes(d);
  const float dot = sum_over(
      width, [&](size_t i) { return hn::Mul(hn::Mul(hn::LoadU(d, g + i), hn::LoadU(d, w + i)), hn::LoadU(d, x + i)); },
      [&](size_t i) { return g[i] * w[i] * x[i]; });
  const float pull = rstd * rstd * dot / static_cast<float>(width);
  const VF vector_rstd = hn::Set(d, rstd);
  const VF vector_pull = hn::Set(d, pull);
  size_t i = 0;
  for (; i + n <= width; i += n) {
    const VF gw = hn::Mul(hn::LoadU(d, g + i), hn::LoadU(d, w + i));
    hn::StoreU(hn::Mul(vector_rstd, hn::NegMulAdd(hn::LoadU(d, x + i), vector_pull, gw)), d, dx + i);
  }
  for (; i < width; ++i) dx[i] = rstd * (g[i] * w[i] - x[i] * pull);
}

/// dw = sum over rows of g * x * rstd, for columns [begin, end); rows are summed in chunks, and the chunks in order,
/// which keeps the rounding error of long sums small.
void weight_gradient(const float* x, const float* rstd, const float* g, size_t rows, size_t width, size_t begin,
                     size_t end, float* dw) {
  constexpr size_t kChunk = 64;
  const F d;
  const size_t n = hn::Lanes(d);
  HWY_ALIGN float partial[kColumns];
  const size_t columns = end - begin;
  std::fill_n(dw + begin, columns, 0.0F);
  for (size_t first = 0; first < rows; first += kChunk) {
    std::fill_n(partial, columns, 0.0F);
    for (size_t row = first; row < HWY_MIN(rows, first + kChunk); ++row) {
      const float* x_row = x + row * width + begin;
      const float* g_row = g + row * width + begin;
      const VF scale = hn::Set(d, rstd[row]);
      size_t i = 0;
      for (; i + n <= columns; i += n) {
        const VF product = hn::Mul(scale, hn::LoadU(d, x_row + i));
        hn::Store(hn::MulAdd(product, hn::LoadU(d, g_row + i), hn::Load(d, partial + i)), d, partial + i);
      }
      for (; i < columns; ++i) partial[i] += rstd[row] * x_row[i] * g_row[i];
    }
    for (size_t i = 0; i < columns; ++i) dw[begin + i] += partial[i];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(normalise_row);
HWY_EXPORT(normalise_row_vjp);
HWY_EXPORT(weight_gradient);

constexpr size_t kTileElements = 16384;

struct Rows {
  size_t count = 0, width = 0, per_tile = 1;
  size_t tiles() const { return (count + per_tile - 1) / per_tile; }
};

void check_f32(const KernelRequest& request, const Operand& operand, const char* name, const Shape& shape) {
  request.check(operand.present && operand.dtype == DType::kF32 && operand.shape == shape,
                std::string(name) + " f32 " + shape.str(),
                operand.present ? std::string(dtype_name(operand.dtype)) + " " + operand.shape.str() : "nothing");
}

/// Checks x and w (the first two inputs).
Rows read_rows(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  request.check(x.present && x.dtype == DType::kF32 && x.shape.rank() >= 1, "x f32 [..., d]", x.shape.str());
  check_f32(request, request.inputs[1], "w", Shape{x.shape.back(0)});
  Rows rows;
  if (x.shape.count() == 0) return rows;
  rows.width = static_cast<size_t>(x.shape.back(0));
  rows.count = x.shape.count() / rows.width;
  rows.per_tile = std::max<size_t>(1, kTileElements / rows.width);
  return rows;
}

/// The shape of rstd: that of x without its last dimension.
Shape row_shape(const Shape& x) { return Shape(x.dims().first(x.rank() - 1)); }

CompiledKernel compile_rms_norm(const KernelRequest& request) {
  request.expect_counts(2, 2);
  const Rows rows = read_rows(request);
  const Shape& shape = request.inputs[0].shape;
  check_f32(request, request.outputs[0], "y", shape);
  if (request.outputs[1].present) check_f32(request, request.outputs[1], "rstd", row_shape(shape));
  request.check(shape.back(0) >= 1, "rows of at least one element", shape.str());
  const auto eps = static_cast<float>(request.attributes.number("eps"));

  return {.run = [rows, eps](const RunArguments& arguments) {
    arguments.pool.run(rows.tiles(), [&](size_t tile, size_t) {
      const float* w = arguments.input<float>(1);
      float* rstd = arguments.output<float>(1);
      for (size_t row = tile * rows.per_tile; row < std::min(rows.count, (tile + 1) * rows.per_tile); ++row) {
        const size_t at = row * rows.width;
        HWY_DYNAMIC_DISPATCH(normalise_row)
        (arguments.input<float>(0) + at, w, rows.width, eps, arguments.output<float>(0) + at,
         rstd == nullptr ? nullptr : rstd + row);
      }
    });
  }};
}

CompiledKernel compile_rms_norm_vjp(const KernelRequest& request) {
  request.expect_counts(4, 2);
  const Rows rows = read_rows(request);
  const Shape& shape = request.inputs[0].shape;
  check_f32(request, request.inputs[2], "rstd", row_shape(shape));
  check_f32(request, request.inputs[3], "g", shape);
  if (request.outputs[0].present) check_f32(request, request.outputs[0], "dx", shape);
  if (request.outputs[1].present) check_f32(request, request.outputs[1], "dw", request.inputs[1].shape);
  request.check(shape.back(0) >= 1, "rows of at least one element", shape.str());
  const auto width = static_cast<size_t>(shape.back(0));

  CompiledKernel kernel;
  kernel.run = [rows, width](const RunArguments& arguments) {
    const float* x = arguments.input<float>(0);
    const float* w = arguments.input<float>(1);
    const float* rstd = arguments.input<float>(2);
    const float* g = arguments.input<float>(3);
    // dw first: dx may overwrite g.
    if (float* dw = arguments.output<float>(1); dw != nullptr) {
      arguments.pool.run((width + kColumns - 1) / kColumns, [&](size_t tile, size_t) {
        const size_t begin = tile * kColumns;
        HWY_DYNAMIC_DISPATCH(weight_gradient)
        (x, rstd, g, rows.count, width, begin, std::min(width, begin + kColumns), dw);
      });
    }
    float* dx = arguments.output<float>(0);
    if (dx == nullptr) return;
    arguments.pool.run(rows.tiles(), [&](size_t tile, size_t) {
      for (size_t row = tile * rows.per_tile; row < std::min(rows.count, (tile + 1) * rows.per_tile); ++row) {
        const size_t at = row * rows.width;
        HWY_DYNAMIC_DISPATCH(normalise_row_vjp)(x + at, w, rstd[row], g + at, rows.width, dx + at);
      }
    });
  };
  kernel.in_place = {{3, 0}};
  return kernel;
}

}  // namespace

void register_norm(KernelTable& table) {
  table["rms_norm"] = compile_rms_norm;
  table["rms_norm_vjp"] = compile_rms_norm_vjp;
}

}  // namespace heddle

#endif  // HWY_ONCE
