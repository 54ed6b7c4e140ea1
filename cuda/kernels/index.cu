// Moving elements: rows by index, strided walks (slices, broadcasts, transposes), concatenation, the cache of keys and
// values. Nothing is rounded but where a cache is bf16.
#include <bit>
#include <vector>

#include "cuda/core/device_buffer.h"
#include "cuda/core/elements.cuh"
#include "cuda/core/loops.h"
#include "cuda/core/shared.cuh"
#include "cuda/kernels/kernel_table.h"
#include "cuda/library/sort.h"
#include "cuda/quant/blocks.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;

int64_t elements(const Operand& operand) { return static_cast<int64_t>(operand.shape.count()); }

/// Elements of a row of x [rows, ...].
int64_t row_elements(const Operand& x) { return static_cast<int64_t>(x.shape.count(1, x.shape.rank())); }

template <class T>
__global__ void gather_row_elements(const T* table, const int32_t* index, T* y, int64_t rows, int64_t width,
                                    int64_t count, Report report) {
  for (int64_t at = first_unit(); at < count * width; at += unit_step()) {
    const int64_t row = index[at / width];
    if (within(report, row, 0, rows)) y[at] = table[row * width + at % width];
  }
}

Kernel gather_block_rows(const BlockMatrix& table, DType dtype, int64_t count) {
  Kernel kernel;
  kernel.forms = {{0, HEDDLE_BLOCKS}};
  kernel.run = [=](const Run& run) {
    gather_rows(run, table, run.in[0], run.input<int32_t>(1), count, dtype, run.out[0]);
  };
  return kernel;
}

Kernel compile_gather_rows(const KernelRequest& request) {
  const Operand& table = request.inputs[0];
  const int64_t rows = table.shape[0], width = row_elements(table), count = elements(request.inputs[1]);
  if (count * width == 0) return nothing();
  const std::optional<BlockMatrix> blocks = BlockMatrix::of(table);
  if (blocks && blocks->form == HEDDLE_BLOCKS) return gather_block_rows(*blocks, table.dtype, count);
  return with_element(table.dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    return {.run = [=](const Run& run) {
      launch(run, gather_row_elements<T>, grid_of(count * width), run.input<T>(0), run.input<int32_t>(1),
             run.output<T>(0), rows, width, count, run.report);
    }};
  });
}

/// What scatter_add_rows sorts: destination rows, and where in the source they stand. Bad indices come last, as `rows`.
__global__ void list_rows(const int32_t* index, uint32_t* keys, uint32_t* places, int64_t rows, int64_t count,
                          Report report) {
  for (int64_t i = first_unit(); i < count; i += unit_step()) {
    keys[i] = within(report, index[i], 0, rows) ? static_cast<uint32_t>(index[i]) : static_cast<uint32_t>(rows);
    places[i] = static_cast<uint32_t>(i);
  }
}

/// Adds up the source rows of each destination in their order; y is zero before. A block takes the run of equal keys
/// that starts at its place, if one does.
template <class T>
__global__ void add_runs(const uint32_t* keys, const uint32_t* places, const T* source, T* y, int64_t rows,
                         int64_t width, int64_t count) {
  for (int64_t first = blockIdx.x; first < count; first += gridDim.x) {
    const uint32_t row = keys[first];
    if (row >= rows || (first > 0 && keys[first - 1] == row)) continue;
    for (int64_t column = threadIdx.x; column < width; column += blockDim.x) {
      T sum{0};
      for (int64_t i = first; i < count && keys[i] == row; ++i) sum += source[places[i] * width + column];
      y[row * width + column] = sum;
    }
  }
}

struct ScatterScratch {
  size_t keys = 0, places = 0, sorted_keys = 0, sorted_places = 0, sort = 0, sort_bytes = 0;
  ScratchLayout layout;

  explicit ScatterScratch(int64_t count) {
    for (size_t* const each : {&keys, &places, &sorted_keys, &sorted_places})
      *each = layout.take(count, sizeof(uint32_t));
    sort_bytes = sort_pairs_scratch(count);
    sort = layout.take(static_cast<int64_t>(sort_bytes), 1);
  }
};

template <class T>
Kernel scatter_rows(int64_t rows, int64_t width, int64_t count) {
  const ScatterScratch scratch(count);
  Kernel kernel;
  kernel.scratch_bytes = scratch.layout.bytes;
  kernel.run = [=](const Run& run) {
    auto *keys = run.scratch_at<uint32_t>(scratch.keys), *places = run.scratch_at<uint32_t>(scratch.places);
    auto *sorted_keys = run.scratch_at<uint32_t>(scratch.sorted_keys),
         *sorted_places = run.scratch_at<uint32_t>(scratch.sorted_places);
    T* const y = run.output<T>(0);
    check(cudaMemsetAsync(y, 0, static_cast<size_t>(rows * width) * sizeof(T), run.stream), run.report.operation);
    if (count == 0) return;
    launch(run, list_rows, grid_of(count), run.input<int32_t>(0), keys, places, rows, count, run.report);
    sort_pairs(run.stream, keys, sorted_keys, places, sorted_places, count, std::bit_width(static_cast<uint64_t>(rows)),
               run.scratch_at<void>(scratch.sort), scratch.sort_bytes);
    const auto threads = static_cast<unsigned>(std::clamp<int64_t>(ceil_div(width, 32) * 32, 32, kThreads));
    launch(run, add_runs<T>, {blocks_for(count), threads}, sorted_keys, sorted_places, run.input<T>(1), y, rows, width,
           count);
  };
  return kernel;
}

Kernel compile_scatter_add_rows(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  const int64_t rows = y.shape[0], width = row_elements(y), count = elements(request.inputs[0]);
  if (rows * width == 0) return nothing();
  if (rows >= UINT32_MAX) unsupported(request, "fewer than 2^32 - 1 rows", y.shape.str());
  if (count > INT32_MAX) unsupported(request, "at most 2^31 - 1 indices", request.inputs[0].shape.str());
  return y.dtype == DType::kF64 ? scatter_rows<double>(rows, width, count) : scatter_rows<float>(rows, width, count);
}

template <class T>
__global__ void gather_last_elements(const T* x, const int32_t* index, T* y, int64_t width, int64_t count,
                                     Report report) {
  for (int64_t i = first_unit(); i < count; i += unit_step())
    if (within(report, index[i], 0, width)) y[i] = x[i * width + index[i]];
}

/// Every element of y is written once: as the source's where the index says so, as zero elsewhere.
template <class T>
__global__ void scatter_last_elements(const int32_t* index, const T* source, T* y, int64_t width, int64_t count,
                                      Report report) {
  for (int64_t at = first_unit(); at < count * width; at += unit_step()) {
    const int64_t row = at / width;
    const int64_t place = index[row];
    if (at % width == 0) within(report, place, 0, width);
    y[at] = at % width == place ? source[row] : T{0};
  }
}

Kernel compile_gather_last(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  const int64_t width = x.shape.back(0), count = elements(request.outputs[0]);
  if (count == 0) return nothing();
  return with_element(x.dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    return {.run = [=](const Run& run) {
      launch(run, gather_last_elements<T>, grid_of(count), run.input<T>(0), run.input<int32_t>(1), run.output<T>(0),
             width, count, run.report);
    }};
  });
}

Kernel compile_scatter_last(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  const int64_t width = y.shape.back(0), count = elements(request.inputs[1]);
  if (count * width == 0) return nothing();
  return with_element(y.dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    return {.run = [=](const Run& run) {
      launch(run, scatter_last_elements<T>, grid_of(count * width), run.input<int32_t>(0), run.input<T>(1),
             run.output<T>(0), width, count, run.report);
    }};
  });
}

/// dense[i] = strided[walk(i)]
template <class T>
__global__ void walk_elements(const T* strided, T* dense, Walk walk, int64_t count) {
  for (int64_t at = first_unit(); at < count; at += unit_step()) dense[at] = strided[walk.offset(at)];
}

/// strided[walk(i)] = dense[i]
template <class T>
__global__ void spread_elements(const T* dense, T* strided, Walk walk, int64_t count) {
  for (int64_t at = first_unit(); at < count; at += unit_step()) strided[walk.offset(at)] = dense[at];
}

constexpr unsigned kSquare = 32;
constexpr unsigned kSquareRows = 8;

/// A transpose by squares of (axis `middle`, along which the strided operand is contiguous; last axis): both sides are
/// read and written in runs.
struct Squares {
  /// Strides of the strided side and of the dense one, over the same dimensions.
  Walk strided, dense;
  int middle = 0;
  int64_t rows = 0, columns = 0;
  int64_t others = 1;

  __host__ __device__ int64_t row_squares() const { return (rows + kSquare - 1) / kSquare; }
  __host__ __device__ int64_t column_squares() const { return (columns + kSquare - 1) / kSquare; }
  __host__ __device__ int64_t units() const { return others * row_squares() * column_squares(); }
};

/// Where the place `rest` of all axes but the middle and the last one lies.
__device__ inline int64_t other_offset(const Walk& walk, int middle, int64_t rest) {
  int64_t offset = 0;
  for (int axis = walk.rank - 2; axis >= 0; --axis) {
    if (axis == middle) continue;
    offset += rest % walk.dims[axis] * walk.strides[axis];
    rest /= walk.dims[axis];
  }
  return offset;
}

template <class T>
__global__ void transpose_squares(const T* strided, T* dense, Squares squares) {
  // A column more, so that the lines of a column lie in different banks.
  __shared__ Shared<T, kSquare*(kSquare + 1)> square;
  const int64_t columns_step = squares.strided.strides[squares.strided.rank - 1];
  const int64_t rows_step = squares.dense.strides[squares.middle];
  for (int64_t unit = blockIdx.x; unit < squares.units(); unit += gridDim.x) {
    const int64_t other = unit / (squares.row_squares() * squares.column_squares());
    const int64_t row = unit / squares.column_squares() % squares.row_squares() * kSquare;
    const int64_t column = unit % squares.column_squares() * kSquare;
    const T* const from = strided + other_offset(squares.strided, squares.middle, other);
    T* const to = dense + other_offset(squares.dense, squares.middle, other);
    for (unsigned c = threadIdx.y; c < kSquare; c += kSquareRows)
      if (row + threadIdx.x < squares.rows && column + c < squares.columns)
        square[c * (kSquare + 1) + threadIdx.x] = from[(column + c) * columns_step + row + threadIdx.x];
    __syncthreads();
    for (unsigned r = threadIdx.y; r < kSquare; r += kSquareRows)
      if (row + r < squares.rows && column + threadIdx.x < squares.columns)
        to[(row + r) * rows_step + column + threadIdx.x] = square[threadIdx.x * (kSquare + 1) + r];
    __syncthreads();
  }
}

Walk dense_walk(const Walk& walk) {
  Walk dense = walk;
  int64_t stride = 1;
  for (int axis = walk.rank; axis-- > 0;) {
    dense.strides[axis] = stride;
    stride *= walk.dims[axis];
  }
  return dense;
}

/// The walk of `dense` through an operand with these strides, which starts at element `base` of it.
Kernel gather_walk(const Shape& dense, const std::array<size_t, Shape::kMaxRank>& strides, int64_t base, DType dtype) {
  std::array<size_t, Shape::kMaxRank> dims{};
  for (size_t axis = 0; axis < dense.rank(); ++axis) dims[axis] = static_cast<size_t>(dense[axis]);
  const Walk walk = single_walk(dense.rank(), dims, strides);
  const auto count = static_cast<int64_t>(dense.count());
  if (count == 0) return nothing();
  Squares squares;
  squares.strided = walk;
  squares.dense = dense_walk(walk);
  squares.middle = -1;
  if (walk.strides[walk.rank - 1] > 1)
    for (int axis = 0; axis < walk.rank - 1; ++axis)
      if (walk.strides[axis] == 1) squares.middle = axis;
  if (squares.middle >= 0) {
    squares.rows = walk.dims[squares.middle];
    squares.columns = walk.dims[walk.rank - 1];
    squares.others = count / squares.rows / squares.columns;
  }
  return with_element(dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    if (squares.middle >= 0)
      return {.run = [=](const Run& run) {
        launch(run, transpose_squares<T>, {blocks_for(squares.units()), dim3(kSquare, kSquareRows)},
               run.input<T>(0) + base, run.output<T>(0), squares);
      }};
    return {.run = [=](const Run& run) {
      launch(run, walk_elements<T>, grid_of(count), run.input<T>(0) + base, run.output<T>(0), walk, count);
    }};
  });
}

/// Strides of the slice that the attributes `start` and `step` choose of `whole`, and where it begins.
std::array<size_t, Shape::kMaxRank> slice_strides(const KernelRequest& request, const Shape& part, const Shape& whole,
                                                  int64_t& base) {
  const auto& start = request.attributes.integers("start");
  const auto& step = request.attributes.integers("step");
  auto strides = dense_strides(whole);
  base = 0;
  for (size_t axis = 0; axis < whole.rank(); ++axis) {
    base += start[axis] * static_cast<int64_t>(strides[axis]);
    strides[axis] *= part[axis] > 1 ? static_cast<size_t>(step[axis]) : 1;
  }
  return strides;
}

Kernel compile_slice(const KernelRequest& request) {
  const Shape& part = request.outputs[0].shape;
  int64_t base = 0;
  const auto strides = slice_strides(request, part, request.inputs[0].shape, base);
  return gather_walk(part, strides, base, request.outputs[0].dtype);
}

Kernel compile_slice_vjp(const KernelRequest& request) {
  const Operand& part = request.inputs[0];
  const Operand& whole = request.outputs[0];
  int64_t base = 0;
  const auto strides = slice_strides(request, part.shape, whole.shape, base);
  std::array<size_t, Shape::kMaxRank> dims{};
  for (size_t axis = 0; axis < part.shape.rank(); ++axis) dims[axis] = static_cast<size_t>(part.shape[axis]);
  const Walk walk = single_walk(part.shape.rank(), dims, strides);
  const int64_t count = elements(part);
  const size_t bytes = whole.shape.bytes(whole.dtype);
  if (bytes == 0) return nothing();
  return with_element(whole.dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    return {.run = [=](const Run& run) {
      check(cudaMemsetAsync(run.out[0], 0, bytes, run.stream), run.report.operation);
      if (count != 0)
        launch(run, spread_elements<T>, grid_of(count), run.input<T>(0), run.output<T>(0) + base, walk, count);
    }};
  });
}

Kernel compile_broadcast_to(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  return gather_walk(y.shape, broadcast_strides(request, request.inputs[0].shape, y.shape), 0, y.dtype);
}

Kernel compile_transpose(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  const auto dense = dense_strides(request.inputs[0].shape);
  std::array<size_t, Shape::kMaxRank> strides{};
  size_t axis = 0;
  for (const int64_t from : request.attributes.integers("permutation"))
    strides[axis++] = dense[static_cast<size_t>(from)];
  return gather_walk(y.shape, strides, 0, y.dtype);
}

Kernel compile_copy(const KernelRequest& request) {
  const size_t bytes = request.outputs[0].shape.bytes(request.outputs[0].dtype);
  Kernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [bytes](const Run& run) {
    if (bytes != 0 && run.in[0] != run.out[0])
      check(cudaMemcpyAsync(run.out[0], run.in[0], bytes, cudaMemcpyDefault, run.stream), run.report.operation);
  };
  return kernel;
}

/// Columns [begin, begin + width) of y [rows, total] = x [rows, width].
template <class T>
__global__ void place_columns(const T* x, T* y, int64_t rows, int64_t width, int64_t begin, int64_t total) {
  for (int64_t at = first_unit(); at < rows * width; at += unit_step())
    y[at / width * total + begin + at % width] = x[at];
}

Kernel compile_concat(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  const auto axis = static_cast<size_t>(request.attributes.integer("axis"));
  const auto inner = static_cast<int64_t>(y.shape.count(axis + 1, y.shape.rank()));
  const auto rows = static_cast<int64_t>(y.shape.count(0, axis));
  const int64_t total = y.shape[axis] * inner;
  std::vector<int64_t> widths;
  for (const Operand& x : request.inputs) widths.push_back(x.shape[axis] * inner);
  if (rows * total == 0) return nothing();
  return with_element(y.dtype, [=](auto element) -> Kernel {
    using T = decltype(element);
    return {.run = [=](const Run& run) {
      int64_t begin = 0;
      for (size_t i = 0; i < widths.size(); ++i) {
        if (widths[i] != 0)
          launch(run, place_columns<T>, grid_of(rows * widths[i]), run.input<T>(i), run.output<T>(0), rows, widths[i],
                 begin, total);
        begin += widths[i];
      }
    }};
  });
}

__device__ inline void put(float value, float& to) { to = value; }
__device__ inline void put(float value, Bf16& to) { to = to_bf16(value); }

/// cache [batch, slots, width] at position[row] = fresh [batch, steps, width]. Every block looks at all positions, so
/// that nothing is written when one is wrong.
template <class T>
__global__ void update_cache(const float* fresh, const int32_t* position, T* cache, int64_t batch, int64_t slots,
                             int64_t steps, int64_t width, Report report) {
  int right = 1;
  for (int64_t row = threadIdx.x; row < batch; row += blockDim.x)
    if (!within(report, position[row], 0, slots - steps + 1)) right = 0;
  if (!__syncthreads_and(right)) return;
  const int64_t per_row = steps * width;
  for (int64_t at = first_unit(); at < batch * per_row; at += unit_step()) {
    const int64_t row = at / per_row;
    put(fresh[at], cache[(row * slots + position[row]) * width + at % per_row]);
  }
}

Kernel compile_cache_update(const KernelRequest& request) {
  const Operand& cache = request.inputs[0];
  const int64_t batch = cache.shape[0], slots = cache.shape[1], steps = request.inputs[1].shape[1];
  const auto width = static_cast<int64_t>(cache.shape.count(2, 4));
  const bool half = cache.dtype == DType::kBF16;
  Kernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [=](const Run& run) {
    if (batch * steps * width == 0) return;
    const Grid grid = grid_of(batch * steps * width);
    if (half)
      launch(run, update_cache<Bf16>, grid, run.input<float>(1), run.input<int32_t>(2), run.output<Bf16>(0), batch,
             slots, steps, width, run.report);
    else
      launch(run, update_cache<float>, grid, run.input<float>(1), run.input<int32_t>(2), run.output<float>(0), batch,
             slots, steps, width, run.report);
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

}  // namespace heddle::cuda
