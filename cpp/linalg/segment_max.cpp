// `segment_max`: y[s] = max of the rows x[i] with segment[i] = s; -infinity where there are none.
#include <limits>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

namespace heddle {
namespace {

struct SegmentPlan {
  size_t rows = 0, width = 0, segments = 0;
  DType dtype = DType::kF32;
};

template <class T>
void run_segments(const SegmentPlan& plan, const RunArguments& arguments) {
  const auto* segment = arguments.input<int32_t>(0);
  const auto* x = arguments.input<T>(1);
  auto* y = arguments.output<T>(0);
  for (size_t i = 0; i < plan.rows; ++i)
    if (segment[i] < 0 || static_cast<size_t>(segment[i]) >= plan.segments)
      throw Error(ErrorCode::kArgument, "segment_max", "segments below " + std::to_string(plan.segments),
                  std::to_string(segment[i]));
  for_row_ranges(arguments.pool, plan.width, 64, [&](size_t begin, size_t end) {
    for (size_t s = 0; s < plan.segments; ++s)
      std::fill(y + s * plan.width + begin, y + s * plan.width + end, -std::numeric_limits<T>::infinity());
    for (size_t i = 0; i < plan.rows; ++i) {
      T* const row = y + static_cast<size_t>(segment[i]) * plan.width;
      // A NaN stays: no comparison with it holds.
      for (size_t j = begin; j < end; ++j)
        if (!(x[i * plan.width + j] <= row[j]) && row[j] == row[j]) row[j] = x[i * plan.width + j];
    }
  });
}

CompiledKernel compile_segment_max(const KernelRequest& request) {
  request.expect_counts(2, 1);
  const Operand& x = request.inputs[1];
  check_float(request, x, "x");
  request.check(x.shape.rank() == 2, "x [n, d]", x.shape.str());
  check_operand(request, request.inputs[0], "segment", DType::kI32, Shape({x.shape[0]}));
  const int64_t segments = request.attributes.integer("segments");
  request.check(segments >= 0, "a number of segments", std::to_string(segments));
  check_operand(request, request.outputs[0], "y", x.dtype, Shape({segments, x.shape[1]}));
  const SegmentPlan plan{static_cast<size_t>(x.shape[0]), static_cast<size_t>(x.shape[1]),
                         static_cast<size_t>(segments), x.dtype};
  CompiledKernel kernel;
  kernel.run = [plan](const RunArguments& arguments) {
    with_float(plan.dtype, [&](auto zero) { run_segments<decltype(zero)>(plan, arguments); });
  };
  return kernel;
}

}  // namespace

void register_segment_max(KernelTable& table) { table["segment_max"] = compile_segment_max; }

}  // namespace heddle
