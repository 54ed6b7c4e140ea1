// Picking and adding along an axis, reversing one, and arithmetic sequences.
#include "cuda/core/elements.cuh"
#include "cuda/kernels/kernel_table.h"
#include "kernels/rows.h"

namespace heddle::cuda {
namespace {

/// x [outer, size, inner] around one axis.
struct Axis {
  int64_t outer, size, inner;
  explicit Axis(const AxisShape& shape)
      : outer(static_cast<int64_t>(shape.outer)),
        size(static_cast<int64_t>(shape.size)),
        inner(static_cast<int64_t>(shape.inner)) {}
};

/// y[o, j, i] = x[o, index[o, j, i], i]; x has `size` places along the axis.
template <class T>
__global__ void gather_elements(const T* x, const int32_t* index, T* y, Axis to, int64_t size, Report report) {
  for (int64_t at = first_unit(); at < to.outer * to.size * to.inner; at += unit_step()) {
    const int64_t place = index[at];
    if (within(report, place, 0, size)) y[at] = x[(at / to.inner / to.size * size + place) * to.inner + at % to.inner];
  }
}

/// y = 0, then y[o, index[o, j, i], i] += source[o, j, i] in the order of j: a thread takes a line along the axis.
template <class T>
__global__ void scatter_lines(const int32_t* index, const T* source, T* y, Axis to, int64_t count, Report report) {
  for (int64_t line = first_unit(); line < to.outer * to.inner; line += unit_step()) {
    const int64_t outer = line / to.inner, inner = line % to.inner;
    T* const target = y + outer * to.size * to.inner + inner;
    for (int64_t k = 0; k < to.size; ++k) target[k * to.inner] = T{0};
    for (int64_t j = 0; j < count; ++j) {
      const int64_t from = (outer * count + j) * to.inner + inner;
      const int64_t place = index[from];
      if (within(report, place, 0, to.size)) target[place * to.inner] += source[from];
    }
  }
}

template <class T>
__global__ void flip_elements(const T* x, T* y, Axis shape) {
  for (int64_t at = first_unit(); at < shape.outer * shape.size * shape.inner; at += unit_step()) {
    const int64_t place = at / shape.inner % shape.size;
    y[at] = x[at + (shape.size - 1 - 2 * place) * shape.inner];
  }
}

/// y[i] = start + step i, in f64, rounded once.
template <class T>
__global__ void fill_sequence(T* y, int64_t count, double start, double step) {
  for (int64_t i = first_unit(); i < count; i += unit_step())
    y[i] = static_cast<T>(__dadd_rn(start, __dmul_rn(step, static_cast<double>(i))));
}

Kernel compile_gather(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  const size_t axis = read_axis(request, x.shape);
  const Axis to(axis_shape(request.inputs[1].shape, axis));
  const int64_t size = x.shape[axis], count = to.outer * to.size * to.inner;
  if (count == 0) return nothing();
  return with_element(x.dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    return {.run = [=](const Run& run) {
      launch(run, gather_elements<T>, grid_of(count), run.input<T>(0), run.input<int32_t>(1), run.output<T>(0), to,
             size, run.report);
    }};
  });
}

template <class T>
Kernel scatter(const Axis& to, int64_t count) {
  return {.run = [=](const Run& run) {
    launch(run, scatter_lines<T>, grid_of(to.outer * to.inner), run.input<int32_t>(0), run.input<T>(1),
           run.output<T>(0), to, count, run.report);
  }};
}

Kernel compile_scatter_add(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  const size_t axis = read_axis(request, y.shape);
  const Axis to(axis_shape(y.shape, axis));
  const int64_t count = request.inputs[0].shape[axis];
  if (to.outer * to.inner == 0) return nothing();
  return y.dtype == DType::kF64 ? scatter<double>(to, count) : scatter<float>(to, count);
}

Kernel compile_flip(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  const Axis shape(axis_shape(x.shape, read_axis(request, x.shape)));
  const auto count = static_cast<int64_t>(x.shape.count());
  if (count == 0) return nothing();
  return with_element(x.dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    return {.run = [=](const Run& run) {
      launch(run, flip_elements<T>, grid_of(count), run.input<T>(0), run.output<T>(0), shape);
    }};
  });
}

template <class T>
Kernel sequence(int64_t count, double start, double step) {
  return {.run = [=](const Run& run) {
    launch(run, fill_sequence<T>, grid_of(count), run.output<T>(0), count, start, step);
  }};
}

Kernel compile_arange(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  const double start = request.attributes.number("start"), step = request.attributes.number("step");
  const auto count = static_cast<int64_t>(y.shape.count());
  if (count == 0) return nothing();
  if (y.dtype == DType::kF64) return sequence<double>(count, start, step);
  if (y.dtype == DType::kI32) return sequence<int32_t>(count, start, step);
  return sequence<float>(count, start, step);
}

}  // namespace

void register_gather(KernelTable& table) {
  table["gather"] = compile_gather;
  table["scatter_add"] = compile_scatter_add;
  table["flip"] = compile_flip;
  table["arange"] = compile_arange;
}

}  // namespace heddle::cuda
