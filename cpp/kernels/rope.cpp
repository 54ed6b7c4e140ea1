// Rotary position embeddings (Su et al. 2021), half-split: element i turns with element i + d/2, as Hugging Face's
// rotate_half does. A table narrower than d / 2 turns the first elements only (GPT-NeoX, Phi).
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rope.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

/// Rotates the first 2 * half of `dim` elements of `heads` vectors by one position's angles, and copies the rest; x and
/// y may be the same memory.
void rotate(const float* x, const float* cosine, const float* sine, size_t heads, size_t half, size_t dim, bool inverse,
            float* y) {
  const hn::ScalableTag<float> d;
  const size_t n = hn::Lanes(d);
  const auto sign = hn::Set(d, inverse ? -1.0F : 1.0F);
  for (size_t head = 0; head < heads; ++head, x += dim, y += dim) {
    if (x != y) std::copy_n(x + 2 * half, dim - 2 * half, y + 2 * half);
    size_t i = 0;
    for (; i + n <= half; i += n) {
      const auto c = hn::LoadU(d, cosine + i);
      const auto s = hn::Mul(sign, hn::LoadU(d, sine + i));
      const auto low = hn::LoadU(d, x + i);
      const auto high = hn::LoadU(d, x + half + i);
      hn::StoreU(hn::NegMulAdd(high, s, hn::Mul(low, c)), d, y + i);
      hn::StoreU(hn::MulAdd(low, s, hn::Mul(high, c)), d, y + half + i);
    }
    for (; i < half; ++i) {
      const float s = inverse ? -sine[i] : sine[i];
      const float low = x[i];
      const float high = x[half + i];
      y[i] = low * cosine[i] - high * s;
      y[half + i] = high * cosine[i] + low * s;
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

HWY_EXPORT(rotate);

// Elements one tile covers, roughly.
constexpr size_t kTileElements = 16384;

void check_f32(const KernelRequest& request, const Operand& operand, const char* name, const Shape& shape) {
  request.check(operand.present && operand.dtype == DType::kF32 && operand.shape == shape,
                std::string(name) + " f32 " + shape.str(),
                operand.present ? std::string(dtype_name(operand.dtype)) + " " + operand.shape.str() : "nothing");
}

CompiledKernel compile_rope_table(const KernelRequest& request) {
  request.expect_counts(1, 2);
  const Operand& positions = request.inputs[0];
  request.check(positions.present && positions.dtype == DType::kI32 && positions.shape.rank() < Shape::kMaxRank,
                "positions i32", dtype_name(positions.dtype));
  const std::vector<double>& given = request.attributes.numbers("inverse_frequencies");
  const std::vector<float> frequencies(given.begin(), given.end());
  std::vector<int64_t> dims(positions.shape.dims().begin(), positions.shape.dims().end());
  dims.push_back(static_cast<int64_t>(frequencies.size()));
  check_f32(request, request.outputs[0], "cos", Shape(dims));
  check_f32(request, request.outputs[1], "sin", Shape(dims));
  const auto scale = static_cast<float>(request.attributes.number("scale", 1.0));
  const size_t count = positions.shape.count();
  const size_t width = frequencies.size();
  if (count == 0 || width == 0) return {.run = [](const RunArguments&) {}};

  const size_t rows = std::max<size_t>(1, kTileElements / 8 / width);
  return {.run = [frequencies, scale, count, width, rows](const RunArguments& arguments) {
    const int32_t* position = arguments.input<int32_t>(0);
    float* cosine = arguments.output<float>(0);
    float* sine = arguments.output<float>(1);
    arguments.pool.run((count + rows - 1) / rows, [&](size_t tile, size_t) {
      for (size_t row = tile * rows; row < std::min(count, (tile + 1) * rows); ++row) {
        for (size_t i = 0; i < width; ++i) {
          // The angle is rounded to f32, as in the models these tables must agree with; its cosine is exact to f32.
          const double angle = static_cast<float>(position[row]) * frequencies[i];
          cosine[row * width + i] = static_cast<float>(std::cos(angle)) * scale;
          sine[row * width + i] = static_cast<float>(std::sin(angle)) * scale;
        }
      }
    });
  }};
}

CompiledKernel compile_rope(const KernelRequest& request) {
  request.expect_counts(3, 1);
  const Operand& x = request.inputs[0];
  const Operand& table = request.inputs[1];
  request.check(x.present && x.dtype == DType::kF32 && x.shape.rank() == 4, "x f32 [b, t, h, d]", x.shape.str());
  const int64_t table_batch = table.present && table.shape.rank() == 3 ? table.shape[0] : -1;
  request.check(
      (table_batch == 1 || table_batch == x.shape[0]) && table.shape[2] >= 1 && table.shape[2] <= x.shape[3] / 2,
      "cos [b, t, r] or [1, t, r] with 1 <= r <= d/2", table.shape.str());
  const Shape table_shape{table_batch, x.shape[1], table.shape[2]};
  check_f32(request, table, "cos", table_shape);
  check_f32(request, request.inputs[2], "sin", table_shape);
  check_f32(request, request.outputs[0], "y", x.shape);
  const int64_t inverse = request.attributes.integer("inverse", 0);
  request.check(inverse == 0 || inverse == 1, "inverse 0 or 1", std::to_string(inverse));
  if (x.shape.count() == 0) return {.run = [](const RunArguments&) {}};

  const auto length = static_cast<size_t>(x.shape[1]);
  const auto heads = static_cast<size_t>(x.shape[2]);
  const auto dim = static_cast<size_t>(x.shape[3]);
  const auto half = static_cast<size_t>(table.shape[2]);
  const size_t positions = static_cast<size_t>(x.shape[0]) * length;
  const size_t table_rows = static_cast<size_t>(table_batch) * length;
  const size_t rows = std::max<size_t>(1, kTileElements / (heads * dim));
  CompiledKernel kernel;
  kernel.run = [=](const RunArguments& arguments) {
    const size_t stride = heads * dim;
    arguments.pool.run((positions + rows - 1) / rows, [&](size_t tile, size_t) {
      for (size_t row = tile * rows; row < std::min(positions, (tile + 1) * rows); ++row) {
        const size_t angle = row % table_rows * half;
        HWY_DYNAMIC_DISPATCH(rotate)
        (arguments.input<float>(0) + row * stride, arguments.input<float>(1) + angle, arguments.input<float>(2) + angle,
         heads, half, dim, inverse == 1, arguments.output<float>(0) + row * stride);
      }
    });
  };
  kernel.in_place = {{0, 0}};
  return kernel;
}

}  // namespace

void register_rope(KernelTable& table) {
  table["rope_table"] = compile_rope_table;
  table["rope"] = compile_rope;
}

}  // namespace heddle

#endif  // HWY_ONCE
