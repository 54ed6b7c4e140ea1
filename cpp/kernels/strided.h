// Loop nests over operands that are walked with strides: broadcasting, slicing and permuting are all of this form.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "program/kernel.h"

namespace heddle {

/// dims[rank] (outermost first) and, per operand, the element stride of each of them; 0 where it is broadcast.
struct StridedLoops {
  size_t rank = 0;
  std::array<size_t, Shape::kMaxRank> dims{};
  std::vector<std::array<size_t, Shape::kMaxRank>> strides;

  /// Offset in elements, within `operand`, of the flat position `index` over the first `axes` dimensions.
  size_t offset(size_t operand, size_t index, size_t axes) const noexcept {
    size_t result = 0;
    for (size_t axis = axes; axis-- > 1;) {
      result += index % dims[axis] * strides[operand][axis];
      index /= dims[axis];
    }
    return axes == 0 ? 0 : result + index * strides[operand][0];
  }

  /// Drops dimensions of size 1 and merges neighbours that every operand walks as one. At least one dimension stays.
  void collapse() {
    size_t kept = 0;
    for (size_t axis = 0; axis < rank; ++axis) {
      if (dims[axis] == 1) continue;
      if (kept > 0 && mergeable(kept - 1, axis)) {
        dims[kept - 1] *= dims[axis];
        for (auto& stride : strides) stride[kept - 1] = stride[axis];
        continue;
      }
      dims[kept] = dims[axis];
      for (auto& stride : strides) stride[kept] = stride[axis];
      ++kept;
    }
    if (kept == 0) {
      dims[0] = 1;
      for (auto& stride : strides) stride[0] = 1;
      kept = 1;
    }
    rank = kept;
  }

 private:
  bool mergeable(size_t outer, size_t inner) const noexcept {
    for (const auto& stride : strides)
      if (stride[outer] != stride[inner] * dims[inner]) return false;
    return true;
  }
};

/// Row-major element strides.
inline std::array<size_t, Shape::kMaxRank> dense_strides(const Shape& shape) noexcept {
  std::array<size_t, Shape::kMaxRank> strides{};
  size_t stride = 1;
  for (size_t axis = shape.rank(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= static_cast<size_t>(shape[axis]);
  }
  return strides;
}

/// Strides with which `input` is walked when broadcast to `output` by NumPy's rules; rejects shapes that do not fit.
inline std::array<size_t, Shape::kMaxRank> broadcast_strides(const KernelRequest& request, const Shape& input,
                                                             const Shape& output) {
  const auto expected = [&] { return "a shape that broadcasts to " + output.str(); };
  if (input.rank() > output.rank()) request.reject(expected(), input.str());
  const auto dense = dense_strides(input);
  std::array<size_t, Shape::kMaxRank> strides{};
  const size_t shift = output.rank() - input.rank();
  for (size_t axis = 0; axis < input.rank(); ++axis) {
    if (input[axis] == output[axis + shift])
      strides[axis + shift] = dense[axis];
    else if (input[axis] != 1)
      request.reject(expected(), input.str());
  }
  return strides;
}

}  // namespace heddle
