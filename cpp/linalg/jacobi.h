// Singular values of batches of small matrices by one-sided Jacobi rotations (Hestenes 1958): columns of A V are
// rotated against each other until they are orthogonal; their lengths are then the singular values. A vector's lanes
// are different matrices, so that nothing is ever summed across lanes.
#pragma once

#include "linalg/matrices.h"

namespace heddle {

template <class T>
struct SvdProblem {
  const Matrices& a;
  bool full;
  const T* values;
  /// Null where nobody asks.
  T* u;
  T* s;
  T* vh;
};

/// Whether a batch is of the sizes that rotations are faster for.
bool jacobi_takes(const Matrices& a);

size_t jacobi_svd_scratch(const Matrices& a);

template <class T>
void jacobi_svd(const SvdProblem<T>& problem, const RunArguments& arguments);

}  // namespace heddle
