// Elements picked and placed along one axis, one index per element: `gather`, its adjoint `scatter_add`; `flip`, and
// the numbers to index with, `arange`.
#include <cstring>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

namespace heddle {
namespace {

inline size_t checked_index(const char* place, int32_t index, size_t limit) {
  if (index < 0 || static_cast<size_t>(index) >= limit)
    throw Error(ErrorCode::kArgument, place, "an index in [0, " + std::to_string(limit) + ")", std::to_string(index));
  return static_cast<size_t>(index);
}

/// Calls function with a value of the unsigned type that has the element's size.
template <class Function>
void with_element(DType dtype, const Function& function) {
  switch (dtype_size(dtype)) {
    case 1: function(uint8_t{}); return;
    case 2: function(uint16_t{}); return;
    case 4: function(uint32_t{}); return;
    default: function(uint64_t{}); return;
  }
}

/// y[o, j, i] = x[o, index[o, j, i], i]
CompiledKernel compile_gather(const KernelRequest& request) {
  request.expect_counts(2, 1);
  const Operand& x = request.inputs[0];
  const Operand& index = request.inputs[1];
  request.check(x.present && index.present, "x and an index", "an absent operand");
  const size_t axis = read_axis(request, x.shape);
  request.check(same_except(x.shape, index.shape, axis), "an index like x except along the axis", index.shape.str());
  check_operand(request, index, "index", DType::kI32, index.shape);
  check_operand(request, request.outputs[0], "y", x.dtype, index.shape);
  const AxisShape to = axis_shape(index.shape, axis);
  return {.run = [to, size = static_cast<size_t>(x.shape[axis]), dtype = x.dtype](const RunArguments& arguments) {
    const auto* ids = arguments.input<int32_t>(1);
    with_element(dtype, [&](auto element) {
      using T = decltype(element);
      const auto* from = arguments.input<T>(0);
      auto* y = arguments.output<T>(0);
      for_axis_lines(arguments.pool, to, [&](size_t outer, size_t begin, size_t end) {
        for (size_t j = 0; j < to.size; ++j) {
          const size_t row = (outer * to.size + j) * to.inner;
          for (size_t i = begin; i < end; ++i)
            y[row + i] = from[(outer * size + checked_index("gather", ids[row + i], size)) * to.inner + i];
        }
      });
    });
  }};
}

/// y = 0, then y[o, index[o, j, i], i] += source[o, j, i] in the order of j.
CompiledKernel compile_scatter_add(const KernelRequest& request) {
  request.expect_counts(2, 1);
  const Operand& index = request.inputs[0];
  const Operand& y = request.outputs[0];
  request.check(index.present && y.present, "an index and y", "an absent operand");
  const size_t axis = read_axis(request, y.shape);
  request.check(same_except(y.shape, index.shape, axis), "an index like y except along the axis", index.shape.str());
  check_operand(request, index, "index", DType::kI32, index.shape);
  check_float(request, y, "y");
  check_operand(request, request.inputs[1], "source", y.dtype, index.shape);
  const AxisShape to = axis_shape(y.shape, axis);
  return {.run = [to, count = static_cast<size_t>(index.shape[axis]), dtype = y.dtype](const RunArguments& arguments) {
    const auto* ids = arguments.input<int32_t>(0);
    AxisShape lines = to;
    lines.size = std::max(to.size, count);
    with_float(dtype, [&](auto element) {
      using T = decltype(element);
      const auto* source = arguments.input<T>(1);
      auto* y = arguments.output<T>(0);
      for_axis_lines(arguments.pool, lines, [&](size_t outer, size_t begin, size_t end) {
        T* target = y + outer * to.size * to.inner;
        for (size_t k = 0; k < to.size; ++k) std::fill(target + k * to.inner + begin, target + k * to.inner + end, T{});
        for (size_t j = 0; j < count; ++j) {
          const size_t row = (outer * count + j) * to.inner;
          for (size_t i = begin; i < end; ++i)
            target[checked_index("scatter_add", ids[row + i], to.size) * to.inner + i] += source[row + i];
        }
      });
    });
  }};
}

CompiledKernel compile_flip(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Operand& x = request.inputs[0];
  request.check(x.present, "x", "nothing");
  check_operand(request, request.outputs[0], "y", x.dtype, x.shape);
  const AxisShape shape = axis_shape(x.shape, read_axis(request, x.shape));
  return {.run = [shape, dtype = x.dtype](const RunArguments& arguments) {
    with_element(dtype, [&](auto element) {
      using T = decltype(element);
      const auto* from = arguments.input<T>(0);
      auto* y = arguments.output<T>(0);
      for_axis_lines(arguments.pool, shape, [&](size_t outer, size_t begin, size_t end) {
        for (size_t j = 0; j < shape.size; ++j) {
          const T* row = from + (outer * shape.size + shape.size - 1 - j) * shape.inner;
          std::copy(row + begin, row + end, y + (outer * shape.size + j) * shape.inner + begin);
        }
      });
    });
  }};
}

/// y[i] = start + step * i
CompiledKernel compile_arange(const KernelRequest& request) {
  request.expect_counts(0, 1);
  const Operand& y = request.outputs[0];
  const bool whole = y.dtype == DType::kI32;
  request.check(y.present && y.shape.rank() == 1 && (whole || y.dtype == DType::kF32 || y.dtype == DType::kF64),
                "y f32, f64 or i32 [n]", operand_text(y));
  const double start = request.attributes.number("start");
  const double step = request.attributes.number("step");
  const double last = start + step * static_cast<double>(y.shape.count());
  const auto fits = [](double value) { return value >= -2147483648.0 && value <= 2147483647.0; };
  request.check(!whole || (fits(start) && fits(last)), "numbers that fit into i32", std::to_string(last));
  return {.run = [start, step, count = y.shape.count(), dtype = y.dtype](const RunArguments& arguments) {
    for_row_ranges(arguments.pool, count, kRowTileElements, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const double value = start + step * static_cast<double>(i);
        if (dtype == DType::kF32)
          arguments.output<float>(0)[i] = static_cast<float>(value);
        else if (dtype == DType::kF64)
          arguments.output<double>(0)[i] = value;
        else
          arguments.output<int32_t>(0)[i] = static_cast<int32_t>(value);
      }
    });
  }};
}

}  // namespace

void register_gather(KernelTable& table) {
  table["gather"] = compile_gather;
  table["scatter_add"] = compile_scatter_add;
  table["flip"] = compile_flip;
  table["arange"] = compile_arange;
}

}  // namespace heddle
