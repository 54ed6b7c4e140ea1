// QR of matrices with many more rows than columns: blocks of rows that stay in the cache are factorised side by side,
// and then their triangles (Demmel et al. 2012, arXiv 0808.2664).
#pragma once

#include "linalg/matrices.h"

namespace heddle {

/// Whether [rows, columns] is tall enough for it to be faster.
bool tall_enough(size_t rows, size_t columns);

/// a [m, n] = q [m, n] r [n, n], with the signs of LAPACK's reflections; q may be null, then the signs are any. BLAS
/// must have one thread.
template <class T>
void tall_qr(TilePool& pool, const T* a, size_t m, size_t n, T* q, T* r);

/// y [m, n] = a [m, k] b [k, n], by rows on all threads.
template <class T>
void tall_product(TilePool& pool, const T* a, const T* b, size_t m, size_t k, size_t n, T* y);

}  // namespace heddle
