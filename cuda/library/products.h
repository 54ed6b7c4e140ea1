// Matrix products by NVIDIA's cuBLASLt; in the emulation, by loops.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/dtype.h"

namespace heddle::cuda {

/// What the environment variable HEDDLE_CUDA_TF32 says: 0 (so too without it) or 1. Throws kArgument for anything else.
bool tf32_allowed();

/// y = alpha op(a) op(b) + beta c for `batch` items, all row-major: op(a) [m, k], op(b) [k, n], c and y [m, n].
struct ProductShape {
  int64_t batch = 1, m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  /// From one item to the next, in elements; 0 for one matrix for all.
  int64_t stride_a = 0, stride_b = 0;
  /// From one row of a, as it lies, and of c and y to the next, in elements; 0 for as long as a row is.
  int64_t row_a = 0, row_y = 0;
  /// f32, f64, or bf16 (summed up in f32). y and c are f32, or f64 where these are.
  DType element = DType::kF32;
  /// f32 is rounded to TF32, 10 binary digits behind the point, on its way into the product; sums stay f32.
  bool tf32 = tf32_allowed();
  double alpha = 1.0;
  /// 0 or 1.
  double beta = 0.0;
  /// c is one row [n], which is added to every row of y in any case. Not for f64, of which the library cannot do it.
  bool bias = false;
};

class Product {
 public:
  /// The library's plan for this shape; throws kDevice when it has none. m, n, k and batch are at least 1.
  static std::shared_ptr<const Product> get(const ProductShape& shape);

  virtual ~Product() = default;
  virtual size_t scratch_bytes() const = 0;
  /// c may be y unless it is a bias, and is not read where there is neither beta nor bias. Scratch is 256-byte aligned.
  virtual void run(cudaStream_t stream, const void* a, const void* b, const void* c, void* y, void* scratch) const = 0;
};

}  // namespace heddle::cuda
