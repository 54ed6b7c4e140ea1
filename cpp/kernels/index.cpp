// Operators that move elements without computing on them: gathers, slices, concatenation, transposes, cache writes; and
// `scatter_add_rows`, the adjoint of a gather. Most only need the size of an element, not its type.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/index.cpp"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_KERNELS_INDEX_ONCE
#define HEDDLE_KERNELS_INDEX_ONCE

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/kernel_table.h"
#include "kernels/strided.h"

#endif  // HEDDLE_KERNELS_INDEX_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
void add_row(T* target, const T* source, size_t n) {
  const hn::ScalableTag<T> d;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d))
    hn::StoreU(hn::Add(hn::LoadU(d, target + i), hn::LoadU(d, source + i)), d, target + i);
  for (; i < n; ++i) target[i] += source[i];
}

void add_f32_row(float* target, const float* source, size_t n) { add_row(target, source, n); }
void add_f64_row(double* target, const double* source, size_t n) { add_row(target, source, n); }

/// to[c * width + r] = from[r * stride + c] for r in [0, width), c in [0, height); both multiples of 4.
void transpose_words(const uint32_t* from, size_t stride, uint32_t* to, size_t width, size_t height) {
#if HWY_TARGET == HWY_SCALAR
  for (size_t r = 0; r < width; ++r)
    for (size_t c = 0; c < height; ++c) to[c * width + r] = from[r * stride + c];
#else
  const hn::FixedTag<uint32_t, 4> d;
  const hn::RepartitionToWide<decltype(d)> wide;
  for (size_t r = 0; r < width; r += 4)
    for (size_t c = 0; c < height; c += 4) {
      const uint32_t* at = from + r * stride + c;
      const auto row0 = hn::LoadU(d, at);
      const auto row1 = hn::LoadU(d, at + stride);
      const auto row2 = hn::LoadU(d, at + 2 * stride);
      const auto row3 = hn::LoadU(d, at + 3 * stride);
      const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, row0, row1));
      const auto low23 = hn::BitCast(wide, hn::InterleaveLower(d, row2, row3));
      const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, row0, row1));
      const auto high23 = hn::BitCast(wide, hn::InterleaveUpper(d, row2, row3));
      uint32_t* out = to + c * width + r;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, low01, low23)), d, out);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23)), d, out + width);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, high01, high23)), d, out + 2 * width);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23)), d, out + 3 * width);
    }
#endif
}

/// Zeroes a range without reading it into the cache first.
void stream_zeros(float* out, size_t n) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(out + i) % (lanes * sizeof(float)) != 0; ++i) out[i] = 0.0F;
  for (; i + lanes <= n; i += lanes) hn::Stream(hn::Zero(d), d, out + i);
  for (; i < n; ++i) out[i] = 0.0F;
  hwy::FlushStream();
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(add_f32_row);
HWY_EXPORT(add_f64_row);
HWY_EXPORT(transpose_words);
HWY_EXPORT(stream_zeros);

constexpr size_t kTileBytes = 262144;
/// Side of the square blocks in which a transpose goes through the cache.
constexpr size_t kSquare = 64;

constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

/// Runs body(begin, end) over [0, count) in tiles of `per_tile`; a single tile runs on the calling thread at once.
template <class Body>
void for_ranges(TilePool& pool, size_t count, size_t per_tile, const Body& body) {
  if (count == 0) return;
  const size_t tiles = ceil_div(count, per_tile);
  if (tiles == 1) {
    body(size_t{0}, count);
    return;
  }
  const struct {
    const Body& body;
    size_t count, per_tile;
  } context{body, count, per_tile};
  pool.run(tiles, [c = &context](size_t tile, size_t) {
    c->body(tile * c->per_tile, std::min((tile + 1) * c->per_tile, c->count));
  });
}

size_t rows_per_tile(size_t row_bytes) { return std::max<size_t>(1, kTileBytes / std::max<size_t>(1, row_bytes)); }

void require_present(const KernelRequest& request) {
  for (const Operand& operand : request.inputs) request.check(operand.present, "every input", "an absent one");
  for (const Operand& operand : request.outputs) request.check(operand.present, "every output", "an absent one");
}

void require_dtype(const KernelRequest& request, const Operand& operand, DType dtype) {
  request.check(operand.dtype == dtype, dtype_name(dtype), dtype_name(operand.dtype));
}

[[noreturn]] void index_error(const char* place, size_t limit, int64_t got) {
  throw Error(ErrorCode::kArgument, place, "an index in [0, " + std::to_string(limit) + ")", std::to_string(got));
}

/// The index as an offset, or throws kArgument.
inline size_t checked_index(const char* place, int32_t index, size_t limit) {
  if (index < 0 || static_cast<size_t>(index) >= limit) index_error(place, limit, index);
  return static_cast<size_t>(index);
}

/// Calls function with a value of the unsigned type that has the element's size.
template <class Function>
void with_element(size_t size, const Function& function) {
  switch (size) {
    case 1: function(uint8_t{}); return;
    case 2: function(uint16_t{}); return;
    case 4: function(uint32_t{}); return;
    default: function(uint64_t{}); return;
  }
}

/// [...a, ...b]
Shape joined(const KernelRequest& request, std::span<const int64_t> a, std::span<const int64_t> b) {
  std::vector<int64_t> dims(a.begin(), a.end());
  dims.insert(dims.end(), b.begin(), b.end());
  request.check(dims.size() <= Shape::kMaxRank, "at most 8 dimensions", std::to_string(dims.size()));
  return Shape(dims);
}

/// Rows of a matrix that stays as the file encodes it.
CompiledKernel gather_encoded_rows(std::shared_ptr<Storage> storage, size_t rows, size_t bytes, size_t count) {
  CompiledKernel kernel;
  kernel.consumed_inputs = {0};
  kernel.run = [storage = std::move(storage), rows, bytes, count](const RunArguments& arguments) {
    const auto* ids = arguments.input<int32_t>(1);
    auto* to = arguments.output<std::byte>(0);
    for_ranges(arguments.pool, count, rows_per_tile(bytes), [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i)
        storage->encoded_rows()->decode_row(checked_index("gather_rows", ids[i], rows), to + i * bytes);
    });
  };
  return kernel;
}

CompiledKernel compile_gather_rows(const KernelRequest& request) {
  request.expect_counts(2, 1);
  require_present(request);
  const Operand& table = request.inputs[0];
  const Operand& index = request.inputs[1];
  const Operand& y = request.outputs[0];
  require_dtype(request, index, DType::kI32);
  require_dtype(request, y, table.dtype);
  request.check(table.shape.rank() >= 1, "a table with rows", table.shape.str());
  const Shape expected = joined(request, index.shape.dims(), table.shape.dims().subspan(1));
  request.check(y.shape == expected, expected.str(), y.shape.str());

  const auto rows = static_cast<size_t>(table.shape[0]);
  const size_t bytes = table.shape.count(1, table.shape.rank()) * dtype_size(table.dtype);
  const EncodedRows* const encoded = table.frozen ? table.frozen->encoded_rows() : nullptr;
  if (encoded != nullptr && encoded->columns() * dtype_size(table.dtype) == bytes && bytes != 0)
    return gather_encoded_rows(table.frozen, rows, bytes, index.shape.count());
  CompiledKernel kernel;
  kernel.run = [rows, bytes, count = index.shape.count()](const RunArguments& arguments) {
    const auto* from = arguments.input<std::byte>(0);
    const auto* ids = arguments.input<int32_t>(1);
    auto* to = arguments.output<std::byte>(0);
    for_ranges(arguments.pool, count, rows_per_tile(bytes), [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const size_t row = checked_index("gather_rows", ids[i], rows);
        if (bytes != 0) std::memcpy(to + i * bytes, from + row * bytes, bytes);
      }
    });
  };
  return kernel;
}

struct ScatterPlan {
  size_t rows, count, width;
  size_t rows_per_tile, row_tiles;
  size_t columns_per_tile, column_tiles;
  bool sparse;  // most rows only become zero: they need not pass through the cache
};

/// Tiles are ranges of destination rows (and of columns when rows are few). A counting sort first lists, per row range,
/// the source rows that land there, in source order: every sum is taken in that order on any number of threads.
template <class T>
void run_scatter_add(const ScatterPlan& plan, const RunArguments& arguments) {
  const auto* ids = arguments.input<int32_t>(0);
  const auto* source = arguments.input<T>(1);
  auto* y = arguments.output<T>(0);
  auto* starts = arguments.thread_scratch<uint32_t>(0);
  uint32_t* order = starts + plan.row_tiles + 1;
  std::fill_n(starts, plan.row_tiles + 1, 0U);
  for (size_t i = 0; i < plan.count; ++i)
    ++starts[checked_index("scatter_add_rows", ids[i], plan.rows) / plan.rows_per_tile + 1];
  for (size_t tile = 0; tile < plan.row_tiles; ++tile) starts[tile + 1] += starts[tile];
  for (size_t i = 0; i < plan.count; ++i)
    order[starts[static_cast<size_t>(ids[i]) / plan.rows_per_tile]++] = static_cast<uint32_t>(i);
  // Each start has moved on to its range's end, which is the next range's start.
  const auto add = [] {
    if constexpr (std::is_same_v<T, double>)
      return HWY_DYNAMIC_DISPATCH(add_f64_row);
    else
      return HWY_DYNAMIC_DISPATCH(add_f32_row);
  }();
  const auto zero = HWY_DYNAMIC_DISPATCH(stream_zeros);
  constexpr size_t kFloats = std::is_same_v<T, double> ? 2 : 1;
  for_ranges(arguments.pool, plan.row_tiles * plan.column_tiles, 1, [&](size_t tile, size_t) {
    const size_t row_tile = tile / plan.column_tiles;
    const size_t column = tile % plan.column_tiles * plan.columns_per_tile;
    const size_t width = std::min(plan.columns_per_tile, plan.width - column);
    const size_t first = row_tile * plan.rows_per_tile;
    const size_t last = std::min(first + plan.rows_per_tile, plan.rows);
    if (plan.sparse)
      zero(reinterpret_cast<float*>(y + first * plan.width), (last - first) * plan.width * kFloats);
    else
      for (size_t row = first; row < last; ++row) std::fill_n(y + row * plan.width + column, width, T{0});
    for (size_t k = row_tile == 0 ? 0 : starts[row_tile - 1]; k < starts[row_tile]; ++k) {
      const size_t from = order[k];
      add(y + static_cast<size_t>(ids[from]) * plan.width + column, source + from * plan.width + column, width);
    }
  });
}

CompiledKernel compile_scatter_add_rows(const KernelRequest& request) {
  request.expect_counts(2, 1);
  require_present(request);
  const Operand& index = request.inputs[0];
  const Operand& source = request.inputs[1];
  const Operand& y = request.outputs[0];
  require_dtype(request, index, DType::kI32);
  request.check(y.dtype == DType::kF32 || y.dtype == DType::kF64, "f32 or f64", dtype_name(y.dtype));
  require_dtype(request, source, y.dtype);
  request.check(y.shape.rank() >= 1, "an output with rows", y.shape.str());
  const Shape expected = joined(request, index.shape.dims(), y.shape.dims().subspan(1));
  request.check(source.shape == expected, expected.str(), source.shape.str());
  const size_t count = index.shape.count();
  request.check(count < std::numeric_limits<uint32_t>::max(), "fewer than 2^32 - 1 indices", index.shape.str());

  ScatterPlan plan{};
  plan.rows = static_cast<size_t>(y.shape[0]);
  plan.count = count;
  plan.width = y.shape.count(1, y.shape.rank());
  // Rows without columns take no memory, so there may be any number of them: one tile.
  plan.rows_per_tile =
      plan.width == 0 ? std::max<size_t>(1, plan.rows) : rows_per_tile(plan.width * dtype_size(y.dtype));
  plan.row_tiles = ceil_div(plan.rows, plan.rows_per_tile);
  plan.columns_per_tile = std::max<size_t>(1, plan.width);
  // Few rows that many sources add to: split the columns.
  constexpr size_t kFewTiles = 8;
  constexpr size_t kColumns = 64;
  if (plan.row_tiles < kFewTiles && plan.count > plan.rows)
    plan.columns_per_tile = std::min(plan.columns_per_tile, kColumns);
  plan.column_tiles = ceil_div(plan.width, plan.columns_per_tile);
  plan.sparse = plan.column_tiles == 1 && plan.count < plan.rows / 4;

  CompiledKernel kernel;
  kernel.scratch_per_thread =
      checked_mul(checked_add(checked_add(plan.row_tiles, 1, "scatter_add_rows"), count, "scatter_add_rows"),
                  sizeof(uint32_t), "scatter_add_rows");
  kernel.run = [plan = std::make_shared<const ScatterPlan>(plan),
                run = y.dtype == DType::kF64 ? run_scatter_add<double> : run_scatter_add<float>](
                   const RunArguments& arguments) { run(*plan, arguments); };
  return kernel;
}

/// Checks that `rows` is `full` without its last dimension.
void require_rows_of(const KernelRequest& request, const Operand& rows, const Operand& full) {
  request.check(full.shape.rank() >= 1, "at least one dimension", full.shape.str());
  const Shape expected(full.shape.dims().first(full.shape.rank() - 1));
  request.check(rows.shape == expected, expected.str(), rows.shape.str());
}

CompiledKernel compile_gather_last(const KernelRequest& request) {
  request.expect_counts(2, 1);
  require_present(request);
  const Operand& x = request.inputs[0];
  const Operand& index = request.inputs[1];
  const Operand& y = request.outputs[0];
  require_dtype(request, index, DType::kI32);
  require_dtype(request, y, x.dtype);
  require_rows_of(request, index, x);
  require_rows_of(request, y, x);

  CompiledKernel kernel;
  kernel.run = [width = static_cast<size_t>(x.shape.back(0)), count = y.shape.count(),
                size = dtype_size(x.dtype)](const RunArguments& arguments) {
    const auto* from = arguments.input<std::byte>(0);
    const auto* ids = arguments.input<int32_t>(1);
    auto* to = arguments.output<std::byte>(0);
    // A row costs a cache line or two, whatever its width.
    for_ranges(arguments.pool, count, 8192, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i)
        std::memcpy(to + i * size, from + (i * width + checked_index("gather_last", ids[i], width)) * size, size);
    });
  };
  return kernel;
}

CompiledKernel compile_scatter_last(const KernelRequest& request) {
  request.expect_counts(2, 1);
  require_present(request);
  const Operand& index = request.inputs[0];
  const Operand& source = request.inputs[1];
  const Operand& y = request.outputs[0];
  require_dtype(request, index, DType::kI32);
  require_dtype(request, source, y.dtype);
  require_rows_of(request, index, y);
  require_rows_of(request, source, y);

  CompiledKernel kernel;
  kernel.run = [width = static_cast<size_t>(y.shape.back(0)), count = source.shape.count(),
                size = dtype_size(y.dtype)](const RunArguments& arguments) {
    const auto* ids = arguments.input<int32_t>(0);
    const auto* from = arguments.input<std::byte>(1);
    auto* to = arguments.output<std::byte>(0);
    for_ranges(arguments.pool, count, rows_per_tile(width * size), [&](size_t begin, size_t end) {
      if (width != 0) std::memset(to + begin * width * size, 0, (end - begin) * width * size);
      for (size_t i = begin; i < end; ++i)
        std::memcpy(to + (i * width + checked_index("scatter_last", ids[i], width)) * size, from + i * size, size);
    });
  };
  return kernel;
}

/// A dense tensor and a strided walk through another one, position by position: dims are the dense tensor's.
struct WalkPlan {
  StridedLoops loops;  // one operand: the strided one
  size_t base = 0;     // its offset in elements
  size_t size = 4;     // bytes per element
  size_t count = 0;    // elements of the dense tensor
  size_t strided_count = 0;
  // Transposes: the axis along which the strided operand is contiguous, when it is not the last.
  bool blocked = false;
  size_t contiguous_axis = 0;
};

WalkPlan make_walk(const Shape& dense, const std::array<size_t, Shape::kMaxRank>& strides, size_t base, DType dtype) {
  WalkPlan plan;
  plan.loops.rank = dense.rank();
  for (size_t axis = 0; axis < dense.rank(); ++axis) plan.loops.dims[axis] = static_cast<size_t>(dense[axis]);
  plan.loops.strides = {strides};
  plan.loops.collapse();
  plan.base = base;
  plan.size = dtype_size(dtype);
  plan.count = dense.count();
  const size_t last = plan.loops.rank - 1;
  if (plan.loops.strides[0][last] > 1)
    for (size_t axis = 0; axis < last; ++axis)
      if (plan.loops.strides[0][axis] == 1) {
        plan.blocked = true;
        plan.contiguous_axis = axis;
      }
  return plan;
}

/// dense <- strided over rows [begin, end) of the innermost dimension, or strided <- dense when kScatter.
template <class T, bool kScatter>
void walk_rows(const WalkPlan& plan, T* dense, T* strided, size_t begin, size_t end) {
  const StridedLoops& loops = plan.loops;
  const size_t last = loops.rank - 1;
  const size_t n = loops.dims[last];
  const size_t stride = loops.strides[0][last];
  for (size_t row = begin; row < end; ++row) {
    T* outer = dense + row * n;
    T* inner = strided + plan.base + loops.offset(0, row, last);
    if (stride == 1) {
      if constexpr (kScatter)
        std::memcpy(inner, outer, n * sizeof(T));
      else
        std::memcpy(outer, inner, n * sizeof(T));
    } else if constexpr (kScatter) {
      for (size_t i = 0; i < n; ++i) inner[i * stride] = outer[i];
    } else if (stride == 0) {
      std::fill_n(outer, n, *inner);
    } else {
      for (size_t i = 0; i < n; ++i) outer[i] = inner[i * stride];
    }
  }
}

/// dense <- strided for a transpose: units are squares of (contiguous axis, last axis) for each place of the others.
template <class T>
void walk_squares(const WalkPlan& plan, T* dense, const T* strided, size_t begin, size_t end) {
  const StridedLoops& loops = plan.loops;
  const size_t last = loops.rank - 1;
  const size_t middle = plan.contiguous_axis;
  const size_t columns = loops.dims[last];
  const size_t rows = loops.dims[middle];
  const size_t stride = loops.strides[0][last];
  size_t row_step = columns;  // distance in the dense tensor between neighbours along the contiguous axis
  for (size_t axis = middle + 1; axis < last; ++axis) row_step *= loops.dims[axis];
  const size_t row_squares = ceil_div(rows, kSquare);
  const size_t column_squares = ceil_div(columns, kSquare);
  for (size_t unit = begin; unit < end; ++unit) {
    size_t rest = unit / (row_squares * column_squares);
    const size_t square = unit % (row_squares * column_squares);
    size_t from = plan.base;
    size_t to = 0;
    size_t step = columns;
    for (size_t axis = last; axis-- > 0;) {
      if (axis != middle) {
        from += rest % loops.dims[axis] * loops.strides[0][axis];
        to += rest % loops.dims[axis] * step;
        rest /= loops.dims[axis];
      }
      step *= loops.dims[axis];
    }
    const size_t row = square / column_squares * kSquare;
    const size_t column = square % column_squares * kSquare;
    const size_t row_end = std::min(row + kSquare, rows);
    const size_t width = std::min(kSquare, columns - column);
    const T* in = strided + from + column * stride + row;
    T* out = dense + to + row * row_step + column;
    if (sizeof(T) == sizeof(uint32_t) && row_end - row == kSquare && width == kSquare) {
      // Through a compact square: in the tensors themselves the lines of a column tend to share a cache set.
      alignas(64) uint32_t square_words[kSquare * kSquare];
      HWY_DYNAMIC_DISPATCH(transpose_words)
      (reinterpret_cast<const uint32_t*>(in), stride, square_words, kSquare, kSquare);
      for (size_t r = 0; r < kSquare; ++r)
        std::memcpy(out + r * row_step, square_words + r * kSquare, kSquare * sizeof(T));
      continue;
    }
    for (size_t r = 0; r < row_end - row; ++r)
      for (size_t c = 0; c < width; ++c) out[r * row_step + c] = in[c * stride + r];
  }
}

void run_walk(const WalkPlan& plan, TilePool& pool, void* dense, const void* strided) {
  if (plan.count == 0) return;
  const size_t last = plan.loops.rank - 1;
  with_element(plan.size, [&](auto element) {
    using T = decltype(element);
    auto* to = static_cast<T*>(dense);
    if (plan.blocked) {
      const auto* from = static_cast<const T*>(strided);
      const size_t rows = plan.loops.dims[plan.contiguous_axis];
      const size_t columns = plan.loops.dims[last];
      const size_t squares = ceil_div(rows, kSquare) * ceil_div(columns, kSquare);
      const size_t units = plan.count / rows / columns * squares;
      const size_t unit_bytes = plan.count * plan.size / units;
      for_ranges(pool, units, rows_per_tile(unit_bytes),
                 [&](size_t begin, size_t end) { walk_squares<T>(plan, to, from, begin, end); });
      return;
    }
    // A gather never writes to the strided side.
    auto* from = const_cast<T*>(static_cast<const T*>(strided));
    const size_t n = plan.loops.dims[last];
    for_ranges(pool, plan.count / n, rows_per_tile(n * plan.size),
               [&](size_t begin, size_t end) { walk_rows<T, false>(plan, to, from, begin, end); });
  });
}

void run_scatter_walk(const WalkPlan& plan, TilePool& pool, const void* dense, void* strided) {
  auto* bytes = static_cast<std::byte*>(strided);
  for_ranges(pool, plan.strided_count * plan.size, kTileBytes,
             [&](size_t begin, size_t end) { std::memset(bytes + begin, 0, end - begin); });
  if (plan.count == 0) return;
  const size_t n = plan.loops.dims[plan.loops.rank - 1];
  with_element(plan.size, [&](auto element) {
    using T = decltype(element);
    auto* from = const_cast<T*>(static_cast<const T*>(dense));
    auto* to = static_cast<T*>(strided);
    for_ranges(pool, plan.count / n, rows_per_tile(n * plan.size),
               [&](size_t begin, size_t end) { walk_rows<T, true>(plan, from, to, begin, end); });
  });
}

/// The walk of a slice `part` through `whole`, from the attributes `start` and `step`.
WalkPlan slice_walk(const KernelRequest& request, const Operand& part, const Operand& whole) {
  require_dtype(request, part, whole.dtype);
  const size_t rank = whole.shape.rank();
  request.check(part.shape.rank() == rank, std::to_string(rank) + " dimensions", part.shape.str());
  const auto& start = request.attributes.integers("start");
  const auto& step = request.attributes.integers("step");
  request.check(start.size() == rank && step.size() == rank, "a start and a step per dimension",
                std::to_string(start.size()));
  auto strides = dense_strides(whole.shape);
  size_t base = 0;
  for (size_t axis = 0; axis < rank; ++axis) {
    const int64_t size = part.shape[axis];
    const int64_t dim = whole.shape[axis];
    request.check(start[axis] >= 0 && start[axis] <= dim, "a start within " + whole.shape.str(),
                  std::to_string(start[axis]));
    request.check(step[axis] >= 1, "a step >= 1", std::to_string(step[axis]));
    // (size - 1) * step < dim - start, without overflow.
    request.check(size == 0 || (dim > start[axis] && size - 1 <= (dim - start[axis] - 1) / step[axis]),
                  "a slice within " + whole.shape.str(), part.shape.str());
    base += static_cast<size_t>(start[axis]) * strides[axis];
    strides[axis] *= size > 1 ? static_cast<size_t>(step[axis]) : 1;
  }
  WalkPlan plan = make_walk(part.shape, strides, base, part.dtype);
  plan.strided_count = whole.shape.count();
  return plan;
}

CompiledKernel gather_kernel(WalkPlan plan) {
  CompiledKernel kernel;
  kernel.run = [plan = std::make_shared<const WalkPlan>(std::move(plan))](const RunArguments& arguments) {
    run_walk(*plan, arguments.pool, arguments.out[0], arguments.in[0]);
  };
  return kernel;
}

CompiledKernel compile_slice(const KernelRequest& request) {
  request.expect_counts(1, 1);
  require_present(request);
  return gather_kernel(slice_walk(request, request.outputs[0], request.inputs[0]));
}

CompiledKernel compile_slice_vjp(const KernelRequest& request) {
  request.expect_counts(1, 1);
  require_present(request);
  CompiledKernel kernel;
  kernel.run = [plan = std::make_shared<const WalkPlan>(slice_walk(request, request.inputs[0], request.outputs[0]))](
                   const RunArguments& arguments) {
    run_scatter_walk(*plan, arguments.pool, arguments.in[0], arguments.out[0]);
  };
  return kernel;
}

CompiledKernel compile_broadcast_to(const KernelRequest& request) {
  request.expect_counts(1, 1);
  require_present(request);
  const Operand& x = request.inputs[0];
  const Operand& y = request.outputs[0];
  require_dtype(request, x, y.dtype);
  return gather_kernel(make_walk(y.shape, broadcast_strides(request, x.shape, y.shape), 0, y.dtype));
}

CompiledKernel compile_transpose(const KernelRequest& request) {
  request.expect_counts(1, 1);
  require_present(request);
  const Operand& x = request.inputs[0];
  const Operand& y = request.outputs[0];
  require_dtype(request, x, y.dtype);
  const auto& permutation = request.attributes.integers("permutation");
  const size_t rank = x.shape.rank();
  request.check(permutation.size() == rank && y.shape.rank() == rank, std::to_string(rank) + " axes",
                std::to_string(permutation.size()));
  const auto dense = dense_strides(x.shape);
  std::array<size_t, Shape::kMaxRank> strides{};
  std::array<bool, Shape::kMaxRank> used{};
  for (size_t axis = 0; axis < rank; ++axis) {
    const int64_t from = permutation[axis];
    request.check(from >= 0 && static_cast<uint64_t>(from) < rank && !used[static_cast<size_t>(from)],
                  "a permutation of the axes", std::to_string(from));
    used[static_cast<size_t>(from)] = true;
    request.check(y.shape[axis] == x.shape[static_cast<size_t>(from)], "the input's dimensions, permuted",
                  y.shape.str());
    strides[axis] = dense[static_cast<size_t>(from)];
  }
  return gather_kernel(make_walk(y.shape, strides, 0, y.dtype));
}

CompiledKernel compile_copy(const KernelRequest& request) {
  request.expect_counts(1, 1);
  require_present(request);
  const Operand& x = request.inputs[0];
  const Operand& y = request.outputs[0];
  require_dtype(request, x, y.dtype);
  request.check(x.shape == y.shape, x.shape.str(), y.shape.str());
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [bytes = y.shape.bytes(y.dtype)](const RunArguments& arguments) {
    const auto* from = arguments.input<std::byte>(0);
    auto* to = arguments.output<std::byte>(0);
    if (from == to) return;
    for_ranges(arguments.pool, bytes, kTileBytes,
               [&](size_t begin, size_t end) { std::memcpy(to + begin, from + begin, end - begin); });
  };
  return kernel;
}

struct ConcatPlan {
  size_t outer = 0;
  std::vector<size_t> begins;  // byte position of each input within an output row, and the row's end
};

/// Copies bytes [begin, end) of the output.
void concat_range(const ConcatPlan& plan, const RunArguments& arguments, size_t begin, size_t end) {
  const size_t row_bytes = plan.begins.back();
  size_t row = begin / row_bytes;
  size_t at = begin % row_bytes;
  size_t input =
      static_cast<size_t>(std::upper_bound(plan.begins.begin(), plan.begins.end(), at) - plan.begins.begin()) - 1;
  auto* to = arguments.output<std::byte>(0);
  while (begin < end) {
    const size_t input_bytes = plan.begins[input + 1] - plan.begins[input];
    const size_t within = at - plan.begins[input];
    const size_t n = std::min(end - begin, input_bytes - within);
    if (n != 0) std::memcpy(to + begin, arguments.input<std::byte>(input) + row * input_bytes + within, n);
    begin += n;
    at += n;
    if (at == plan.begins[input + 1]) ++input;
    if (at == row_bytes) {
      at = 0;
      input = 0;
      ++row;
    }
  }
}

CompiledKernel compile_concat(const KernelRequest& request) {
  request.check(!request.inputs.empty() && request.outputs.size() == 1, "inputs and one output",
                std::to_string(request.inputs.size()) + " inputs");
  require_present(request);
  const Operand& y = request.outputs[0];
  const int64_t axis_value = request.attributes.integer("axis");
  request.check(axis_value >= 0 && static_cast<uint64_t>(axis_value) < y.shape.rank(), "an axis of " + y.shape.str(),
                std::to_string(axis_value));
  const auto axis = static_cast<size_t>(axis_value);
  const size_t inner = y.shape.count(axis + 1, y.shape.rank()) * dtype_size(y.dtype);
  ConcatPlan plan;
  plan.outer = y.shape.count(0, axis);
  plan.begins.push_back(0);
  size_t total = 0;
  for (const Operand& x : request.inputs) {
    require_dtype(request, x, y.dtype);
    request.check(x.shape.rank() == y.shape.rank(), y.shape.str() + " up to the axis", x.shape.str());
    for (size_t other = 0; other < y.shape.rank(); ++other)
      request.check(other == axis || x.shape[other] == y.shape[other], y.shape.str() + " up to the axis",
                    x.shape.str());
    total = checked_add(total, static_cast<size_t>(x.shape[axis]), "concat");
    plan.begins.push_back(plan.begins.back() + static_cast<size_t>(x.shape[axis]) * inner);
  }
  request.check(total == static_cast<size_t>(y.shape[axis]), "inputs that fill " + y.shape.str(),
                std::to_string(total));
  CompiledKernel kernel;
  kernel.run = [plan = std::make_shared<const ConcatPlan>(std::move(plan))](const RunArguments& arguments) {
    for_ranges(arguments.pool, plan->outer * plan->begins.back(), kTileBytes,
               [&](size_t begin, size_t end) { concat_range(*plan, arguments, begin, end); });
  };
  return kernel;
}

struct CachePlan {
  size_t batch, slots, fresh, width;  // width: elements of one position, heads * head size
  bool bf16;
};

void run_cache_update(const CachePlan& plan, const RunArguments& arguments) {
  const auto* fresh = arguments.input<float>(1);
  const auto* position = arguments.input<int32_t>(2);
  // All rows are checked before the first is written, so that a failure leaves the cache as it was.
  for (size_t row = 0; row < plan.batch; ++row)
    checked_index("cache_update", position[row], plan.slots - plan.fresh + 1);
  const size_t n = plan.fresh * plan.width;
  for_ranges(arguments.pool, plan.batch, rows_per_tile(n * sizeof(float)), [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      const float* from = fresh + row * n;
      const size_t to = (row * plan.slots + static_cast<size_t>(position[row])) * plan.width;
      if (n == 0) continue;
      if (!plan.bf16) {
        std::memcpy(arguments.output<float>(0) + to, from, n * sizeof(float));
        continue;
      }
      auto* out = arguments.output<uint16_t>(0) + to;
      for (size_t i = 0; i < n; ++i) out[i] = f32_to_bf16(from[i]);
    }
  });
}

CompiledKernel compile_cache_update(const KernelRequest& request) {
  request.expect_counts(3, 1);
  require_present(request);
  const Operand& cache = request.inputs[0];
  const Operand& fresh = request.inputs[1];
  const Operand& position = request.inputs[2];
  const Operand& y = request.outputs[0];
  request.check(cache.dtype == DType::kF32 || cache.dtype == DType::kBF16, "an f32 or bf16 cache",
                dtype_name(cache.dtype));
  require_dtype(request, fresh, DType::kF32);
  require_dtype(request, position, DType::kI32);
  require_dtype(request, y, cache.dtype);
  request.check(cache.shape.rank() == 4 && fresh.shape.rank() == 4, "[batch, time, heads, size]", fresh.shape.str());
  request.check(y.shape == cache.shape && y.buffer == cache.buffer, "the cache itself as output", y.shape.str());
  for (const size_t axis : {0, 2, 3})
    request.check(fresh.shape[axis] == cache.shape[axis], cache.shape.str() + " up to the time axis",
                  fresh.shape.str());
  request.check(fresh.shape[1] <= cache.shape[1], "at most as many positions as the cache has", fresh.shape.str());
  request.check(position.shape == Shape({cache.shape[0]}), "one position per row", position.shape.str());

  const CachePlan plan{static_cast<size_t>(cache.shape[0]), static_cast<size_t>(cache.shape[1]),
                       static_cast<size_t>(fresh.shape[1]), cache.shape.count(2, 4), cache.dtype == DType::kBF16};
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [plan = std::make_shared<const CachePlan>(plan)](const RunArguments& arguments) {
    run_cache_update(*plan, arguments);
  };
  return kernel;
}

}  // namespace

void register_index(KernelTable& table) {
  table["gather_rows"] = compile_gather_rows;
  table["scatter_add_rows"] = compile_scatter_add_rows;
  table["gather_last"] = compile_gather_last;
  table["scatter_last"] = compile_scatter_last;
  table["slice"] = compile_slice;
  table["slice_vjp"] = compile_slice_vjp;
  table["concat"] = compile_concat;
  table["transpose"] = compile_transpose;
  table["broadcast_to"] = compile_broadcast_to;
  table["copy"] = compile_copy;
  table["cache_update"] = compile_cache_update;
}

}  // namespace heddle

#endif  // HWY_ONCE
