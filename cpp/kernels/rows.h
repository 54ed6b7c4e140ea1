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

}  // namespace heddle
