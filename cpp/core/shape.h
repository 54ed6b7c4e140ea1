// Dimensions of a tensor, row-major and contiguous; strides are always implied.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/dtype.h"

namespace heddle {

class Shape {
 public:
  static constexpr size_t kMaxRank = 8;

  Shape() = default;
  /// Throws kShape when there are more than kMaxRank dimensions or their product overflows.
  explicit Shape(std::span<const int64_t> dims);
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}

  size_t rank() const noexcept { return rank_; }
  int64_t operator[](size_t axis) const noexcept { return dims_[axis]; }
  /// Dimension counted from the end: back(0) is the last one.
  int64_t back(size_t from_end) const noexcept { return dims_[rank_ - 1 - from_end]; }
  std::span<const int64_t> dims() const noexcept { return {dims_.data(), rank_}; }
  /// Number of elements; 1 for a scalar.
  size_t count() const noexcept { return count_; }
  /// Product of dimensions [begin, end).
  size_t count(size_t begin, size_t end) const noexcept;
  size_t bytes(DType dtype) const { return checked_mul(count_, dtype_size(dtype), "shape"); }
  bool operator==(const Shape& other) const noexcept;
  /// "[2, 3]"
  std::string str() const;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  size_t rank_ = 0;
  size_t count_ = 1;
};

}  // namespace heddle
