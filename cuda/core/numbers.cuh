// Numbers as memory holds them and as kernels compute with them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "core/dtype.h"
#endif

namespace heddle::cuda {

/// Bits of a bf16 or f16 in memory; what computes with them converts.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

#ifdef __CUDACC__

__device__ inline float to_float(Bf16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
__device__ inline float to_float(Half value) { return __half2float(__ushort_as_half(value.bits)); }
/// Round to nearest even; a NaN stays one.
__device__ inline Bf16 to_bf16(float value) { return {__bfloat16_as_ushort(__float2bfloat16_rn(value))}; }
__device__ inline Half to_half(float value) { return {__half_as_ushort(__float2half_rn(value))}; }

#else

inline float to_float(Bf16 value) { return bf16_to_f32(value.bits); }
inline float to_float(Half value) { return f16_to_f32(value.bits); }
inline Bf16 to_bf16(float value) { return {f32_to_bf16(value)}; }
inline Half to_half(float value) { return {f32_to_f16(value)}; }

#endif

__device__ inline float to_float(float value) { return value; }

/// Truncation towards zero, saturating at the ends of the integer type; NaN gives 0. As the CPU's casts.
template <class Integer, class T>
__device__ Integer saturate(T value) {
  constexpr bool kSigned = static_cast<Integer>(-1) < static_cast<Integer>(0);
  constexpr int kBits = static_cast<int>(8 * sizeof(Integer)) - (kSigned ? 1 : 0);
  // 2^bits, which every floating type has exactly.
  constexpr T kEnd = static_cast<T>(uint64_t{1} << (kBits / 2)) * static_cast<T>(uint64_t{1} << (kBits - kBits / 2));
  constexpr T kLow = kSigned ? -kEnd : T{0};
  constexpr auto kMax = static_cast<Integer>((uint64_t{1} << kBits) - 1);
  if (value != value) return 0;
  if (value >= kEnd) return kMax;
  return value < kLow ? static_cast<Integer>(kSigned ? -static_cast<int64_t>(kMax) - 1 : 0)
                      : static_cast<Integer>(value);
}

}  // namespace heddle::cuda
