// Loop nests over operands that are walked with strides, as kernels take them; the device's side of
// cpp/kernels/strided.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/strided.h"

namespace heddle::cuda {

/// Strides, in elements, of one operand over dims[0..rank), outermost first.
struct Walk {
  int rank = 0;
  int64_t dims[Shape::kMaxRank] = {};
  int64_t strides[Shape::kMaxRank] = {};

  /// Where the element with this row-major number lies in the operand.
  __host__ __device__ int64_t offset(int64_t index) const {
    int64_t result = 0;
    for (int axis = rank - 1; axis > 0; --axis) {
      result += index % dims[axis] * strides[axis];
      index /= dims[axis];
    }
    return rank == 0 ? 0 : result + index * strides[0];
  }
};

inline Walk walk_of(const StridedLoops& loops, size_t operand) {
  Walk walk;
  walk.rank = static_cast<int>(loops.rank);
  for (size_t axis = 0; axis < loops.rank; ++axis) {
    walk.dims[axis] = static_cast<int64_t>(loops.dims[axis]);
    walk.strides[axis] = static_cast<int64_t>(loops.strides[operand][axis]);
  }
  return walk;
}

/// The walk over one operand alone, with as few dimensions as do.
inline Walk single_walk(size_t rank, const std::array<size_t, Shape::kMaxRank>& dims,
                        const std::array<size_t, Shape::kMaxRank>& strides) {
  StridedLoops loops;
  loops.rank = rank;
  loops.dims = dims;
  loops.strides = {strides};
  loops.collapse();
  return walk_of(loops, 0);
}

}  // namespace heddle::cuda
