// The thin SVD of a large matrix that is about square, as LAPACK's gesdd computes it, but for its last step:
// reflections are multiplied to the vectors 128 at a time by plain products, which takes half of gesdd's time for that.
#pragma once

#include "linalg/matrices.h"

namespace heddle {

/// Whether the vectors of [rows, columns] are faster found so.
bool large_enough(size_t rows, size_t columns);

/// a = u diag(s) vh, as gesdd with job S on the transpose. BLAS works with the threads that it has.
template <class T>
void large_svd(const T* a, size_t m, size_t n, T* u, T* s, T* vh);

}  // namespace heddle
