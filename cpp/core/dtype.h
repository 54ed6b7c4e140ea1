// Element types of tensors, and the checked size arithmetic that every byte count goes through.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>

#include "core/status.h"

namespace heddle {

/// The numeric value is the wire code in instruction lists; append only.
enum class DType : uint8_t { kF32 = 0, kF64 = 1, kBF16 = 2, kF16 = 3, kI32 = 4, kI64 = 5, kU8 = 6, kU32 = 7 };
inline constexpr uint8_t kDTypeCount = 8;

constexpr size_t dtype_size(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kU8: return 1;
  }
  return 0;
}

constexpr const char* dtype_name(DType dtype) noexcept {
  constexpr const char* kNames[kDTypeCount] = {"f32", "f64", "bf16", "f16", "i32", "i64", "u8", "u32"};
  return kNames[static_cast<uint8_t>(dtype)];
}

/// Throws kFormat on a name that is none of the above.
DType dtype_from_name(std::string_view name);

/// a * b, or throws kShape on overflow: sizes that come from files and instruction lists are never trusted.
inline size_t checked_mul(size_t a, size_t b, const char* place) {
  if (b != 0 && a > std::numeric_limits<size_t>::max() / b)
    throw Error(ErrorCode::kShape, place, "a size below 2^64", "an overflowing product");
  return a * b;
}

inline size_t checked_add(size_t a, size_t b, const char* place) {
  if (a > std::numeric_limits<size_t>::max() - b)
    throw Error(ErrorCode::kShape, place, "a size below 2^64", "an overflowing sum");
  return a + b;
}

inline float bf16_to_f32(uint16_t bits) noexcept { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/// Round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) noexcept {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float f16_to_f32(uint16_t bits) noexcept;
uint16_t f32_to_f16(float value) noexcept;

}  // namespace heddle
