// One product y = alpha * a @ b + c of two matrices, cut into tiles of y; what `matmul` and `low_rank_matmul` run.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/resting_memory.h"
#include "kernels/gemm.h"
#include "program/kernel.h"

namespace heddle {

// Enough tiles that a core which a neighbour slows down costs its share only.
inline constexpr int64_t kWantedTiles = 16;
// Converted copies of whole operands up to this size lie in the program's scratch memory.
inline constexpr size_t kScratchLimit = size_t{4} << 20;
// From so many rows on, a compact matrix is spread out for less than a hundredth of the product's time.
inline constexpr int64_t kCompactRows = 512;
// Small products of a batch are joined until a call does about this much work.
inline constexpr int64_t kCallFlops = int64_t{1} << 21;

enum class Addend { kNone, kFull, kBias };

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline size_t aligned(size_t bytes) { return checked_add(bytes, 63, "matmul") / 64 * 64; }

struct Problem {
  int64_t batch = 1;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  /// One b for the whole batch.
  bool share_b = false;
  Addend addend = Addend::kNone;
  float alpha = 1.0F;
  double exact_alpha = 1.0;
  Precision precision = Precision::kF32;
  OperandForm form_a;
  OperandForm form_b;
};

/// Fills rows of y with what the product is added to, where that is not already there.
void place_addend(const Problem& problem, const float* c, float* y, int64_t row0, int64_t rows, int64_t col0,
                  int64_t cols);

/// Converted copies of whole operands, one behind the other.
class SharedCopies {
 public:
  /// Returns the offset of the copy.
  size_t add(size_t input, const OperandForm& form, size_t count) {
    copies_.push_back({input, form, count, bytes_});
    bytes_ = checked_add(bytes_, aligned(checked_mul(count, dtype_size(form.to), "matmul")), "matmul");
    return copies_.back().offset;
  }

  /// Room for something that is not a copy of an operand; returns its offset.
  size_t reserve(size_t bytes) {
    const size_t offset = bytes_;
    bytes_ = checked_add(bytes_, aligned(bytes), "matmul");
    return offset;
  }

  size_t scratch_bytes() const { return bytes_ <= kScratchLimit ? bytes_ : 0; }

  /// Makes the copies in scratch memory, or in `spill` if they are too large for it.
  std::byte* fill(const RunArguments& args, RunBuffer& spill) const;

 private:
  static constexpr size_t kChunk = size_t{1} << 16;
  struct Copy {
    size_t input;
    OperandForm form;
    size_t count;
    size_t offset;
  };
  std::vector<Copy> copies_;
  size_t bytes_ = 0;
};

/// How a frozen b [k, n] of m rows is packed.
inline Packing packing_for(int64_t m, int64_t k, int64_t n) {
  const bool fits = static_cast<size_t>(k) * static_cast<size_t>(n) <= kScratchLimit / sizeof(float);
  return m >= kCompactRows && fits ? Packing::kCompact : Packing::kPlain;
}

/// One matrix product (batch 1) in tiles of rows and, where there are few rows, of columns.
class MatrixPlan {
 public:
  MatrixPlan(const Problem& problem, std::shared_ptr<const PackedMatrix> packed);

  size_t scratch_per_thread() const { return shared_.scratch_bytes() + private_bytes_; }
  void run(const RunArguments& args) const;

 private:
  struct Buffers {
    const void* a;
    const void* b;
    const float* c;
    float* y;
    /// Where a compact b was spread out.
    const std::byte* spread;
  };

  void choose_tiles();
  void choose_operands();
  void make_products();
  void run_tile(const Buffers& buffers, int64_t row_tile, int64_t col_tile, std::byte* scratch) const;
  const void* tile_of_a(const void* a, int64_t row0, int64_t rows, std::byte* scratch) const;
  const void* tile_of_b(const void* b, int64_t col0, int64_t cols, std::byte* scratch) const;
  void store(const Buffers& buffers, const float* tile, int64_t row0, int64_t rows, int64_t col0, int64_t cols) const;

  Problem problem_;
  std::shared_ptr<const PackedMatrix> packed_;
  int64_t tile_rows_ = 0;
  int64_t tile_cols_ = 0;
  int64_t row_tiles_ = 0;
  int64_t col_tiles_ = 0;
  /// The library writes (and adds) straight into y: its rows are contiguous there.
  bool direct_ = false;
  bool library_bias_ = false;
  /// Operands as tiles see them: already converted, if a shared copy was made.
  OperandForm tile_form_a_;
  OperandForm tile_form_b_;
  SharedCopies shared_;
  bool shares_a_ = false;
  bool shares_b_ = false;
  size_t shared_a_ = 0;
  size_t shared_b_ = 0;
  size_t spread_ = 0;
  int64_t stride_a_ = 0;
  int64_t stride_b_ = 0;
  size_t a_bytes_ = 0;
  size_t b_bytes_ = 0;
  size_t y_bytes_ = 0;
  size_t private_bytes_ = 0;
  /// By whether the tile is the last one down, and the last one across.
  std::array<std::array<std::shared_ptr<const Product>, 2>, 2> products_;
};

}  // namespace heddle
