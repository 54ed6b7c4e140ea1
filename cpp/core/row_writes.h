// Filling ranges of rows of tensors that stay where they are, such as one user's part of a pool that many share.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "core/tensor.h"

namespace heddle {

/// Rows [first, first + count) of target [rows, width], f32 or bf16, become scale times the source's; those that it
/// does not have become zero.
struct RowWrite {
  Tensor target;
  size_t first = 0;
  size_t count = 0;
  /// f32 [n, width] with n <= count, or [width, n] if `transposed`; absent for zeros alone.
  std::optional<Tensor> source;
  bool transposed = false;
  float scale = 1.0F;
};

/// Throws kShape, kDtype or kArgument when a write does not fit its target.
void check_row_write(const RowWrite& write);

/// Writes all of them; other rows may be read meanwhile.
void write_rows(std::span<const RowWrite> writes);

}  // namespace heddle
