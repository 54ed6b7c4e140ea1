// Factorisations of matrices that are large enough for a whole GPU: one after the other, by cuSOLVER. It wants them
// column-major, which row-major ones are once they are transposed.
#pragma once

#include "cuda/core/kernel.h"
#include "cuda/linalg/blocks.cuh"

namespace heddle::cuda {

/// Whether the library takes these instead of a block of threads for each: where such blocks would work for seconds,
/// and where they would leave most of the GPU idle. Chosen by shape alone, so that every GPU gives the same bits.
inline bool is_large(const MatrixBatch& a) {
  constexpr int64_t kLargestForABlock = 2048, kLeastForTheGpu = 256, kFew = 8;
  return a.rank() > kLargestForABlock || (a.rank() >= kLeastForTheGpu && a.count <= kFew);
}

/// Operands are those of the operators; none has a dimension of 0. T is float or double.
template <class T>
Kernel large_svd(const MatrixBatch& a, bool full, bool wants_u, bool wants_vh);
template <class T>
Kernel large_qr(const MatrixBatch& a, int64_t inner, bool pivots);
template <class T>
Kernel large_eigh(const MatrixBatch& a);
template <class T>
Kernel large_lu(const MatrixBatch& a);
template <class T>
Kernel large_cholesky(const MatrixBatch& a);
template <class T>
Kernel large_solve(const MatrixBatch& a, int64_t columns);

}  // namespace heddle::cuda
