// `max_pool2d`, and `resample`: a sparse matrix along one axis, which is average pooling, adaptive pooling and every
// kind of interpolation, and whose adjoint is the transposed matrix.
#include <array>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"
#include "kernels/window.h"

namespace heddle {
namespace {

/// The taps of one window that lie in the image.
struct Taps {
  int64_t first, last;  // positions, the last one included; last < first when there is none
};

Taps taps_of(const WindowAxis& axis, int64_t output) {
  int64_t first = output * axis.stride - axis.before;
  if (first < 0) first += (-first + axis.dilation - 1) / axis.dilation * axis.dilation;
  return {first, std::min(output * axis.stride - axis.before + axis.reach() - 1, axis.input - 1)};
}

/// Maximum and its place; NaN is the largest value. A window that misses the image gives -inf.
template <class T>
void pool_image(const Window& window, const T* x, T* y, int32_t* place) {
  for (int64_t oy = 0; oy < window.y.output; ++oy) {
    const Taps rows = taps_of(window.y, oy);
    for (int64_t ox = 0; ox < window.x.output; ++ox) {
      const Taps columns = taps_of(window.x, ox);
      T best = -std::numeric_limits<T>::infinity();
      int64_t at =
          std::min(rows.first, window.y.input - 1) * window.x.input + std::min(columns.first, window.x.input - 1);
      for (int64_t row = rows.first; row <= rows.last; row += window.y.dilation)
        for (int64_t column = columns.first; column <= columns.last; column += window.x.dilation) {
          const T value = x[row * window.x.input + column];
          if (!(value > best) && value == value) continue;
          best = value;
          at = row * window.x.input + column;
        }
      const int64_t to = oy * window.x.output + ox;
      y[to] = best;
      if (place != nullptr) place[to] = static_cast<int32_t>(at);
    }
  }
}

CompiledKernel compile_max_pool2d(const KernelRequest& request) {
  request.expect_counts(1, 2);
  const Operand& x = request.inputs[0];
  const Operand& y = request.outputs[0];
  check_float(request, x, "x");
  const auto& size = request.attributes.integers("size");
  request.check(size.size() == 2, "a size [kh, kw]", std::to_string(size.size()));
  const Window window = read_window(request, x.shape, size[0], size[1], y.shape);
  const int64_t pixels = window.y.input * window.x.input;
  request.check(pixels <= std::numeric_limits<int32_t>::max(), "images of fewer than 2^31 pixels", x.shape.str());
  request.check(x.shape[0] == y.shape[0] && x.shape[1] == y.shape[1], "as many images and channels", y.shape.str());
  check_operand(request, y, "y", x.dtype, y.shape);
  check_optional(request, request.outputs[1], "index", DType::kI32, y.shape);
  const size_t planes = x.shape.count(0, 2);
  return {.run = [window, planes, pixels, dtype = x.dtype](const RunArguments& arguments) {
    const int64_t results = window.y.output * window.x.output;
    const auto work = static_cast<size_t>(results * std::min<int64_t>(window.y.size * window.x.size, pixels));
    auto* places = arguments.output<int32_t>(1);
    with_float(dtype, [&](auto element) {
      using T = decltype(element);
      for_row_ranges(arguments.pool, planes, rows_per_tile(work), [&](size_t begin, size_t end) {
        for (size_t plane = begin; plane < end; ++plane)
          pool_image(window, arguments.input<T>(0) + plane * static_cast<size_t>(pixels),
                     arguments.output<T>(0) + plane * static_cast<size_t>(results),
                     places == nullptr ? nullptr : places + plane * static_cast<size_t>(results));
      });
    });
  }};
}

/// Row i of the matrix: weights[k] at columns[k] for k in [offsets[i], offsets[i + 1]).
struct SparseRows {
  std::vector<size_t> offsets, columns;
  std::vector<double> weights;
};

SparseRows read_matrix(const KernelRequest& request, size_t rows, size_t limit) {
  SparseRows matrix;
  const auto& offsets = request.attributes.integers("offsets");
  const auto& columns = request.attributes.integers("columns");
  const auto& weights = request.attributes.numbers("weights");
  request.check(offsets.size() == rows + 1 && weights.size() == columns.size(),
                "an offset for each of " + std::to_string(rows) + " rows and a weight for each column",
                std::to_string(offsets.size()) + " offsets");
  int64_t previous = 0;
  for (const int64_t offset : offsets) {
    request.check(offset >= previous && static_cast<uint64_t>(offset) <= columns.size(), "ascending offsets",
                  std::to_string(offset));
    matrix.offsets.push_back(static_cast<size_t>(offset));
    previous = offset;
  }
  for (const int64_t column : columns) {
    request.check(column >= 0 && static_cast<uint64_t>(column) < limit, "columns below " + std::to_string(limit),
                  std::to_string(column));
    matrix.columns.push_back(static_cast<size_t>(column));
  }
  matrix.weights.assign(weights.begin(), weights.end());
  return matrix;
}

/// y[o, j, i] = sum over k of matrix[j, k] x[o, k, i]
template <class T>
void resample_line(const SparseRows& matrix, const T* x, T* y, size_t inner, size_t width) {
  for (size_t j = 0; j + 1 < matrix.offsets.size(); ++j) {
    T* to = y + j * inner;
    if (width == 1) {
      T sum{};
      for (size_t k = matrix.offsets[j]; k < matrix.offsets[j + 1]; ++k)
        sum += static_cast<T>(matrix.weights[k]) * x[matrix.columns[k] * inner];
      *to = sum;
      continue;
    }
    std::array<T, kInnerBlock> sums;
    std::fill_n(sums.data(), width, T{});
    for (size_t k = matrix.offsets[j]; k < matrix.offsets[j + 1]; ++k) {
      const T weight = static_cast<T>(matrix.weights[k]);
      const T* from = x + matrix.columns[k] * inner;
      for (size_t i = 0; i < width; ++i) sums[i] += weight * from[i];
    }
    std::copy_n(sums.data(), width, to);
  }
}

CompiledKernel compile_resample(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Operand& x = request.inputs[0];
  const Operand& y = request.outputs[0];
  check_float(request, x, "x");
  check_operand(request, y, "y", x.dtype, y.shape);
  const size_t axis = read_axis(request, x.shape);
  request.check(same_except(x.shape, y.shape, axis), "x's sizes except along the axis", y.shape.str());
  const AxisShape from = axis_shape(x.shape, axis);
  const AxisShape to = axis_shape(y.shape, axis);
  auto matrix = std::make_shared<const SparseRows>(read_matrix(request, to.size, from.size));
  return {.run = [from, to, matrix, dtype = x.dtype](const RunArguments& arguments) {
    AxisShape lines = from;
    lines.size = std::max(matrix->columns.size(), to.size);
    with_float(dtype, [&](auto element) {
      using T = decltype(element);
      for_axis_lines(arguments.pool, lines, [&](size_t outer, size_t begin, size_t end) {
        resample_line(*matrix, arguments.input<T>(0) + outer * from.size * from.inner + begin,
                      arguments.output<T>(0) + outer * to.size * to.inner + begin, from.inner, end - begin);
      });
    });
  }};
}

}  // namespace

void register_pool(KernelTable& table) {
  table["max_pool2d"] = compile_max_pool2d;
  table["resample"] = compile_resample;
}

}  // namespace heddle
