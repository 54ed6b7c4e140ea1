// Half a round of alternating least squares for a partly observed matrix M ~ U Vᵀ (Gu et al., arXiv 2302.11068): with V
// given, every row of U is a small weighted regression of its own on the rows of V that it was observed at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace heddle {

enum class RowSolver {
  /// Normal equations summed in f64, by Cholesky.
  kExact,
  /// Conjugate gradients, preconditioned by the R of a CountSketch of the row's equations.
  kSketched,
  /// Conjugate gradients as they are.
  kPlain,
};

struct HalfStepOptions {
  RowSolver solver = RowSolver::kExact;
  /// Rows of the sketch; regressions with no more equations than that are solved exactly.
  size_t sketch_rows = 0;
  /// Conjugate gradients end after so many iterations, or when the gradient has fallen by this factor.
  size_t iterations = 0;
  double tolerance = 0.0;
  /// Added to the diagonal of the normal equations.
  double ridge = 0.0;
  uint64_t seed = 0;
};

/// The observations of the rows that are solved for.
struct Observations {
  /// i32 [rows + 1], [count]; `order`: observation t is values[order[t]], values[t] where absent.
  Tensor pointers, indices;
  std::optional<Tensor> order;
  /// f64 [count]; weights >= 0, 1 where absent.
  Tensor values;
  std::optional<Tensor> weights;
};

struct HalfStep {
  /// f64 [rows, k], and the given basis [columns, k] with orthonormal columns: factor · basisᵀ is the fit.
  Tensor factor, basis;
  /// Conjugate-gradient iterations over all rows.
  size_t iterations = 0;
  /// Rows whose equations leave directions open; they get the solution of minimum norm.
  size_t undetermined = 0;
};

/// `start`: factor of the same product in the gauge of the basis as given, for the iterative solvers; 0 where absent.
HalfStep half_step(const Observations& observations, const Tensor& basis, const std::optional<Tensor>& start,
                   const HalfStepOptions& options);

/// The columns of a [n, k] f64, k <= n, made orthonormal; one that depends on those before it becomes a random one.
Tensor orthonormal_columns(const Tensor& a);

/// Connected parts of the graph that joins row i and column j where (i, j) was observed; rows and columns without an
/// observation are not counted. What lies between two parts is not determined by the observations.
size_t connected_parts(const Tensor& pointers, const Tensor& indices, size_t columns);

}  // namespace heddle
