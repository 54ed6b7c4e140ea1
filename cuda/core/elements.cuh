// Elements whatever their type: moved by their size, or converted into the type that a product takes.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"

namespace heddle::cuda {

/// Calls function with a value of the unsigned type that has the element's size.
template <class Function>
Kernel with_element(DType dtype, const Function& function) {
  switch (dtype_size(dtype)) {
    case 1: return function(uint8_t{});
    case 2: return function(uint16_t{});
    case 4: return function(uint32_t{});
    default: return function(uint64_t{});
  }
}

__device__ inline void convert(float from, Bf16& to) { to = to_bf16(from); }
__device__ inline void convert(Bf16 from, float& to) { to = to_float(from); }

template <class From, class To>
__global__ void convert_elements(const From* from, To* to, int64_t count) {
  for (int64_t at = first_unit(); at < count; at += unit_step()) convert(from[at], to[at]);
}

/// An operand in the type that a product takes: itself, or a converted copy in scratch memory.
class ProductOperand {
 public:
  ProductOperand() = default;
  ProductOperand(const Operand& operand, DType element, ScratchLayout& scratch)
      : element_(element), converts_(operand.dtype != element), count_(static_cast<int64_t>(operand.shape.count())) {
    if (converts_) offset_ = scratch.take(count_, dtype_size(element));
  }

  /// Of the operand's elements; the copy is made now.
  const void* start(const Run& run, const void* from) const {
    if (!converts_) return from;
    void* const copy = run.scratch_at<void>(offset_);
    if (element_ == DType::kBF16)
      launch(run, convert_elements<float, Bf16>, grid_of(count_), static_cast<const float*>(from),
             static_cast<Bf16*>(copy), count_);
    else
      launch(run, convert_elements<Bf16, float>, grid_of(count_), static_cast<const Bf16*>(from),
             static_cast<float*>(copy), count_);
    return copy;
  }

 private:
  DType element_ = DType::kF32;
  bool converts_ = false;
  int64_t count_ = 0;
  size_t offset_ = 0;
};

}  // namespace heddle::cuda
