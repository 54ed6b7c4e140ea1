// `reduce_sum`, `reduce_max`, `argmax`. Sums are taken over short runs whose results are then added in pairs, in an
// order that depends on the shape alone: the error grows with the logarithm of the length, and neither the number of
// threads nor the width of the vectors changes the result. Operands are f32 or f64.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/reduce.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_KERNELS_REDUCE_ONCE
#define HEDDLE_KERNELS_REDUCE_ONCE

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/kernel_table.h"
#include "kernels/strided.h"

namespace heddle {
namespace {

enum class Reduction : uint8_t { kSum, kMax };

constexpr size_t kLanes = 32;       // partial results of a run, whatever the vector width
constexpr size_t kRun = 1024;       // contiguous elements reduced before pairing
constexpr size_t kRowRun = 16;      // rows added up before pairing
constexpr size_t kColumns = 512;    // width of a block of columns
constexpr size_t kSegment = 65536;  // contiguous elements in one unit of work
constexpr size_t kTileElements = 65536;
constexpr size_t kMaxChunks = 64;

template <class T>
constexpr T identity_of(Reduction reduction) {
  return reduction == Reduction::kSum ? T{0} : -std::numeric_limits<T>::infinity();
}

constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

/// x seen as kept and reduced dimensions, with the innermost one set apart: `inner` is contiguous.
struct ReducePlan {
  Reduction reduction = Reduction::kSum;
  DType dtype = DType::kF32;
  bool inner_reduced = false;
  size_t inner = 1;
  StridedLoops kept;     // outer kept dimensions
  StridedLoops reduced;  // outer reduced dimensions
  size_t outputs = 1;    // product of the outer kept dimensions
  size_t rows = 1;       // product of the outer reduced dimensions
  // inner_reduced: work is segments of a row, else blocks of columns; both are split into chunks when there are few.
  size_t segments_per_row = 1;
  size_t column_blocks = 1;
  size_t chunks = 1, per_chunk = 1;  // per_chunk: segments or rows
  size_t stack_elements = 0;
  size_t units = 0, units_per_tile = 1;
};

/// Adds values in pairs like the carries of a binary counter: log2(n) partial results at any time.
template <Reduction kReduction, class T>
class PairwiseStack {
 public:
  void push(T value) noexcept {
    size_t level = 0;
    for (size_t bits = count_++; (bits & 1) != 0; bits >>= 1) value = combine(levels_[level++], value);
    levels_[level] = value;
  }
  T result() const noexcept {
    T value = identity_of<T>(kReduction);
    bool first = true;
    for (size_t level = 0; level < 64; ++level) {
      if ((count_ >> level & 1) == 0) continue;
      value = first ? levels_[level] : combine(levels_[level], value);
      first = false;
    }
    return value;
  }
  static T combine(T a, T b) noexcept {
    if constexpr (kReduction == Reduction::kSum) return a + b;
    return a > b || a != a ? a : b;
  }

 private:
  std::array<T, 64> levels_;
  uint64_t count_ = 0;
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_REDUCE_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using Tag = hn::CappedTag<T, 16>;

template <Reduction kReduction, class V>
HWY_INLINE V combine(V a, V b) {
  if constexpr (kReduction == Reduction::kSum) return hn::Add(a, b);
  return hn::IfThenElse(hn::Or(hn::IsNaN(a), hn::Gt(a, b)), a, b);
}

/// At most kRun elements.
template <Reduction kReduction, class T>
HWY_INLINE T reduce_run(const T* x, size_t n) {
  const Tag<T> d;
  constexpr size_t kVectors = kLanes / hn::MaxLanes(Tag<T>());
  HWY_ALIGN T lanes[kLanes];
  size_t i = 0;
  if (n >= kLanes) {
    hn::Vec<Tag<T>> acc[kVectors];
    for (size_t v = 0; v < kVectors; ++v) acc[v] = hn::LoadU(d, x + v * hn::MaxLanes(d));
    for (i = kLanes; i + kLanes <= n; i += kLanes)
      for (size_t v = 0; v < kVectors; ++v)
        acc[v] = combine<kReduction>(acc[v], hn::LoadU(d, x + i + v * hn::MaxLanes(d)));
    for (size_t v = 0; v < kVectors; ++v) hn::Store(acc[v], d, lanes + v * hn::MaxLanes(d));
  } else {
    std::fill_n(lanes, kLanes, identity_of<T>(kReduction));
  }
  using Stack = PairwiseStack<kReduction, T>;
  for (size_t k = 0; i + k < n; ++k) lanes[k] = Stack::combine(lanes[k], x[i + k]);
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t k = 0; k < half; ++k) lanes[k] = Stack::combine(lanes[k], lanes[k + half]);
  return lanes[0];
}

template <Reduction kReduction, class T>
T reduce_segment(const T* x, size_t n) {
  if (n <= kRun) return reduce_run<kReduction>(x, n);
  PairwiseStack<kReduction, T> stack;
  for (size_t i = 0; i < n; i += kRun) stack.push(reduce_run<kReduction>(x + i, std::min(kRun, n - i)));
  return stack.result();
}

/// Unit = one chunk of the segments of one output.
template <Reduction kReduction, class T>
void reduce_inner_unit(const ReducePlan& plan, const T* x, T* result, size_t unit) {
  const size_t output = unit / plan.chunks;
  const size_t begin = unit % plan.chunks * plan.per_chunk;
  const size_t end = std::min(begin + plan.per_chunk, plan.rows * plan.segments_per_row);
  const T* base = x + plan.kept.offset(0, output, plan.kept.rank);
  if (end == begin + 1 && plan.segments_per_row == 1) {
    result[unit] = reduce_segment<kReduction>(base + plan.reduced.offset(0, begin, plan.reduced.rank), plan.inner);
    return;
  }
  PairwiseStack<kReduction, T> stack;
  for (size_t k = begin; k < end; ++k) {
    const T* row = base + plan.reduced.offset(0, k / plan.segments_per_row, plan.reduced.rank);
    const size_t from = k % plan.segments_per_row * kSegment;
    stack.push(reduce_segment<kReduction>(row + from, std::min(kSegment, plan.inner - from)));
  }
  result[unit] = stack.result();
}

template <Reduction kReduction, class T>
HWY_INLINE void combine_rows(T* target, const T* source, size_t n) {
  const Tag<T> d;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d))
    hn::StoreU(combine<kReduction>(hn::LoadU(d, target + i), hn::LoadU(d, source + i)), d, target + i);
  for (; i < n; ++i) target[i] = PairwiseStack<kReduction, T>::combine(target[i], source[i]);
}

/// Unit = one chunk of rows of one block of columns of one output row; `stack` holds a block of columns per level.
template <Reduction kReduction, class T>
void reduce_columns_unit(const ReducePlan& plan, const T* x, T* result, T* stack, size_t unit) {
  const size_t block = unit % plan.column_blocks;
  const size_t output = unit / plan.column_blocks % plan.outputs;
  const size_t chunk = unit / plan.column_blocks / plan.outputs;
  const size_t column = block * kColumns;
  const size_t width = std::min(kColumns, plan.inner - column);
  const size_t end = std::min((chunk + 1) * plan.per_chunk, plan.rows);
  T* target = result + (chunk * plan.outputs + output) * plan.inner + column;
  const T* base = x + plan.kept.offset(0, output, plan.kept.rank) + column;
  uint64_t count = 0;
  for (size_t row = chunk * plan.per_chunk; row < end; row += kRowRun) {
    // The new run goes on top of the stack; carries then merge it downwards.
    size_t level = static_cast<size_t>(std::popcount(count));
    T* top = stack + level * kColumns;
    std::copy_n(base + plan.reduced.offset(0, row, plan.reduced.rank), width, top);
    for (size_t r = row + 1; r < std::min(row + kRowRun, end); ++r)
      combine_rows<kReduction>(top, base + plan.reduced.offset(0, r, plan.reduced.rank), width);
    for (uint64_t bits = count++; (bits & 1) != 0; bits >>= 1, --level)
      combine_rows<kReduction>(stack + (level - 1) * kColumns, stack + level * kColumns, width);
  }
  for (size_t level = static_cast<size_t>(std::popcount(count)); level-- > 1;)
    combine_rows<kReduction>(stack + (level - 1) * kColumns, stack + level * kColumns, width);
  std::copy_n(stack, width, target);
}

template <Reduction kReduction, class T>
void reduce_tile_of(const ReducePlan& plan, const T* x, T* result, T* stack, size_t tile) {
  const size_t end = std::min((tile + 1) * plan.units_per_tile, plan.units);
  for (size_t unit = tile * plan.units_per_tile; unit < end; ++unit) {
    if (plan.inner_reduced)
      reduce_inner_unit<kReduction>(plan, x, result, unit);
    else
      reduce_columns_unit<kReduction>(plan, x, result, stack, unit);
  }
}

template <class T>
void reduce_typed_tile(const ReducePlan& plan, const void* x, void* result, void* stack, size_t tile) {
  const auto run =
      plan.reduction == Reduction::kSum ? reduce_tile_of<Reduction::kSum, T> : reduce_tile_of<Reduction::kMax, T>;
  run(plan, static_cast<const T*>(x), static_cast<T*>(result), static_cast<T*>(stack), tile);
}

void reduce_tile(const ReducePlan& plan, const void* x, void* result, void* stack, size_t tile) {
  const auto run = plan.dtype == DType::kF64 ? reduce_typed_tile<double> : reduce_typed_tile<float>;
  run(plan, x, result, stack, tile);
}

/// Index of the first maximum; NaN is passed over unless there is nothing else.
template <class T>
size_t argmax_row(const T* x, size_t n) {
  const Tag<T> d;
  const size_t lanes = hn::Lanes(d);
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  T best = kLowest;
  size_t i = 0;
  if (n >= lanes) {
    auto top = hn::Set(d, kLowest);
    for (; i + lanes <= n; i += lanes) {
      const auto v = hn::LoadU(d, x + i);
      top = hn::IfThenElse(hn::Gt(v, top), v, top);
    }
    best = hn::GetLane(hn::MaxOfLanes(d, top));
  }
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  const auto wanted = hn::Set(d, best);
  for (i = 0; i + lanes <= n; i += lanes) {
    const intptr_t found = hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, x + i), wanted));
    if (found >= 0) return i + static_cast<size_t>(found);
  }
  for (; i < n; ++i)
    if (x[i] == best) return i;
  return 0;
}

void argmax_rows(DType dtype, const void* x, int32_t* out, size_t n, size_t begin, size_t end) {
  for (size_t row = begin; row < end; ++row)
    out[row] = static_cast<int32_t>(dtype == DType::kF64 ? argmax_row(static_cast<const double*>(x) + row * n, n)
                                                         : argmax_row(static_cast<const float*>(x) + row * n, n));
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(reduce_tile);
HWY_EXPORT(argmax_rows);

std::vector<bool> reduced_axes(const KernelRequest& request, const Shape& x) {
  std::vector<bool> reduced(x.rank(), false);
  int64_t previous = -1;
  for (const int64_t axis : request.attributes.integers("axes")) {
    request.check(axis > previous && axis < static_cast<int64_t>(x.rank()), "ascending axes of " + x.str(),
                  std::to_string(axis));
    reduced[static_cast<size_t>(axis)] = true;
    previous = axis;
  }
  return reduced;
}

void push_axis(StridedLoops& loops, size_t dim, size_t stride) {
  loops.dims[loops.rank] = dim;
  loops.strides[0][loops.rank] = stride;
  ++loops.rank;
}

ReducePlan make_plan(Reduction reduction, const Operand& operand, const std::vector<bool>& reduced) {
  const Shape& x = operand.shape;
  ReducePlan plan;
  plan.reduction = reduction;
  plan.dtype = operand.dtype;
  plan.kept.strides.resize(1);
  plan.reduced.strides.resize(1);
  // The innermost group of equal kind, ignoring dimensions of size 1.
  size_t axis = x.rank();
  bool seen = false;
  for (; axis > 0; --axis) {
    if (x[axis - 1] == 1) continue;
    if (seen && reduced[axis - 1] != plan.inner_reduced) break;
    plan.inner_reduced = reduced[axis - 1];
    seen = true;
    plan.inner *= static_cast<size_t>(x[axis - 1]);
  }
  const auto strides = dense_strides(x);
  for (size_t outer = 0; outer < axis; ++outer) {
    const auto dim = static_cast<size_t>(x[outer]);
    push_axis(reduced[outer] ? plan.reduced : plan.kept, dim, strides[outer]);
    (reduced[outer] ? plan.rows : plan.outputs) *= dim;
  }
  plan.kept.collapse();
  plan.reduced.collapse();
  if (x.count() == 0) return plan;

  size_t unit_elements;
  if (plan.inner_reduced) {
    plan.segments_per_row = std::max<size_t>(1, ceil_div(plan.inner, kSegment));
    const size_t segments = plan.rows * plan.segments_per_row;
    plan.per_chunk = segments;
    // Too few outputs to keep the threads busy: split each one.
    if (plan.outputs < kMaxChunks)
      plan.per_chunk = std::max<size_t>(1, kTileElements / std::max<size_t>(1, plan.inner));
    plan.per_chunk = std::max<size_t>(1, std::min(plan.per_chunk, segments));
    plan.chunks = std::max<size_t>(1, ceil_div(segments, plan.per_chunk));
    plan.units = plan.outputs * plan.chunks;
    unit_elements = plan.per_chunk * std::min(plan.inner, kSegment);
  } else {
    plan.column_blocks = ceil_div(plan.inner, kColumns);
    const size_t width = std::min(plan.inner, kColumns);
    plan.per_chunk = std::max<size_t>(1, plan.rows);
    if (plan.outputs * plan.column_blocks < kMaxChunks)
      plan.per_chunk =
          std::min(plan.per_chunk,
                   std::max({kRowRun, kTileElements / std::max<size_t>(1, width), ceil_div(plan.rows, kMaxChunks)}));
    plan.chunks = std::max<size_t>(1, ceil_div(plan.rows, plan.per_chunk));
    plan.units = plan.outputs * plan.column_blocks * plan.chunks;
    plan.stack_elements = (static_cast<size_t>(std::bit_width(ceil_div(plan.per_chunk, kRowRun))) + 1) * kColumns;
    unit_elements = plan.per_chunk * width;
  }
  plan.units_per_tile = std::max<size_t>(1, kTileElements / std::max<size_t>(1, unit_elements));
  return plan;
}

/// chunks[c] for c in [0, count), each `n` elements, `stride` elements apart, combined in pairs into chunk 0.
template <class T>
void combine_chunks(Reduction reduction, T* chunks, size_t count, size_t stride, size_t n) {
  for (size_t step = 1; step < count; step *= 2)
    for (size_t c = 0; c + step < count; c += 2 * step) {
      T* target = chunks + c * stride;
      const T* source = chunks + (c + step) * stride;
      if (reduction == Reduction::kSum)
        for (size_t i = 0; i < n; ++i) target[i] += source[i];
      else
        for (size_t i = 0; i < n; ++i) target[i] = PairwiseStack<Reduction::kMax, T>::combine(target[i], source[i]);
    }
}

template <class T>
void run_reduce(const ReducePlan& plan, const RunArguments& arguments) {
  const auto* x = arguments.input<T>(0);
  auto* y = arguments.output<T>(0);
  const size_t count = plan.inner_reduced ? plan.outputs : plan.outputs * plan.inner;
  if (count == 0) return;
  if (plan.rows == 0 || plan.inner == 0) {
    std::fill_n(y, count, identity_of<T>(plan.reduction));
    return;
  }
  // The partial results of the chunks lie behind the first thread's stack.
  T* result = plan.chunks == 1 ? y : arguments.thread_scratch<T>(0) + plan.stack_elements;
  const struct Context {
    const ReducePlan& plan;
    const RunArguments& arguments;
    const T* x;
    T* result;
    void operator()(size_t tile, size_t thread) const {
      HWY_DYNAMIC_DISPATCH(reduce_tile)(plan, x, result, arguments.thread_scratch<T>(thread), tile);
    }
  } context{plan, arguments, x, result};
  const size_t tiles = ceil_div(plan.units, plan.units_per_tile);
  if (tiles == 1)
    context(0, 0);
  else
    arguments.pool.run(tiles, [c = &context](size_t tile, size_t thread) { (*c)(tile, thread); });
  if (plan.chunks == 1) return;
  if (plan.inner_reduced) {
    for (size_t output = 0; output < plan.outputs; ++output) {
      combine_chunks(plan.reduction, result + output * plan.chunks, plan.chunks, 1, 1);
      y[output] = result[output * plan.chunks];
    }
  } else {
    combine_chunks(plan.reduction, result, plan.chunks, count, count);
    std::copy_n(result, count, y);
  }
}

template <Reduction kReduction>
CompiledKernel compile_reduce(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Operand& x = request.inputs[0];
  const Operand& y = request.outputs[0];
  request.check(x.present && y.present, "both operands", "an absent operand");
  request.check(x.dtype == DType::kF32 || x.dtype == DType::kF64, "f32 or f64", dtype_name(x.dtype));
  request.check(y.dtype == x.dtype, dtype_name(x.dtype), dtype_name(y.dtype));
  const std::vector<bool> reduced = reduced_axes(request, x.shape);
  std::vector<int64_t> kept;
  for (size_t axis = 0; axis < x.shape.rank(); ++axis)
    if (!reduced[axis]) kept.push_back(x.shape[axis]);
  request.check(y.shape == Shape(kept), Shape(kept).str(), y.shape.str());

  CompiledKernel kernel;
  const ReducePlan plan = make_plan(kReduction, x, reduced);
  const size_t partials = plan.chunks == 1 ? 0 : checked_mul(y.shape.count(), plan.chunks, "reduce");
  kernel.scratch_per_thread =
      checked_mul(checked_add(plan.stack_elements, partials, "reduce"), dtype_size(x.dtype), "reduce");
  kernel.run = [plan = std::make_shared<const ReducePlan>(plan)](const RunArguments& arguments) {
    (plan->dtype == DType::kF64 ? run_reduce<double> : run_reduce<float>)(*plan, arguments);
  };
  return kernel;
}

CompiledKernel compile_argmax(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Operand& x = request.inputs[0];
  const Operand& y = request.outputs[0];
  request.check(x.present && y.present, "both operands", "an absent operand");
  request.check(x.dtype == DType::kF32 || x.dtype == DType::kF64, "f32 or f64", dtype_name(x.dtype));
  request.check(y.dtype == DType::kI32, "i32 output", dtype_name(y.dtype));
  request.check(x.shape.rank() >= 1, "at least one dimension", x.shape.str());
  const Shape rows(x.shape.dims().first(x.shape.rank() - 1));
  request.check(y.shape == rows, rows.str(), y.shape.str());
  const auto n = static_cast<size_t>(x.shape.back(0));
  request.check(rows.count() == 0 || n > 0, "a last dimension that is not empty", x.shape.str());
  request.check(n <= std::numeric_limits<int32_t>::max(), "a last dimension below 2^31", x.shape.str());

  CompiledKernel kernel;
  kernel.run = [n, count = rows.count(), dtype = x.dtype](const RunArguments& arguments) {
    if (count == 0) return;
    const auto* in = arguments.input<void>(0);
    auto* out = arguments.output<int32_t>(0);
    const size_t per_tile = std::max<size_t>(1, kTileElements / n);
    const size_t tiles = ceil_div(count, per_tile);
    const auto run = [&](size_t tile, size_t) {
      HWY_DYNAMIC_DISPATCH(argmax_rows)(dtype, in, out, n, tile * per_tile, std::min((tile + 1) * per_tile, count));
    };
    if (tiles == 1)
      run(0, 0);
    else
      arguments.pool.run(tiles, [r = &run](size_t tile, size_t thread) { (*r)(tile, thread); });
  };
  return kernel;
}

}  // namespace

void register_reduce(KernelTable& table) {
  table["reduce_sum"] = compile_reduce<Reduction::kSum>;
  table["reduce_max"] = compile_reduce<Reduction::kMax>;
  table["argmax"] = compile_argmax;
}

}  // namespace heddle

#endif  // HWY_ONCE
