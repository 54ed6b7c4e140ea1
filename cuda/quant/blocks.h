// Matrices that lie on the device in the blocks of their file, and what is computed from there: rows of numbers, and
// products with few rows.
#pragma once

#include <cstdint>
#include <optional>

#include "cuda/core/kernel.h"
#include "io/encoding.h"

namespace heddle::cuda {

/// W [rows, columns] as run() gets it.
struct BlockMatrix {
  Encoding encoding = Encoding::kBF16;
  int64_t rows = 0, columns = 0;
  /// Elements are those of the blocks, rounded to bf16.
  bool rounds = false;
  /// kBlocks, or kElements where these are bf16 themselves.
  heddle_form form = HEDDLE_BLOCKS;

  /// Nothing where the operand is no such matrix.
  static std::optional<BlockMatrix> of(const Operand& operand);
  /// Whether its numbers are those of a bf16 matrix as it lies.
  bool is_bf16() const { return encoding == Encoding::kBF16; }
};

/// Up to so many rows, products are computed from the blocks; with more, tiles of them are decoded first. As on the
/// CPU.
inline constexpr int64_t kFewRows = 32;

/// y [rows, W's rows] = alpha x Wᵀ + c, in f32.
struct FewRows {
  /// x [rows, W's columns], bf16 or f32.
  const void* x = nullptr;
  bool half = false;
  int64_t rows = 0;
  float alpha = 1.0F;
  /// [rows, W's rows], which may be y, or a bias [W's rows]; null: nothing is added.
  const float* c = nullptr;
  bool bias = false;
  float* y = nullptr;
};

/// A warp computes two columns of y for eight rows of x at a time: its lanes decode slices in registers.
void multiply_few(const Run& run, const BlockMatrix& matrix, const void* blocks, const FewRows& product);

/// to [count, columns], f32 or bf16: rows of W from `first` on.
void decode_rows(const Run& run, const BlockMatrix& matrix, const void* blocks, int64_t first, int64_t count,
                 DType element, void* to);

/// to [count, columns]: rows index[i] of W, each of which must be there.
void gather_rows(const Run& run, const BlockMatrix& matrix, const void* blocks, const int32_t* index, int64_t count,
                 DType element, void* to);

}  // namespace heddle::cuda
