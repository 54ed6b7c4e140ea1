// `sort` and `top_k` of the rows of the last axis. An element becomes one number, its order above and its place below,
// so that sorting numbers is stable sorting of elements. NaN counts as the largest value, as in PyTorch.
#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

namespace heddle {
namespace {

/// Grows with the value; -0 is 0.
template <class T, class Bits>
Bits order_of(T value, bool descending) {
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  Bits bits = std::bit_cast<Bits>(value == T{} ? T{} : value);
  if (value != value)
    bits = ~Bits{};
  else
    bits = (bits & kSign) != 0 ? ~bits : bits | kSign;
  return descending ? ~bits : bits;
}

/// An element's order and place as one number.
struct KeyF32 {
  uint64_t bits;
  KeyF32(float value, bool descending, uint32_t place)
      : bits(static_cast<uint64_t>(order_of<float, uint32_t>(value, descending)) << 32 | place) {}
  uint32_t place() const { return static_cast<uint32_t>(bits); }
  bool operator<(const KeyF32& other) const { return bits < other.bits; }
};

struct KeyF64 {
  uint64_t order;
  uint32_t at;
  KeyF64(double value, bool descending, uint32_t place)
      : order(order_of<double, uint64_t>(value, descending)), at(place) {}
  uint32_t place() const { return at; }
  bool operator<(const KeyF64& other) const { return order != other.order ? order < other.order : at < other.at; }
};

struct SortPlan {
  AxisShape rows;  // inner: how many are kept
  bool descending = false;
};

/// The first of each row in order: their values and places, unless nobody wants them.
template <class Key, class T>
void sort_rows(const SortPlan& plan, const RunArguments& arguments, size_t begin, size_t end, Key* keys) {
  const auto* x = arguments.input<T>(0);
  auto* values = arguments.output<T>(0);
  auto* places = arguments.output<int32_t>(1);
  const size_t width = plan.rows.size;
  const size_t kept = plan.rows.inner;
  for (size_t row = begin; row < end; ++row) {
    const T* from = x + row * width;
    for (size_t i = 0; i < width; ++i) keys[i] = Key(from[i], plan.descending, static_cast<uint32_t>(i));
    if (kept < width) std::nth_element(keys, keys + kept, keys + width);
    std::sort(keys, keys + kept);
    for (size_t k = 0; k < kept; ++k) {
      const uint32_t place = keys[k].place();
      if (values != nullptr) values[row * kept + k] = from[place];
      if (places != nullptr) places[row * kept + k] = static_cast<int32_t>(place);
    }
  }
}

CompiledKernel sort_kernel(const KernelRequest& request, int64_t kept) {
  const Operand& x = request.inputs[0];
  check_float(request, x, "x");
  const auto width = static_cast<size_t>(x.shape.back(0));
  request.check(width >= 1 && width <= std::numeric_limits<int32_t>::max(), "rows of 1 to 2^31 - 1 elements",
                x.shape.str());
  const SortPlan plan{{x.shape.count() / width, width, static_cast<size_t>(kept)},
                      request.attributes.integer("descending") != 0};
  std::vector<int64_t> dims(x.shape.dims().begin(), x.shape.dims().end());
  dims.back() = kept;
  check_optional(request, request.outputs[0], "values", x.dtype, Shape(dims));
  check_optional(request, request.outputs[1], "index", DType::kI32, Shape(dims));
  const bool wide = x.dtype == DType::kF64;
  CompiledKernel kernel;
  kernel.scratch_per_thread = checked_mul(width, wide ? sizeof(KeyF64) : sizeof(KeyF32), "sort");
  kernel.run = [plan, wide](const RunArguments& arguments) {
    const size_t per_tile = rows_per_tile(plan.rows.size);
    arguments.pool.run((plan.rows.outer + per_tile - 1) / per_tile, [&](size_t tile, size_t thread) {
      const size_t begin = tile * per_tile;
      const size_t end = std::min(begin + per_tile, plan.rows.outer);
      if (wide)
        sort_rows<KeyF64, double>(plan, arguments, begin, end, arguments.thread_scratch<KeyF64>(thread));
      else
        sort_rows<KeyF32, float>(plan, arguments, begin, end, arguments.thread_scratch<KeyF32>(thread));
    });
  };
  return kernel;
}

CompiledKernel compile_sort(const KernelRequest& request) {
  request.expect_counts(1, 2);
  request.check(request.inputs[0].present && request.inputs[0].shape.rank() >= 1, "x [..., n]",
                operand_text(request.inputs[0]));
  return sort_kernel(request, request.inputs[0].shape.back(0));
}

CompiledKernel compile_top_k(const KernelRequest& request) {
  request.expect_counts(1, 2);
  const Operand& x = request.inputs[0];
  request.check(x.present && x.shape.rank() >= 1, "x [..., n]", operand_text(x));
  const int64_t k = request.attributes.integer("k");
  request.check(k >= 0 && k <= x.shape.back(0), "k from 0 to " + std::to_string(x.shape.back(0)), std::to_string(k));
  return sort_kernel(request, k);
}

}  // namespace

void register_sort(KernelTable& table) {
  table["sort"] = compile_sort;
  table["top_k"] = compile_top_k;
}

}  // namespace heddle
