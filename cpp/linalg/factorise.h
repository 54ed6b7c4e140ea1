// Factorisations of one dense matrix, by LAPACK. Matrices are row-major; LAPACK's are column-major, so each routine is
// given the transpose, which the same bytes already are, and its outputs are read the same way: nothing is copied
// around.
#pragma once

#include "core/tensor.h"

namespace heddle {

struct Svd {
  Tensor u;   // [m, k], or [m, m] when full
  Tensor s;   // [k], descending
  Tensor vh;  // [k, n], or [n, n] when full
};

struct Qr {
  Tensor q;  // [m, k]
  Tensor r;  // [k, n], upper triangular
};

/// a = u diag(s) vh for `a` f32 [m, n], k = min(m, n). Throws kShape, kDtype; kArgument when `a` is not finite.
Svd svd(const Tensor& a, bool full);

/// a = q r for `a` f32 [m, n], k = min(m, n). Throws kShape, kDtype; kArgument when `a` is not finite.
Qr qr(const Tensor& a);

}  // namespace heddle
