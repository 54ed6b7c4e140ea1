// Products with a sparse matrix S of a fixed support: `spmm`, its gradient by the values `sddmm`, and the ways between
// S and a dense matrix, `sparse_add` and `sparse_gather`. Vectors run along the dense dimension; each sum is taken in
// the order of the entries, so results depend on shapes alone. Products from the right work on transposed blocks of
// rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "structured/sparse.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_STRUCTURED_SPARSE_ONCE
#define HEDDLE_STRUCTURED_SPARSE_ONCE

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/resting_memory.h"
#include "kernels/kernel_table.h"
#include "kernels/rows.h"
#include "structured/feature_tile.h"

namespace heddle {
namespace {

/// The support by rows: entry t of row r, pointers[r] <= t < pointers[r + 1], lies in column indices[t]; its value is
/// values[order[t]], or values[t] without an order.
struct Support {
  const int32_t* pointers;
  const int32_t* indices;
  const int32_t* order;
};

/// Rows [begin, end) of S times `width` columns of x.
template <class T>
struct ProductTile {
  Support support;
  const T* values;
  const T* x;
  size_t x_stride;
  T* y;
  size_t y_stride;
  size_t begin, end, width;
};

/// values[order[t]] (+)= g[r, :] · x[indices[t], :] over `width` columns, for the entries of rows [begin, end).
template <class T>
struct SampleTile {
  Support support;
  const T* g;
  size_t g_stride;
  const T* x;
  size_t x_stride;
  T* values;
  size_t begin, end, width;
  bool accumulate;
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_STRUCTURED_SPARSE_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using Lanes = hn::CappedTag<T, 64 / sizeof(T)>;

/// Columns [column, column + 4 vectors).
template <class T>
HWY_INLINE void multiply_four(const ProductTile<T>& tile, size_t row, size_t column) {
  const Lanes<T> d;
  const size_t n = hn::Lanes(d);
  auto y0 = hn::Zero(d), y1 = y0, y2 = y0, y3 = y0;
  const T* x = tile.x + column;
  for (int32_t t = tile.support.pointers[row]; t < tile.support.pointers[row + 1]; ++t) {
    const auto value = hn::Set(d, tile.values[tile.support.order != nullptr ? tile.support.order[t] : t]);
    const T* from = x + static_cast<size_t>(tile.support.indices[t]) * tile.x_stride;
    y0 = hn::MulAdd(value, hn::LoadU(d, from), y0);
    y1 = hn::MulAdd(value, hn::LoadU(d, from + n), y1);
    y2 = hn::MulAdd(value, hn::LoadU(d, from + 2 * n), y2);
    y3 = hn::MulAdd(value, hn::LoadU(d, from + 3 * n), y3);
  }
  T* y = tile.y + (row - tile.begin) * tile.y_stride + column;
  hn::StoreU(y0, d, y);
  hn::StoreU(y1, d, y + n);
  hn::StoreU(y2, d, y + 2 * n);
  hn::StoreU(y3, d, y + 3 * n);
}

template <class T>
HWY_INLINE void multiply_one(const ProductTile<T>& tile, size_t row, size_t column) {
  const Lanes<T> d;
  auto y = hn::Zero(d);
  for (int32_t t = tile.support.pointers[row]; t < tile.support.pointers[row + 1]; ++t) {
    const auto value = hn::Set(d, tile.values[tile.support.order != nullptr ? tile.support.order[t] : t]);
    const T* from = tile.x + static_cast<size_t>(tile.support.indices[t]) * tile.x_stride + column;
    y = hn::MulAdd(value, hn::LoadU(d, from), y);
  }
  hn::StoreU(y, d, tile.y + (row - tile.begin) * tile.y_stride + column);
}

template <class T>
void multiply(const ProductTile<T>& tile) {
  const size_t n = hn::Lanes(Lanes<T>());
  for (size_t row = tile.begin; row < tile.end; ++row) {
    size_t column = 0;
    for (; column + 4 * n <= tile.width; column += 4 * n) multiply_four(tile, row, column);
    for (; column + n <= tile.width; column += n) multiply_one(tile, row, column);
    for (; column < tile.width; ++column) {
      T sum{};
      for (int32_t t = tile.support.pointers[row]; t < tile.support.pointers[row + 1]; ++t)
        sum += tile.values[tile.support.order != nullptr ? tile.support.order[t] : t] *
               tile.x[static_cast<size_t>(tile.support.indices[t]) * tile.x_stride + column];
      tile.y[(row - tile.begin) * tile.y_stride + column] = sum;
    }
  }
}

template <class T>
HWY_INLINE T dot(const T* a, const T* b, size_t width) {
  const Lanes<T> d;
  const size_t n = hn::Lanes(d);
  auto even = hn::Zero(d), odd = even;
  size_t i = 0;
  for (; i + 2 * n <= width; i += 2 * n) {
    even = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), even);
    odd = hn::MulAdd(hn::LoadU(d, a + i + n), hn::LoadU(d, b + i + n), odd);
  }
  if (i + n <= width) {
    even = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), even);
    i += n;
  }
  T sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < width; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
void sample(const SampleTile<T>& tile) {
  for (size_t row = tile.begin; row < tile.end; ++row) {
    const T* g = tile.g + row * tile.g_stride;
    for (int32_t t = tile.support.pointers[row]; t < tile.support.pointers[row + 1]; ++t) {
      T& value = tile.values[tile.support.order != nullptr ? tile.support.order[t] : t];
      const T sum = dot(g, tile.x + static_cast<size_t>(tile.support.indices[t]) * tile.x_stride, tile.width);
      value = tile.accumulate ? value + sum : sum;
    }
  }
}

void multiply_f32(const ProductTile<float>& tile) { multiply(tile); }
void multiply_f64(const ProductTile<double>& tile) { multiply(tile); }
void sample_f32(const SampleTile<float>& tile) { sample(tile); }
void sample_f64(const SampleTile<double>& tile) { sample(tile); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(multiply_f32);
HWY_EXPORT(multiply_f64);
HWY_EXPORT(sample_f32);
HWY_EXPORT(sample_f64);

void run_tile(const ProductTile<float>& tile) { HWY_DYNAMIC_DISPATCH(multiply_f32)(tile); }
void run_tile(const ProductTile<double>& tile) { HWY_DYNAMIC_DISPATCH(multiply_f64)(tile); }
void run_tile(const SampleTile<float>& tile) { HWY_DYNAMIC_DISPATCH(sample_f32)(tile); }
void run_tile(const SampleTile<double>& tile) { HWY_DYNAMIC_DISPATCH(sample_f64)(tile); }

/// Tiles wanted where one block of a transposed operand would leave threads without work.
constexpr size_t kWantedTiles = 4;
/// Partial sums of sddmm over ranges of the batch, added up in order.
constexpr size_t kMaxParts = 8;

size_t ceil_divide(size_t a, size_t b) { return (a + b - 1) / b; }

/// S [rows, columns] of an instruction, with its index operands at `first` and the two after it.
struct SupportShape {
  std::string op;
  size_t first = 0, rows = 0, columns = 0, count = 0;
  bool ordered = false;

  Support of(const RunArguments& arguments) const {
    const Support support{arguments.input<int32_t>(first), arguments.input<int32_t>(first + 1),
                          ordered ? arguments.input<int32_t>(first + 2) : nullptr};
    check_contents(support);
    return support;
  }

  size_t rows_per_tile() const {
    return std::max<size_t>(1, rows * kRowTileElements / std::max<size_t>(1, 16 * count + rows));
  }

 private:
  /// A stranger wrote them: everything that becomes an address is checked before the first use.
  void check_contents(const Support& support) const {
    const auto refuse = [&](const char* expected, int64_t got) {
      throw Error(ErrorCode::kArgument, op, expected, std::to_string(got));
    };
    if (support.pointers[0] != 0) refuse("row pointers that start at 0", support.pointers[0]);
    for (size_t row = 0; row < rows; ++row)
      if (support.pointers[row + 1] < support.pointers[row])
        refuse("row pointers that never fall", support.pointers[row + 1]);
    if (static_cast<size_t>(support.pointers[rows]) != count)
      refuse("row pointers that end at the number of entries", support.pointers[rows]);
    check_below(support.indices, columns, "indices within the matrix");
    if (ordered) check_below(support.order, count, "an order of the entries");
  }

  void check_below(const int32_t* numbers, size_t limit, const char* expected) const {
    uint32_t largest = 0;
    for (size_t t = 0; t < count; ++t) largest = std::max(largest, static_cast<uint32_t>(numbers[t]));
    if (count > 0 && largest >= limit)
      throw Error(ErrorCode::kArgument, op, expected, std::to_string(static_cast<int32_t>(largest)));
  }
};

/// Checks the operands pointers [rows + 1], indices [count] and, where present, order [count].
SupportShape read_support(const KernelRequest& request, size_t first, const Operand& values, size_t rows,
                          size_t columns) {
  check_float(request, values, "values");
  request.check(values.shape.rank() == 1, "values [entries]", values.shape.str());
  const int64_t count = values.shape[0];
  request.check(rows < (size_t{1} << 31) && columns <= (size_t{1} << 31) && count < (int64_t{1} << 31),
                "sizes below 2^31", std::to_string(count));
  check_operand(request, request.inputs[first], "pointers", DType::kI32, Shape{static_cast<int64_t>(rows) + 1});
  check_operand(request, request.inputs[first + 1], "indices", DType::kI32, Shape{count});
  check_optional(request, request.inputs[first + 2], "order", DType::kI32, Shape{count});
  return {std::string(request.op), first, rows, columns, static_cast<size_t>(count), request.inputs[first + 2].present};
}

/// Operand `name` as a matrix of the values' dtype.
void check_matrix(const KernelRequest& request, const Operand& operand, const char* name, DType dtype) {
  request.check(operand.present && operand.dtype == dtype && operand.shape.rank() == 2,
                std::string(name) + " " + dtype_name(dtype) + " of rank 2", operand_text(operand));
}

size_t dim(const Operand& operand, size_t axis) { return static_cast<size_t>(operand.shape[axis]); }

/// Rows of a [batch, size] operand, a block at a time as [size, width] with zeros where the batch ends.
struct Blocks {
  size_t batch = 0, width = 0, count = 0;

  /// Wide blocks read whole cache lines of the transposed operand; narrow ones keep it in the cache, or waste less.
  Blocks(size_t rows, size_t size, size_t element) : batch(rows) {
    const size_t line = 64 / element;
    width = rows > 2 * line && size * 256 <= (size_t{2} << 20) ? 4 * line : line;
    count = ceil_divide(batch, width);
  }

  size_t bytes(size_t size, size_t element) const {
    return checked_mul(checked_mul(size, width, "spmm"), element, "spmm") + 64;
  }

  template <class T>
  void transpose_in(const T* x, size_t size, size_t block, T* to) const {
    const size_t rows = std::min(width, batch - block * width);
    const T* const from = x + block * width * size;
    if constexpr (std::is_same_v<T, float>) {
      rows_to_features({from, signed_(rows), signed_(size), signed_(size), signed_(size), signed_(width), false, to});
    } else {
      for (size_t column = 0; column < size; ++column, to += width) {
        for (size_t row = 0; row < rows; ++row) to[row] = from[row * size + column];
        std::fill(to + rows, to + width, T{});
      }
    }
  }

  /// Columns [begin, end) of y [batch, size].
  template <class T>
  void transpose_out(const T* from, size_t begin, size_t end, size_t size, size_t block, T* y) const {
    const size_t rows = std::min(width, batch - block * width);
    T* const to = y + block * width * size + begin;
    if constexpr (std::is_same_v<T, float>) {
      features_to_rows({from, signed_(width), signed_(rows), signed_(end - begin), signed_(size), to,
                        passes_caches(signed_(batch), signed_(size))});
    } else {
      for (size_t column = 0; column < end - begin; ++column, from += width)
        for (size_t row = 0; row < rows; ++row) to[row * size + column] = from[row];
    }
  }

 private:
  static int64_t signed_(size_t size) { return static_cast<int64_t>(size); }
};

/// y = S x, x [columns, d].
template <class T>
CompiledKernel multiply_left(const SupportShape& shape, size_t d) {
  // A block of x that is read in random order should stay in the cache.
  const size_t block =
      std::max<size_t>(64, (size_t{1} << 19) / sizeof(T) / std::max<size_t>(1, shape.columns) / 64 * 64);
  return {.run = [shape, d, block](const RunArguments& arguments) {
    const Support support = shape.of(arguments);
    const size_t per_tile = shape.rows_per_tile();
    const size_t row_tiles = ceil_divide(shape.rows, per_tile);
    arguments.pool.run(row_tiles * ceil_divide(d, block), [&](size_t tile, size_t) {
      const size_t column = tile / row_tiles * block;
      const size_t begin = tile % row_tiles * per_tile;
      run_tile(ProductTile<T>{support, arguments.input<T>(0), arguments.input<T>(1) + column, d,
                              arguments.output<T>(0) + begin * d + column, d, begin,
                              std::min(begin + per_tile, shape.rows), std::min(block, d - column)});
    });
  }};
}

/// y = x Sᵀ, x [batch, columns].
template <class T>
CompiledKernel multiply_right(const SupportShape& shape, size_t batch) {
  constexpr size_t kRows = 64;
  const Blocks blocks(batch, shape.columns, sizeof(T));
  const size_t ranges = blocks.count >= kWantedTiles ? 1 : ceil_divide(kWantedTiles, std::max<size_t>(1, blocks.count));
  const size_t x_bytes = blocks.bytes(shape.columns, sizeof(T)) / 64 * 64;
  CompiledKernel kernel;
  kernel.scratch_per_thread = x_bytes + kRows * blocks.width * sizeof(T);
  kernel.run = [shape, blocks, ranges, x_bytes](const RunArguments& arguments) {
    const Support support = shape.of(arguments);
    arguments.pool.run(blocks.count * ranges, [&](size_t tile, size_t thread) {
      const size_t block = tile / ranges;
      const size_t range = tile % ranges;
      auto* const x = arguments.thread_scratch<T>(thread);
      auto* const y = reinterpret_cast<T*>(arguments.thread_scratch<std::byte>(thread) + x_bytes);
      blocks.transpose_in(arguments.input<T>(1), shape.columns, block, x);
      const size_t last = shape.rows * (range + 1) / ranges;
      for (size_t begin = shape.rows * range / ranges; begin < last; begin += kRows) {
        const size_t end = std::min(begin + kRows, last);
        run_tile(
            ProductTile<T>{support, arguments.input<T>(0), x, blocks.width, y, blocks.width, begin, end, blocks.width});
        blocks.transpose_out(y, begin, end, shape.rows, block, arguments.output<T>(0));
      }
    });
  };
  return kernel;
}

/// Inputs values, x, then the support by rows and, for the gradient alone, by columns.
CompiledKernel compile_spmm(const KernelRequest& request) {
  request.expect_counts(8, 1);
  const Operand& values = request.inputs[0];
  const Operand& x = request.inputs[1];
  const Operand& y = request.outputs[0];
  check_float(request, values, "values");
  check_matrix(request, x, "x", values.dtype);
  check_matrix(request, y, "y", values.dtype);
  const bool right = request.attributes.integer("right") != 0;
  const size_t side = right ? 1 : 0;
  const SupportShape shape = read_support(request, 2, values, dim(y, side), dim(x, side));
  const size_t d = dim(x, 1 - side);
  request.check(dim(y, 1 - side) == d, "x and y alike along the dense axis", y.shape.str());
  CompiledKernel kernel;
  with_float(values.dtype, [&](auto element) {
    using T = decltype(element);
    kernel = right ? multiply_right<T>(shape, d) : multiply_left<T>(shape, d);
  });
  return kernel;
}

/// values[t] = g[i, :] · x[j, :]
template <class T>
CompiledKernel sample_left(const SupportShape& shape, size_t d) {
  return {.run = [shape, d](const RunArguments& arguments) {
    const Support support = shape.of(arguments);
    for_row_ranges(arguments.pool, shape.rows, shape.rows_per_tile(), [&](size_t begin, size_t end) {
      run_tile(SampleTile<T>{support, arguments.input<T>(0), d, arguments.input<T>(1), d, arguments.output<T>(0), begin,
                             end, d, false});
    });
  }};
}

/// values[t] = Σ over the batch of g[b, i] x[b, j]
template <class T>
CompiledKernel sample_right(const SupportShape& shape, size_t batch) {
  const Blocks blocks(batch, shape.columns, sizeof(T));
  const size_t parts = std::clamp<size_t>(blocks.count, 1, kMaxParts);
  const size_t x_bytes = blocks.bytes(shape.columns, sizeof(T)) / 64 * 64;
  CompiledKernel kernel;
  kernel.scratch_per_thread = x_bytes + blocks.bytes(shape.rows, sizeof(T));
  kernel.run = [shape, blocks, parts, x_bytes](const RunArguments& arguments) {
    const Support support = shape.of(arguments);
    auto* const total = arguments.output<T>(0);
    const RunBuffer partial(checked_mul(shape.count * sizeof(T), parts - 1, "sddmm"));
    auto* const others = reinterpret_cast<T*>(partial.data());
    if (blocks.count == 0) std::fill(total, total + shape.count, T{});
    arguments.pool.run(blocks.count == 0 ? 0 : parts, [&](size_t part, size_t thread) {
      auto* const x = arguments.thread_scratch<T>(thread);
      auto* const g = reinterpret_cast<T*>(arguments.thread_scratch<std::byte>(thread) + x_bytes);
      const size_t first = blocks.count * part / parts;
      for (size_t block = first; block < blocks.count * (part + 1) / parts; ++block) {
        blocks.transpose_in(arguments.input<T>(1), shape.columns, block, x);
        blocks.transpose_in(arguments.input<T>(0), shape.rows, block, g);
        run_tile(SampleTile<T>{support, g, blocks.width, x, blocks.width,
                               part == 0 ? total : others + (part - 1) * shape.count, 0, shape.rows, blocks.width,
                               block != first});
      }
    });
    for_row_ranges(arguments.pool, shape.count, kRowTileElements, [&](size_t begin, size_t end) {
      for (size_t part = 1; part < parts; ++part)
        for (size_t t = begin; t < end; ++t) total[t] += others[(part - 1) * shape.count + t];
    });
  };
  return kernel;
}

/// Inputs g, x, then the support both ways as in spmm.
CompiledKernel compile_sddmm(const KernelRequest& request) {
  request.expect_counts(8, 1);
  const Operand& g = request.inputs[0];
  const Operand& x = request.inputs[1];
  const Operand& values = request.outputs[0];
  check_float(request, values, "values");
  check_matrix(request, g, "g", values.dtype);
  check_matrix(request, x, "x", values.dtype);
  const bool right = request.attributes.integer("right") != 0;
  const size_t side = right ? 1 : 0;
  const SupportShape shape = read_support(request, 2, values, dim(g, side), dim(x, side));
  const size_t d = dim(x, 1 - side);
  request.check(dim(g, 1 - side) == d, "g and x alike along the dense axis", g.shape.str());
  // Each entry must be written, once: the order by columns is a permutation for spmm's gradient alone.
  request.check(!shape.ordered, "a support in the order of its values", "an order");
  CompiledKernel kernel;
  with_float(values.dtype, [&](auto element) {
    using T = decltype(element);
    kernel = right ? sample_right<T>(shape, d) : sample_left<T>(shape, d);
  });
  return kernel;
}

/// y = c + S; inputs values, c (or nothing, for 0), pointers, indices.
CompiledKernel compile_sparse_add(const KernelRequest& request) {
  request.expect_counts(5, 1);
  const Operand& values = request.inputs[0];
  const Operand& y = request.outputs[0];
  check_float(request, values, "values");
  check_matrix(request, y, "y", values.dtype);
  check_optional(request, request.inputs[1], "c", values.dtype, y.shape);
  const SupportShape shape = read_support(request, 2, values, dim(y, 0), dim(y, 1));
  request.check(!shape.ordered, "a support in the order of its values", "an order");
  CompiledKernel kernel;
  kernel.in_place = {{1, 0}};
  kernel.run = [shape, dtype = values.dtype, adds = request.inputs[1].present](const RunArguments& arguments) {
    const Support support = shape.of(arguments);
    with_float(dtype, [&](auto element) {
      using T = decltype(element);
      const T* const c = adds ? arguments.input<T>(1) : nullptr;
      const T* const from = arguments.input<T>(0);
      for_row_ranges(arguments.pool, shape.rows, rows_per_tile(shape.columns), [&](size_t begin, size_t end) {
        T* const y = arguments.output<T>(0);
        const size_t first = begin * shape.columns;
        const size_t size = (end - begin) * shape.columns;
        if (c == nullptr) std::fill_n(y + first, size, T{});
        if (c != nullptr && c != y) std::copy_n(c + first, size, y + first);
        for (size_t row = begin; row < end; ++row)
          for (int32_t t = support.pointers[row]; t < support.pointers[row + 1]; ++t)
            y[row * shape.columns + static_cast<size_t>(support.indices[t])] += from[t];
      });
    });
  };
  return kernel;
}

/// values[t] = x[i, j]; inputs x, pointers, indices.
CompiledKernel compile_sparse_gather(const KernelRequest& request) {
  request.expect_counts(4, 1);
  const Operand& x = request.inputs[0];
  const Operand& values = request.outputs[0];
  check_float(request, values, "values");
  check_matrix(request, x, "x", values.dtype);
  const SupportShape shape = read_support(request, 1, values, dim(x, 0), dim(x, 1));
  request.check(!shape.ordered, "a support in the order of its values", "an order");
  return {.run = [shape, dtype = values.dtype](const RunArguments& arguments) {
    const Support support = shape.of(arguments);
    with_float(dtype, [&](auto element) {
      using T = decltype(element);
      const T* const x = arguments.input<T>(0);
      T* const to = arguments.output<T>(0);
      for_row_ranges(arguments.pool, shape.rows, shape.rows_per_tile(), [&](size_t begin, size_t end) {
        for (size_t row = begin; row < end; ++row)
          for (int32_t t = support.pointers[row]; t < support.pointers[row + 1]; ++t)
            to[t] = x[row * shape.columns + static_cast<size_t>(support.indices[t])];
      });
    });
  }};
}

}  // namespace

void register_sparse(KernelTable& table) {
  table["spmm"] = compile_spmm;
  table["sddmm"] = compile_sddmm;
  table["sparse_add"] = compile_sparse_add;
  table["sparse_gather"] = compile_sparse_gather;
}

}  // namespace heddle

#endif  // HWY_ONCE
