// `max_pool2d`, and `resample`: a sparse matrix along one axis. A thread takes an output.
#include <memory>
#include <vector>

#include "cuda/core/device_buffer.h"
#include "cuda/core/launch.cuh"
#include "cuda/kernels/kernel_table.h"
#include "kernels/window.h"

namespace heddle::cuda {
namespace {

/// The first tap of a window that lies in the image.
__device__ int64_t first_tap(const WindowAxis& axis, int64_t output) {
  const int64_t first = output * axis.stride - axis.before;
  return first >= 0 ? first : first + (-first + axis.dilation - 1) / axis.dilation * axis.dilation;
}
__device__ int64_t last_tap(const WindowAxis& axis, int64_t output) {
  const int64_t last = output * axis.stride - axis.before + (axis.size - 1) * axis.dilation;
  return last < axis.input ? last : axis.input - 1;
}

/// Maximum and its place; NaN is the largest value. A window that misses the image gives -inf.
template <class T>
__global__ void pool_windows(Window window, int64_t planes, const T* x, T* y, int32_t* places) {
  const WindowAxis rows = window.y, columns = window.x;
  const int64_t results = rows.output * columns.output;
  for (int64_t unit = first_unit(); unit < planes * results; unit += unit_step()) {
    const int64_t oy = unit % results / columns.output, ox = unit % columns.output;
    const T* const image = x + unit / results * rows.input * columns.input;
    const int64_t top = first_tap(rows, oy), left = first_tap(columns, ox);
    const int64_t bottom = last_tap(rows, oy), right = last_tap(columns, ox);
    T best = -static_cast<T>(INFINITY);
    int64_t at =
        (top < rows.input ? top : rows.input - 1) * columns.input + (left < columns.input ? left : columns.input - 1);
    for (int64_t row = top; row <= bottom; row += rows.dilation)
      for (int64_t column = left; column <= right; column += columns.dilation) {
        const T value = image[row * columns.input + column];
        if (!(value > best) && value == value) continue;
        best = value;
        at = row * columns.input + column;
      }
    y[unit] = best;
    if (places != nullptr) places[unit] = static_cast<int32_t>(at);
  }
}

Kernel compile_max_pool2d(const KernelRequest& request) {
  const Operand &x = request.inputs[0], &y = request.outputs[0];
  const auto& size = request.attributes.integers("size");
  const Window window = read_window(request, x.shape, size[0], size[1], y.shape);
  if (y.shape.count() == 0) return nothing();
  const auto planes = static_cast<int64_t>(x.shape.count(0, 2));
  return {.run = [window, planes, wide = x.dtype == DType::kF64](const Run& run) {
    const int64_t units = planes * window.y.output * window.x.output;
    const Grid grid = grid_of(units);
    if (wide)
      launch(run, pool_windows<double>, grid, window, planes, run.input<double>(0), run.output<double>(0),
             run.output<int32_t>(1));
    else
      launch(run, pool_windows<float>, grid, window, planes, run.input<float>(0), run.output<float>(0),
             run.output<int32_t>(1));
  }};
}

/// Row i of the matrix: weights[k] at columns[k] for k in [offsets[i], offsets[i + 1]).
struct SparseRows {
  const int64_t* offsets;
  const int64_t* columns;
  const double* weights;
};

/// y[o, j, i] = Σ_k matrix[j, k] x[o, k, i]; x [outer, size, inner].
template <class T>
__global__ void resample_lines(SparseRows matrix, const T* x, T* y, int64_t outer, int64_t size, int64_t rows,
                               int64_t inner) {
  for (int64_t unit = first_unit(); unit < outer * rows * inner; unit += unit_step()) {
    const int64_t row = unit / inner % rows;
    const T* const from = x + unit / inner / rows * size * inner + unit % inner;
    T sum{0};
    for (int64_t k = matrix.offsets[row]; k < matrix.offsets[row + 1]; ++k)
      sum += static_cast<T>(matrix.weights[k]) * from[matrix.columns[k] * inner];
    y[unit] = sum;
  }
}

struct ResampleTables {
  DeviceTable<int64_t> offsets, columns;
  DeviceTable<double> weights;

  ResampleTables(const std::vector<int64_t>& o, const std::vector<int64_t>& c, const std::vector<double>& w)
      : offsets(o), columns(c), weights(w) {}
};

Kernel compile_resample(const KernelRequest& request) {
  const Operand &x = request.inputs[0], &y = request.outputs[0];
  if (y.shape.count() == 0) return nothing();
  const auto axis = static_cast<size_t>(request.attributes.integer("axis"));
  const auto outer = static_cast<int64_t>(y.shape.count(0, axis));
  const auto inner = static_cast<int64_t>(y.shape.count(axis + 1, y.shape.rank()));
  // A matrix without entries is all zeros; its tables still have an address.
  std::vector<int64_t> columns = request.attributes.integers("columns");
  std::vector<double> weights = request.attributes.numbers("weights");
  columns.push_back(0);
  weights.push_back(0);
  const auto tables = std::make_shared<const ResampleTables>(request.attributes.integers("offsets"), columns, weights);
  return {.run = [=, size = x.shape[axis], rows = y.shape[axis], wide = x.dtype == DType::kF64](const Run& run) {
    const SparseRows matrix{tables->offsets.data(), tables->columns.data(), tables->weights.data()};
    const Grid grid = grid_of(outer * rows * inner);
    if (wide)
      launch(run, resample_lines<double>, grid, matrix, run.input<double>(0), run.output<double>(0), outer, size, rows,
             inner);
    else
      launch(run, resample_lines<float>, grid, matrix, run.input<float>(0), run.output<float>(0), outer, size, rows,
             inner);
  }};
}

}  // namespace

void register_pool(KernelTable& table) {
  table["max_pool2d"] = compile_max_pool2d;
  table["resample"] = compile_resample;
}

}  // namespace heddle::cuda
