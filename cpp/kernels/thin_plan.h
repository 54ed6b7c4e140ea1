// Products a^T b that sum over many rows and have one thin side, such as the gradients of a low-rank adapter's factors.
#pragma once

#include <cstddef>

#include "kernels/matrix_plan.h"
#include "program/kernel.h"

namespace heddle {

/// y [p, q] = alpha * a [rows, p]^T @ b [rows, q] + c, with p or q thin: the wide operand is read once, as it lies.
class ThinPlan {
 public:
  static bool fits(const Problem& problem);

  explicit ThinPlan(const Problem& problem);

  size_t scratch_per_thread() const { return thin_bytes_ + sum_bytes_; }
  void run(const RunArguments& args) const;

 private:
  void widen_thin(const void* source, float* target) const;
  /// Sums [padded, columns] of the wide columns from `first` on -> their place in y.
  void store(const float* sums, size_t first, size_t columns, const float* c, float* y) const;

  Problem problem_;
  size_t rows_;
  size_t wide_;
  size_t thin_;
  /// The thin operand's columns, rounded up to whole register tiles.
  size_t padded_;
  bool wide_is_a_;
  size_t thin_bytes_;
  size_t sum_bytes_;
};

}  // namespace heddle
