// The inner loops of block_formats: whole blocks to floats and back, bit for bit as the `gguf` Python package computes
// them (but for the sign and payload of a NaN).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "io/encoding.h"

namespace heddle {

/// `count` elements, a multiple of the encoding's block, of any floating-point encoding.
void decode_floats(Encoding encoding, const std::byte* from, float* out, size_t count);

/// `count` finite floats as f32, f16, bf16 or q8_0; whole blocks.
void encode_floats(Encoding encoding, const float* from, std::byte* out, size_t count);

/// bf16, rounded to nearest even.
void round_to_bf16(const float* from, uint16_t* out, size_t count);

/// Nothing where `addend` is 0, not even to negative zeros.
inline void add_to_each(std::span<float> numbers, float addend) {
  if (addend == 0) return;
  for (float& number : numbers) number += addend;
}

}  // namespace heddle
