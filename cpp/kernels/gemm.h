// Matrix products of one tile: oneDNN primitives made once per problem, frozen matrices kept in its own blocked layout,
// and the rounding between f32 and bf16 around them. Every call is single-threaded; kernels tile over the pool.
//
// oneDNN's fastest implementation takes dense operands only, so a slice of columns that must be converted is made dense
// on the way. Its second one (f32 alone, b not packed) is as good on slices as they lie, and better than copying them.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/storage.h"
#include "core/tile_pool.h"

namespace heddle {

enum class Precision { kF32, kBF16 };

/// "f32", "bf16" or "stored", whose dense products are computed in bf16; throws kArgument naming `place`.
Precision precision_from_name(std::string_view name, std::string_view place);

/// The element type that products of this precision are computed in: bf16 only where oneDNN has a real kernel for it,
/// else f32, on operands rounded to bf16.
DType product_dtype(Precision precision);

/// How an operand's elements become those of the product.
struct OperandForm {
  DType from = DType::kF32;
  DType to = DType::kF32;
  bool round = false;

  static OperandForm of(DType stored, Precision precision);
  bool converts() const noexcept { return from != to || round; }
};

/// rows x cols elements at `source` (rows `stride` apart) -> dense `target`.
void convert_rows(const OperandForm& form, const void* source, size_t stride, size_t rows, size_t cols, void* target);

/// y [m, n] (+)= alpha * a [m, k] @ b [k, n] + bias [n]; dense unless a stride is given, y and bias f32.
struct ProductShape {
  DType dtype = DType::kF32;
  int64_t batch = 1;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  /// a is stored [k, m]; b is stored [n, k].
  bool transpose_a = false;
  bool transpose_b = false;
  /// Distance between the rows of a and of b as they are stored; 0 for dense ones.
  int64_t stride_a = 0;
  int64_t stride_b = 0;
  /// One b for the whole batch.
  bool share_b = false;
  /// b is a block of a PackedMatrix.
  bool packed_b = false;
  bool accumulate = false;
  bool bias = false;
  float alpha = 1.0F;

  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 takes a defaulted comparison for a use of 0.
  auto operator<=>(const ProductShape&) const = default;
};

/// Immutable and usable by many threads at once, each with its own workspace.
class Product {
 public:
  /// Made once per shape in this process.
  static std::shared_ptr<const Product> get(const ProductShape& shape);

  explicit Product(const ProductShape& shape);

  size_t workspace_bytes() const noexcept { return workspace_desc_.get_size(); }
  void run(const void* a, const void* b, const float* bias, float* y, std::byte* workspace) const;
  void run(const void* a, const dnnl::memory& packed_b, const float* bias, float* y, std::byte* workspace) const;

 private:
  dnnl::matmul primitive_;
  dnnl::memory::desc a_desc_;
  dnnl::memory::desc b_desc_;
  dnnl::memory::desc y_desc_;
  dnnl::memory::desc bias_desc_;
  dnnl::memory::desc workspace_desc_;
};

/// A matrix b [k, n] as seen by the product, cut into a grid of blocks of oneDNN's layout.
struct MatrixSource {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t k = 0;
  int64_t n = 0;
  /// Stored [n, k].
  bool transposed = false;
};

/// `kCompact`: a matrix of f32 products whose elements are all bf16 numbers, as those of most checkpoints are, is kept
/// in half the memory and spread out again for each run. Worth it where many rows are multiplied.
enum class Packing { kPlain, kCompact };

class PackedMatrix {
 public:
  /// Blocks of at most block_k x block_n; tiles over the shared pool.
  PackedMatrix(const MatrixSource& source, Precision precision, int64_t block_k, int64_t block_n,
               Packing packing = Packing::kPlain);

  /// Packed once per storage, form and block size, for all programs. `source.data` is taken from the storage.
  /// A matrix that cannot be compact is plain.
  static std::shared_ptr<const PackedMatrix> of_frozen(const std::shared_ptr<Storage>& storage, MatrixSource source,
                                                       Precision precision, int64_t block_k, int64_t block_n,
                                                       Packing packing = Packing::kPlain);

  /// Width of the column blocks that matmul and the loss share.
  static int64_t column_block(int64_t n);

  const dnnl::memory& block(int64_t k_block, int64_t n_block) const { return blocks_[k_block * n_blocks_ + n_block]; }
  int64_t n_blocks() const noexcept { return n_blocks_; }
  /// The blocks lie side by side just as oneDNN would have packed the whole matrix.
  bool is_whole() const noexcept { return is_whole_; }

  /// Memory that a run has to bring along for spread(); 0 for a plain matrix.
  size_t spread_bytes() const noexcept { return spread_bytes_; }
  /// Fills `target` with the elements as products take them.
  void spread(TilePool& pool, std::byte* target) const;
  /// A block, or the whole, at the place that spread() filled; the matrix's own of a plain one.
  dnnl::memory block_in(const std::byte* spread, int64_t n_block) const;
  dnnl::memory whole_in(const std::byte* spread) const;
  /// Room for any one block that is spread out; 0 for a plain matrix.
  size_t spread_block_bytes() const;
  /// One block as products take it: of a compact matrix, spread out at `target`.
  dnnl::memory spread_block(int64_t k_block, int64_t n_block, std::byte* target) const;

  /// Row k of the matrix, [n] numbers as products see them.
  void copy_row(int64_t k, std::span<float> row) const;

 private:
  void compact();

  int64_t block_k_;
  int64_t block_n_;
  int64_t n_blocks_;
  bool is_whole_ = false;
  AlignedBuffer bytes_;
  size_t spread_bytes_ = 0;
  std::vector<size_t> offsets_;
  std::vector<dnnl::memory> blocks_;
  dnnl::memory whole_;
};

}  // namespace heddle
