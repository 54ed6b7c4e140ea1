// The blocks of cpp/io/encoding.h, decoded bit for bit as cpp/io/block_kernels.cpp does it. A lane decodes a slice:
// eight elements in two runs of four, the second kGap elements behind the first, whose codes lie in the same words. So
// lanes side by side read words side by side, and four numbers at a time of whatever the elements are multiplied with.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/core/numbers.cuh"
#include "io/encoding.h"

namespace heddle::cuda {

inline constexpr unsigned kSliceElements = 8;

__device__ inline uint32_t word_at(const uint8_t* at) { return *reinterpret_cast<const uint32_t*>(at); }
/// Of which only two bytes are aligned.
__device__ inline uint32_t two_words_at(const uint8_t* at) {
  const auto* const halves = reinterpret_cast<const uint16_t*>(at);
  return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
}
__device__ inline float half_at(const uint8_t* at) { return to_float(Half{*reinterpret_cast<const uint16_t*>(at)}); }

__device__ inline uint32_t low_nibbles(uint32_t word) { return word & 0x0f0f0f0fU; }
__device__ inline uint32_t high_nibbles(uint32_t word) { return word >> 4 & 0x0f0f0f0fU; }
/// Two bits of each byte.
__device__ inline uint32_t pairs(uint32_t word, unsigned shift) { return word >> shift & 0x03030303U; }
/// One bit of each byte.
__device__ inline uint32_t bits(uint32_t word, unsigned shift) { return word >> shift & 0x01010101U; }
/// Bit i of four becomes byte i.
__device__ inline uint32_t bits_to_bytes(uint32_t four) { return (four & 15U) * 0x00204081U & 0x01010101U; }

/// v[i] = scale (byte i - middle)
__device__ inline void scaled(uint32_t bytes, int middle, float scale, float* v) {
  for (int i = 0; i < 4; ++i) v[i] = scale * static_cast<float>(static_cast<int>(bytes >> 8 * i & 255U) - middle);
}

/// v[i] = scale byte i + offset, rounded after the product as in the reference.
__device__ inline void shifted(uint32_t bytes, float scale, float offset, float* v) {
  for (int i = 0; i < 4; ++i) v[i] = __fadd_rn(__fmul_rn(scale, static_cast<float>(bytes >> 8 * i & 255U)), offset);
}

/// The uneven levels of iq4, 128 above what they are, for four nibbles.
__device__ inline uint32_t levels(uint32_t nibbles) {
  constexpr uint64_t kLower = 0x766a5d4f3f2d1801ULL, kUpper = 0xf1d9c5b5a6998d81ULL;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t code = nibbles >> 8 * i & 15U;
    const uint64_t half = code < 8 ? kLower : kUpper;
    result |= static_cast<uint32_t>(half >> 8 * (code & 7U) & 255U) << 8 * i;
  }
  return result;
}

/// How a block of an encoding becomes numbers.
template <Encoding kOf>
struct Codec;

/// A block of 32 whose slice s begins at element 4 s.
template <Encoding kOf, unsigned kBodyBytes, unsigned kHeadBytes>
struct ShortBlock {
  static constexpr Encoding kEncoding = kOf;
  static constexpr unsigned kElements = 32, kGap = 16, kBody = kBodyBytes, kHead = kHeadBytes;
  static __device__ unsigned first(unsigned slice) { return 4 * slice; }
};

template <>
struct Codec<Encoding::kQ4_0> : ShortBlock<Encoding::kQ4_0, 16, 2> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const uint32_t codes = word_at(body + 4 * slice);
    const float d = half_at(head);
    scaled(low_nibbles(codes), 8, d, v);
    scaled(high_nibbles(codes), 8, d, v + 4);
  }
};

template <>
struct Codec<Encoding::kQ4_1> : ShortBlock<Encoding::kQ4_1, 16, 4> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const uint32_t codes = word_at(body + 4 * slice);
    const float d = half_at(head), m = half_at(head + 2);
    shifted(low_nibbles(codes), d, m, v);
    shifted(high_nibbles(codes), d, m, v + 4);
  }
};

template <>
struct Codec<Encoding::kQ5_0> : ShortBlock<Encoding::kQ5_0, 16, 6> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const uint32_t codes = word_at(body + 4 * slice), fifth = two_words_at(head + 2) >> 4 * slice;
    const float d = half_at(head);
    scaled(low_nibbles(codes) | bits_to_bytes(fifth) << 4, 16, d, v);
    scaled(high_nibbles(codes) | bits_to_bytes(fifth >> 16) << 4, 16, d, v + 4);
  }
};

template <>
struct Codec<Encoding::kQ5_1> : ShortBlock<Encoding::kQ5_1, 16, 8> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const uint32_t codes = word_at(body + 4 * slice), fifth = word_at(head + 4) >> 4 * slice;
    const float d = half_at(head), m = half_at(head + 2);
    shifted(low_nibbles(codes) | bits_to_bytes(fifth) << 4, d, m, v);
    shifted(high_nibbles(codes) | bits_to_bytes(fifth >> 16) << 4, d, m, v + 4);
  }
};

template <>
struct Codec<Encoding::kQ8_0> : ShortBlock<Encoding::kQ8_0, 32, 2> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const float d = half_at(head);
    // Signed bytes, 128 above what they are.
    scaled(word_at(body + 4 * slice) ^ 0x80808080U, 128, d, v);
    scaled(word_at(body + 16 + 4 * slice) ^ 0x80808080U, 128, d, v + 4);
  }
};

template <>
struct Codec<Encoding::kIQ4_NL> : ShortBlock<Encoding::kIQ4_NL, 16, 2> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const uint32_t codes = word_at(body + 4 * slice);
    const float d = half_at(head);
    scaled(levels(low_nibbles(codes)), 128, d, v);
    scaled(levels(high_nibbles(codes)), 128, d, v + 4);
  }
};

/// A block of 256 in two groups of 32 for each 64 elements, whose slice s has its runs in neighbouring groups.
template <Encoding kOf, unsigned kBodyBytes, unsigned kHeadBytes>
struct LongBlock {
  static constexpr Encoding kEncoding = kOf;
  static constexpr unsigned kElements = 256, kGap = 32, kBody = kBodyBytes, kHead = kHeadBytes;
  static __device__ unsigned first(unsigned slice) { return slice / 8 * 64 + slice % 8 * 4; }
};

template <>
struct Codec<Encoding::kQ2_K> : LongBlock<Encoding::kQ2_K, 80, 4> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const unsigned group = slice / 8 * 2, at = slice % 8 * 4;
    const uint32_t codes = word_at(body + 16 + group / 4 * 32 + at);
    const float d = half_at(head), dmin = half_at(head + 2);
    for (unsigned run = 0; run < 2; ++run) {
      const unsigned both = body[2 * (group + run) + at / 16];
      const float minimum = dmin * static_cast<float>(both >> 4);
      shifted(pairs(codes, (group + run) % 4 * 2), d * static_cast<float>(both & 15U), -minimum, v + 4 * run);
    }
  }
};

template <>
struct Codec<Encoding::kQ3_K> : LongBlock<Encoding::kQ3_K, 96, 14> {
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const unsigned group = slice / 8 * 2, at = slice % 8 * 4;
    const uint32_t codes = word_at(body + 32 + group / 4 * 32 + at), third = word_at(body + at);
    const float d = half_at(head + 12);
    for (unsigned run = 0; run < 2; ++run) {
      const unsigned s = 2 * (group + run) + at / 16;
      const unsigned low = s < 8 ? head[s] & 15U : head[s - 8] >> 4;
      const unsigned high = head[8 + s % 4] >> (s / 4 * 2) & 3U;
      const float scale = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
      scaled(pairs(codes, (group + run) % 4 * 2) | bits(third, group + run) << 2, 4, scale, v + 4 * run);
    }
  }
};

/// Scale number `group` of 8 and its minimum, six bits each: the upper bits of the last four lie above those of the
/// first.
struct ScaleMin {
  float scale, minimum;
};
__device__ inline ScaleMin scale_min(const uint8_t* packed, unsigned group) {
  if (group < 4) return {static_cast<float>(packed[group] & 63U), static_cast<float>(packed[group + 4] & 63U)};
  const unsigned both = packed[group + 4];
  return {static_cast<float>((both & 15U) | (packed[group - 4] >> 2 & 48U)),
          static_cast<float>(both >> 4 | (packed[group] >> 2 & 48U))};
}

/// d, dmin and scales of q4_k and q5_k at the beginning of the body.
__device__ inline void shifted_runs(const uint8_t* body, unsigned group, uint32_t first, uint32_t second, float* v) {
  const float d = half_at(body), dmin = half_at(body + 2);
  const ScaleMin a = scale_min(body + 4, group), b = scale_min(body + 4, group + 1);
  shifted(first, d * a.scale, -(dmin * a.minimum), v);
  shifted(second, d * b.scale, -(dmin * b.minimum), v + 4);
}

template <>
struct Codec<Encoding::kQ4_K> : LongBlock<Encoding::kQ4_K, 144, 0> {
  static __device__ void decode(const uint8_t* body, const uint8_t*, unsigned slice, float* v) {
    const uint32_t codes = word_at(body + 16 + 4 * slice);
    shifted_runs(body, slice / 8 * 2, low_nibbles(codes), high_nibbles(codes), v);
  }
};

template <>
struct Codec<Encoding::kQ5_K> : LongBlock<Encoding::kQ5_K, 176, 0> {
  static __device__ void decode(const uint8_t* body, const uint8_t*, unsigned slice, float* v) {
    const unsigned group = slice / 8 * 2;
    const uint32_t codes = word_at(body + 48 + 4 * slice), fifth = word_at(body + 16 + slice % 8 * 4);
    shifted_runs(body, group, low_nibbles(codes) | bits(fifth, group) << 4,
                 high_nibbles(codes) | bits(fifth, group + 1) << 4, v);
  }
};

template <>
struct Codec<Encoding::kQ6_K> {
  static constexpr Encoding kEncoding = Encoding::kQ6_K;
  static constexpr unsigned kElements = 256, kGap = 64, kBody = 208, kHead = 2;
  static __device__ unsigned first(unsigned slice) { return slice / 16 * 128 + slice % 16 * 4; }
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    // Groups of 32: of the first run, and two behind it of the second.
    const unsigned group = slice / 8 % 2, half = slice / 16, at = slice % 8 * 4;
    const uint32_t low = word_at(body + 4 * slice), high = word_at(body + 128 + 32 * half + at);
    const auto* const scales = reinterpret_cast<const int8_t*>(body + 192) + 8 * half + 2 * group + at / 16;
    const float d = half_at(head);
    scaled(low_nibbles(low) | pairs(high, 2 * group) << 4, 32, d * static_cast<float>(scales[0]), v);
    scaled(high_nibbles(low) | pairs(high, 2 * group + 4) << 4, 32, d * static_cast<float>(scales[4]), v + 4);
  }
};

template <>
struct Codec<Encoding::kIQ4_XS> {
  static constexpr Encoding kEncoding = Encoding::kIQ4_XS;
  static constexpr unsigned kElements = 256, kGap = 16, kBody = 128, kHead = 8;
  static __device__ unsigned first(unsigned slice) { return slice / 4 * 32 + slice % 4 * 4; }
  static __device__ void decode(const uint8_t* body, const uint8_t* head, unsigned slice, float* v) {
    const unsigned group = slice / 4;
    const uint32_t codes = word_at(body + 4 * slice);
    const uint32_t halves = word_at(head);
    const unsigned low = head[4 + group / 2] >> (group % 2 * 4) & 15U, high = halves >> (16 + 2 * group) & 3U;
    const float d = to_float(Half{static_cast<uint16_t>(halves)});
    const float scale = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    scaled(levels(low_nibbles(codes)), 128, scale, v);
    scaled(levels(high_nibbles(codes)), 128, scale, v + 4);
  }
};

/// 16-bit numbers, eight of them for a block.
template <Encoding kOf, class T>
struct DenseBlock {
  static constexpr Encoding kEncoding = kOf;
  static constexpr unsigned kElements = 8, kGap = 4, kBody = 16, kHead = 0;
  static __device__ unsigned first(unsigned) { return 0; }
  static __device__ void decode(const uint8_t* body, const uint8_t*, unsigned, float* v) {
    const uint4 eight = *reinterpret_cast<const uint4*>(body);
    const uint32_t two[] = {eight.x, eight.y, eight.z, eight.w};
    for (int i = 0; i < 8; ++i) v[i] = to_float(T{static_cast<uint16_t>(two[i / 2] >> 16 * (i % 2))});
  }
};

template <>
struct Codec<Encoding::kBF16> : DenseBlock<Encoding::kBF16, Bf16> {};
template <>
struct Codec<Encoding::kF16> : DenseBlock<Encoding::kF16, Half> {};

template <Encoding... kEach>
struct CodecList {};

using AllCodecs = CodecList<Encoding::kQ4_0, Encoding::kQ4_1, Encoding::kQ5_0, Encoding::kQ5_1, Encoding::kQ8_0,
                            Encoding::kQ2_K, Encoding::kQ3_K, Encoding::kQ4_K, Encoding::kQ5_K, Encoding::kQ6_K,
                            Encoding::kIQ4_NL, Encoding::kIQ4_XS, Encoding::kBF16, Encoding::kF16>;

}  // namespace heddle::cuda
