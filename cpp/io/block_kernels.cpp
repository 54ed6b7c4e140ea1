#include "io/block_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "io/block_kernels.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_IO_BLOCK_KERNELS_ONCE
#define HEDDLE_IO_BLOCK_KERNELS_ONCE

#include <cmath>
#include <cstring>

namespace heddle {
namespace {

/// The levels of iq4, uneven because weights are.
constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float half_at(const std::byte* from) { return f16_to_f32(read<uint16_t>(from)); }

const uint8_t* octets(const std::byte* from) { return reinterpret_cast<const uint8_t*>(from); }

/// Scale `group` of 8 and its minimum, six bits each: the upper bits of the last four lie above those of the first.
struct ScaleMin {
  float scale, minimum;
};
ScaleMin scale_min(const uint8_t* packed, size_t group) {
  if (group < 4) return {static_cast<float>(packed[group] & 63), static_cast<float>(packed[group + 4] & 63)};
  const uint8_t both = packed[group + 4];
  return {static_cast<float>((both & 15) | ((packed[group - 4] >> 2) & 48)),
          static_cast<float>((both >> 4) | ((packed[group] >> 2) & 48))};
}

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_IO_BLOCK_KERNELS_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 16 lanes at most: groups that share a scale are 16 or 32 elements.
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

HWY_INLINE VF widen(const int8_t* from) {
  const hn::Rebind<int32_t, DF> d32;
  const hn::Rebind<int8_t, DF> d8;
  return hn::ConvertTo(DF(), hn::PromoteTo(d32, hn::LoadU(d8, from)));
}

/// out = scale q
HWY_INLINE void scaled(const int8_t* q, size_t count, float scale, float* out) {
  const DF d;
  const VF factor = hn::Set(d, scale);
  for (size_t i = 0; i < count; i += hn::Lanes(d)) hn::StoreU(hn::Mul(factor, widen(q + i)), d, out + i);
}

/// out = scale q + offset, rounded after the product as in the reference.
HWY_INLINE void shifted(const int8_t* q, size_t count, float scale, float offset, float* out) {
  const DF d;
  const VF factor = hn::Set(d, scale);
  const VF term = hn::Set(d, offset);
  for (size_t i = 0; i < count; i += hn::Lanes(d)) hn::StoreU(hn::Add(hn::Mul(factor, widen(q + i)), term), d, out + i);
}

/// Low nibbles of `half` bytes, then their high ones.
HWY_INLINE void nibbles(const uint8_t* from, size_t half, int8_t* q) {
  for (size_t i = 0; i < half; ++i) q[i] = static_cast<int8_t>(from[i] & 15);
  for (size_t i = 0; i < half; ++i) q[i + half] = static_cast<int8_t>(from[i] >> 4);
}

/// Nibbles of 16 bytes with a fifth bit each from a word, less `middle`.
HWY_INLINE void fifth_bits(const std::byte* word, const std::byte* from, int middle, int8_t* q) {
  const uint32_t bits = read<uint32_t>(word);
  nibbles(octets(from), 16, q);
  for (size_t i = 0; i < 32; ++i) q[i] = static_cast<int8_t>((q[i] | ((bits >> i & 1) << 4)) - middle);
}

void decode_q4_0(const std::byte* block, float* out) {
  alignas(32) int8_t q[32];
  nibbles(octets(block + 2), 16, q);
  for (int8_t& each : q) each = static_cast<int8_t>(each - 8);
  scaled(q, 32, half_at(block), out);
}

void decode_q4_1(const std::byte* block, float* out) {
  alignas(32) int8_t q[32];
  nibbles(octets(block + 4), 16, q);
  shifted(q, 32, half_at(block), half_at(block + 2), out);
}

void decode_q5_0(const std::byte* block, float* out) {
  alignas(32) int8_t q[32];
  fifth_bits(block + 2, block + 6, 16, q);
  scaled(q, 32, half_at(block), out);
}

void decode_q5_1(const std::byte* block, float* out) {
  alignas(32) int8_t q[32];
  fifth_bits(block + 4, block + 8, 0, q);
  shifted(q, 32, half_at(block), half_at(block + 2), out);
}

void decode_q8_0(const std::byte* block, float* out) {
  scaled(reinterpret_cast<const int8_t*>(block + 2), 32, half_at(block), out);
}

/// 16 bytes of scale and minimum, 64 of two-bit numbers, d, dmin.
void decode_q2_k(const std::byte* block, float* out) {
  const float d = half_at(block + 80);
  const float dmin = half_at(block + 82);
  const uint8_t* const scales = octets(block);
  alignas(32) int8_t q[32];
  for (size_t group = 0; group < 8; ++group) {
    const uint8_t* const from = octets(block + 16 + group / 4 * 32);
    for (size_t i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(from[i] >> (group % 4 * 2) & 3);
    for (size_t half = 0; half < 2; ++half) {
      const uint8_t both = scales[2 * group + half];
      const float minimum = dmin * static_cast<float>(both >> 4);
      shifted(q + 16 * half, 16, d * static_cast<float>(both & 15), -minimum, out + 32 * group + 16 * half);
    }
  }
}

/// 32 bytes of third bits (4 is taken away where one is 0), 64 of two-bit numbers, 12 of six-bit scales, d.
void decode_q3_k(const std::byte* block, float* out) {
  const float d = half_at(block + 108);
  const uint8_t* const third = octets(block);
  const uint8_t* const packed = octets(block + 96);
  alignas(32) int8_t q[32];
  for (size_t group = 0; group < 8; ++group) {
    const uint8_t* const from = octets(block + 32 + group / 4 * 32);
    for (size_t i = 0; i < 32; ++i)
      q[i] = static_cast<int8_t>((from[i] >> (group % 4 * 2) & 3) - (third[i] >> group & 1 ? 0 : 4));
    for (size_t half = 0; half < 2; ++half) {
      const size_t s = 2 * group + half;
      const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
      const int high = packed[8 + s % 4] >> (s / 4 * 2) & 3;
      scaled(q + 16 * half, 16, d * static_cast<float>((low | high << 4) - 32), out + 32 * group + 16 * half);
    }
  }
}

/// d, dmin, 12 bytes of scales and minimums, 128 of nibbles.
void decode_q4_k(const std::byte* block, float* out) {
  const float d = half_at(block);
  const float dmin = half_at(block + 2);
  alignas(32) int8_t q[64];
  for (size_t group = 0; group < 8; ++group) {
    if (group % 2 == 0) nibbles(octets(block + 16 + 16 * group), 32, q);
    const auto [scale, minimum] = scale_min(octets(block + 4), group);
    shifted(q + group % 2 * 32, 32, d * scale, -(dmin * minimum), out + 32 * group);
  }
}

/// As q4_k, with 32 bytes of fifth bits before the nibbles.
void decode_q5_k(const std::byte* block, float* out) {
  const float d = half_at(block);
  const float dmin = half_at(block + 2);
  const uint8_t* const fifth = octets(block + 16);
  alignas(32) int8_t q[64];
  for (size_t group = 0; group < 8; ++group) {
    if (group % 2 == 0) nibbles(octets(block + 48 + 16 * group), 32, q);
    int8_t* const part = q + group % 2 * 32;
    for (size_t i = 0; i < 32; ++i) part[i] = static_cast<int8_t>(part[i] | (fifth[i] >> group & 1) << 4);
    const auto [scale, minimum] = scale_min(octets(block + 4), group);
    shifted(part, 32, d * scale, -(dmin * minimum), out + 32 * group);
  }
}

/// 128 bytes of nibbles, 64 of upper two bits, 16 signed scales, d.
void decode_q6_k(const std::byte* block, float* out) {
  const float d = half_at(block + 208);
  const auto* const scales = reinterpret_cast<const int8_t*>(block + 192);
  alignas(32) int8_t q[32];
  for (size_t group = 0; group < 8; ++group) {
    const uint8_t* const low = octets(block + group / 4 * 64 + group % 2 * 32);
    const uint8_t* const high = octets(block + 128 + group / 4 * 32);
    const size_t nibble = group / 2 % 2 * 4;
    for (size_t i = 0; i < 32; ++i)
      q[i] = static_cast<int8_t>(((low[i] >> nibble & 15) | (high[i] >> (group % 4 * 2) & 3) << 4) - 32);
    for (size_t half = 0; half < 2; ++half)
      scaled(q + 16 * half, 16, d * static_cast<float>(scales[2 * group + half]), out + 32 * group + 16 * half);
  }
}

HWY_INLINE void decode_levels(const std::byte* from, float scale, float* out) {
  alignas(32) int8_t q[32];
  nibbles(octets(from), 16, q);
  for (int8_t& each : q) each = kLevels[each];
  scaled(q, 32, scale, out);
}

void decode_iq4_nl(const std::byte* block, float* out) { decode_levels(block + 2, half_at(block), out); }

/// d, a word of upper two bits and 4 bytes of lower nibbles of 8 scales, 128 bytes of nibbles.
void decode_iq4_xs(const std::byte* block, float* out) {
  const float d = half_at(block);
  const uint16_t high = read<uint16_t>(block + 2);
  for (size_t group = 0; group < 8; ++group) {
    const int low = octets(block + 4)[group / 2] >> (group % 2 * 4) & 15;
    const int scale = low | (high >> (2 * group) & 3) << 4;
    decode_levels(block + 8 + 16 * group, d * static_cast<float>(scale - 32), out + 32 * group);
  }
}

template <void (*kDecode)(const std::byte*, float*)>
void decode_blocks(Encoding encoding, const std::byte* from, float* out, size_t count) {
  const size_t elements = block_elements(encoding);
  const size_t bytes = block_bytes(encoding);
  for (size_t i = 0; i < count; i += elements, from += bytes) kDecode(from, out + i);
}

void decode(Encoding encoding, const std::byte* from, float* out, size_t count) {
  switch (encoding) {
    case Encoding::kF32: std::memcpy(out, from, count * sizeof(float)); return;
    case Encoding::kF64:
      for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(read<double>(from + i * 8));
      return;
    case Encoding::kBF16:
      for (size_t i = 0; i < count; ++i) out[i] = bf16_to_f32(read<uint16_t>(from + i * 2));
      return;
    case Encoding::kF16:
      for (size_t i = 0; i < count; ++i) out[i] = half_at(from + i * 2);
      return;
    case Encoding::kQ4_0: return decode_blocks<decode_q4_0>(encoding, from, out, count);
    case Encoding::kQ4_1: return decode_blocks<decode_q4_1>(encoding, from, out, count);
    case Encoding::kQ5_0: return decode_blocks<decode_q5_0>(encoding, from, out, count);
    case Encoding::kQ5_1: return decode_blocks<decode_q5_1>(encoding, from, out, count);
    case Encoding::kQ8_0: return decode_blocks<decode_q8_0>(encoding, from, out, count);
    case Encoding::kQ2_K: return decode_blocks<decode_q2_k>(encoding, from, out, count);
    case Encoding::kQ3_K: return decode_blocks<decode_q3_k>(encoding, from, out, count);
    case Encoding::kQ4_K: return decode_blocks<decode_q4_k>(encoding, from, out, count);
    case Encoding::kQ5_K: return decode_blocks<decode_q5_k>(encoding, from, out, count);
    case Encoding::kQ6_K: return decode_blocks<decode_q6_k>(encoding, from, out, count);
    case Encoding::kIQ4_NL: return decode_blocks<decode_iq4_nl>(encoding, from, out, count);
    case Encoding::kIQ4_XS: return decode_blocks<decode_iq4_xs>(encoding, from, out, count);
    case Encoding::kI32:
    case Encoding::kI64:
    case Encoding::kU8:
    case Encoding::kU32: return;
  }
}

void to_bf16(const float* from, uint16_t* out, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] = f32_to_bf16(from[i]);
}

/// d = max |x| / 127, q = x / d rounded half away from zero.
void encode_q8_0(const float* from, std::byte* out) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  VF peak = hn::Zero(d);
  for (size_t i = 0; i < 32; i += lanes) peak = hn::Max(peak, hn::Abs(hn::LoadU(d, from + i)));
  const float scale = hn::GetLane(hn::MaxOfLanes(d, peak)) / 127.0F;
  // A scale below 2^-128 has no inverse: such a block is zero for every reader.
  const float inverse = scale == 0.0F || !std::isfinite(1.0F / scale) ? 0.0F : 1.0F / scale;
  alignas(64) float rounded[32];
  for (size_t i = 0; i < 32; i += lanes) {
    const VF x = hn::Mul(hn::LoadU(d, from + i), hn::Set(d, inverse));
    const VF size = hn::Abs(x);
    const VF whole = hn::Floor(size);
    const VF away = hn::Add(whole, hn::Floor(hn::Mul(hn::Set(d, 2.0F), hn::Sub(size, whole))));
    hn::StoreU(hn::CopySign(away, x), d, rounded + i);
  }
  const uint16_t half = f32_to_f16(scale);
  std::memcpy(out, &half, sizeof half);
  for (size_t i = 0; i < 32; ++i) out[2 + i] = static_cast<std::byte>(static_cast<int8_t>(rounded[i]));
}

void encode_q8_0_blocks(const float* from, std::byte* out, size_t count) {
  for (size_t i = 0; i < count; i += 32) encode_q8_0(from + i, out + i / 32 * 34);
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {

namespace {

HWY_EXPORT(decode);
HWY_EXPORT(to_bf16);
HWY_EXPORT(encode_q8_0_blocks);

}  // namespace

void decode_floats(Encoding encoding, const std::byte* from, float* out, size_t count) {
  HWY_DYNAMIC_DISPATCH(decode)(encoding, from, out, count);
}

void round_to_bf16(const float* from, uint16_t* out, size_t count) { HWY_DYNAMIC_DISPATCH(to_bf16)(from, out, count); }

void encode_floats(Encoding encoding, const float* from, std::byte* out, size_t count) {
  switch (encoding) {
    case Encoding::kF32: std::memcpy(out, from, count * sizeof(float)); return;
    case Encoding::kBF16: round_to_bf16(from, reinterpret_cast<uint16_t*>(out), count); return;
    case Encoding::kF16: {
      auto* const halves = reinterpret_cast<uint16_t*>(out);
      for (size_t i = 0; i < count; ++i) halves[i] = f32_to_f16(from[i]);
      return;
    }
    case Encoding::kQ8_0: HWY_DYNAMIC_DISPATCH(encode_q8_0_blocks)(from, out, count); return;
    default: throw Error(ErrorCode::kArgument, "encoding", "f32, f16, bf16 or q8_0", encoding_name(encoding));
  }
}

}  // namespace heddle

#endif  // HWY_ONCE
