#include "core/shape.h"

#include <algorithm>

namespace heddle {

Shape::Shape(std::span<const int64_t> dims) {
  require(dims.size() <= kMaxRank, ErrorCode::kShape, "shape", "at most 8 dimensions", std::to_string(dims.size()));
  rank_ = dims.size();
  for (size_t axis = 0; axis < rank_; ++axis) {
    require(dims[axis] >= 0, ErrorCode::kShape, "shape", "dimensions >= 0", std::to_string(dims[axis]));
    dims_[axis] = dims[axis];
    count_ = checked_mul(count_, static_cast<size_t>(dims[axis]), "shape");
  }
  checked_mul(count_, 8, "shape");
}

size_t Shape::count(size_t begin, size_t end) const noexcept {
  size_t product = 1;
  for (size_t axis = begin; axis < end; ++axis) product *= static_cast<size_t>(dims_[axis]);
  return product;
}

bool Shape::operator==(const Shape& other) const noexcept { return std::ranges::equal(dims(), other.dims()); }

std::string Shape::str() const {
  std::string text = "[";
  for (size_t axis = 0; axis < rank_; ++axis) text += (axis != 0 ? ", " : "") + std::to_string(dims_[axis]);
  return text + "]";
}

}  // namespace heddle
