// What kernels that work row by row share: operand checks, and ranges of rows as tiles of a fixed size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "program/kernel.h"

namespace heddle {

/// Elements that one tile covers, roughly.
inline constexpr size_t kRowTileElements = 16384;

inline size_t rows_per_tile(size_t width) { return std::max<size_t>(1, kRowTileElements / std::max<size_t>(1, width)); }

/// Runs body(begin, end) over [0, count) in tiles of `per_tile`; a single tile runs on the calling thread at once.
template <class Body>
void for_row_ranges(TilePool& pool, size_t count, size_t per_tile, const Body& body) {
  if (count == 0) return;
  const size_t tiles = (count + per_tile - 1) / per_tile;
  if (tiles == 1) {
    body(size_t{0}, count);
    return;
  }
  pool.run(tiles, [&](size_t tile, size_t) { body(tile * per_tile, std::min((tile + 1) * per_tile, count)); });
}

inline std::string operand_text(const Operand& operand) {
  return operand.present ? std::string(dtype_name(operand.dtype)) + " " + operand.shape.str() : "nothing";
}

/// A present operand of this dtype and shape; `name` is what messages call it.
inline void check_operand(const KernelRequest& request, const Operand& operand, const char* name, DType dtype,
                          const Shape& shape) {
  request.check(operand.present && operand.dtype == dtype && operand.shape == shape,
                std::string(name) + " " + dtype_name(dtype) + " " + shape.str(), operand_text(operand));
}

/// Like check_operand, for one that may be left out.
inline void check_optional(const KernelRequest& request, const Operand& operand, const char* name, DType dtype,
                           const Shape& shape) {
  if (operand.present) check_operand(request, operand, name, dtype, shape);
}

/// A present operand of f32 or f64.
inline void check_float(const KernelRequest& request, const Operand& operand, const char* name) {
  request.check(operand.present && (operand.dtype == DType::kF32 || operand.dtype == DType::kF64),
                std::string(name) + " f32 or f64", operand_text(operand));
}

/// Calls function with a value of the type that an f32 or f64 operand has.
template <class Function>
void with_float(DType dtype, const Function& function) {
  if (dtype == DType::kF64)
    function(double{});
  else
    function(float{});
}

/// x [..., d] as `count` rows of `width` >= 1 elements.
struct RowShape {
  size_t count = 0, width = 0;
  /// [...]
  Shape leading;
};

inline RowShape read_row_shape(const KernelRequest& request, const Operand& x) {
  request.check(x.present && x.dtype == DType::kF32 && x.shape.rank() >= 1 && x.shape.back(0) >= 1,
                "f32 rows of at least one element", operand_text(x));
  const auto width = static_cast<size_t>(x.shape.back(0));
  return {x.shape.count() / width, width, Shape(x.shape.dims().first(x.shape.rank() - 1))};
}

/// x [outer, size, inner] around one axis.
struct AxisShape {
  size_t outer = 0, size = 0, inner = 0;
};

/// Reads attribute `axis` of an operand.
inline size_t read_axis(const KernelRequest& request, const Shape& shape) {
  const int64_t axis = request.attributes.integer("axis");
  request.check(axis >= 0 && static_cast<uint64_t>(axis) < shape.rank(), "an axis of " + shape.str(),
                std::to_string(axis));
  return static_cast<size_t>(axis);
}

inline AxisShape axis_shape(const Shape& shape, size_t axis) {
  return {shape.count(0, axis), static_cast<size_t>(shape[axis]), shape.count(axis + 1, shape.rank())};
}

/// The same sizes but along one axis.
inline bool same_except(const Shape& a, const Shape& b, size_t axis) {
  if (a.rank() != b.rank()) return false;
  for (size_t i = 0; i < a.rank(); ++i)
    if (i != axis && a[i] != b[i]) return false;
  return true;
}

/// Columns of the inner dimension that one tile walks along the axis with.
inline constexpr size_t kInnerBlock = 256;

/// Runs body(outer, begin, end) over all (outer, range of inner) of an axis shape: ranges of kInnerBlock, several in a
/// tile where a walk along the axis is short.
template <class Body>
void for_axis_lines(TilePool& pool, const AxisShape& shape, const Body& body) {
  const size_t blocks = (shape.inner + kInnerBlock - 1) / kInnerBlock;
  const size_t work = std::max<size_t>(1, shape.size) * std::min(shape.inner, kInnerBlock);
  for_row_ranges(pool, shape.outer * blocks, rows_per_tile(work), [&](size_t first, size_t last) {
    for (size_t unit = first; unit < last; ++unit) {
      const size_t begin = unit % blocks * kInnerBlock;
      body(unit / blocks, begin, std::min(begin + kInnerBlock, shape.inner));
    }
  });
}

}  // namespace heddle
