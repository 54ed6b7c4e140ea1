// `walsh_hadamard`: y = H x for each row of 2^k elements, in k passes of sums and differences.
#include <bit>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

namespace heddle {
namespace {

template <class T>
void transform_row(const T* x, T* y, size_t n) {
  if (x != y) std::copy_n(x, n, y);
  for (size_t half = 1; half < n; half *= 2)
    for (size_t start = 0; start < n; start += 2 * half)
      for (size_t i = start; i < start + half; ++i) {
        const T a = y[i];
        const T b = y[i + half];
        y[i] = a + b;
        y[i + half] = a - b;
      }
}

CompiledKernel compile_walsh_hadamard(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Operand& x = request.inputs[0];
  check_float(request, x, "x");
  request.check(x.shape.rank() >= 1 && std::has_single_bit(static_cast<uint64_t>(x.shape.back(0))),
                "rows of 2^k elements", x.shape.str());
  check_operand(request, request.outputs[0], "y", x.dtype, x.shape);
  const auto width = static_cast<size_t>(x.shape.back(0));
  const size_t rows = x.shape.count() / width;
  const DType dtype = x.dtype;
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [width, rows, dtype](const RunArguments& arguments) {
    with_float(dtype, [&](auto zero) {
      using T = decltype(zero);
      for_row_ranges(arguments.pool, rows, rows_per_tile(width), [&](size_t begin, size_t end) {
        for (size_t row = begin; row < end; ++row)
          transform_row(arguments.input<T>(0) + row * width, arguments.output<T>(0) + row * width, width);
      });
    });
  };
  return kernel;
}

}  // namespace

void register_walsh_hadamard(KernelTable& table) { table["walsh_hadamard"] = compile_walsh_hadamard; }

}  // namespace heddle
