// The support of a sparse matrix, by rows and by columns, made from entries in any order, from a mask, or drawn. What
// comes in is checked as if a stranger had written it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace heddle {

struct SparseSupport {
  /// i32 [rows + 1], [entries]; columns ascend in each row.
  Tensor row_pointers, column_indices;
  /// i32 [columns + 1], [entries]; rows ascend in each column.
  Tensor column_pointers, row_indices;
  /// i32 [entries]: entry t by columns is entry column_order[t] by rows.
  Tensor column_order;
  /// i32 [entries]: entry t by rows is entry source[t] of the input; absent where the input was in this order.
  Tensor source;
};

/// From i32 coordinates in any order. Throws kArgument for one outside of the matrix and for one given twice.
SparseSupport support_from_entries(const Tensor& row_indices, const Tensor& column_indices, size_t rows,
                                   size_t columns);

/// From i32 row pointers and column indices as a file has them. Throws kFormat unless the pointers rise from 0 to the
/// number of entries and columns ascend in each row.
SparseSupport support_from_rows(const Tensor& row_pointers, const Tensor& column_indices, size_t columns);

/// Where a mask [rows, columns] (f32 or u8) is not 0.
SparseSupport support_from_mask(const Tensor& mask);

/// `count` distinct entries, every set of them as likely as any other; a pure function of the arguments.
SparseSupport random_support(size_t rows, size_t columns, size_t count, uint64_t seed);

}  // namespace heddle
