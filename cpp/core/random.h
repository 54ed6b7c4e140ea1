// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the n-th number is a pure
// function of (seed, stream, n), the same on any thread count and any device.
#pragma once

#include <array>
#include <cstdint>

namespace heddle {

using Philox4 = std::array<uint32_t, 4>;

/// Four words for counter block `block` of stream `stream` under `seed`.
Philox4 philox(uint64_t seed, uint64_t stream, uint64_t block) noexcept;

/// [0, 1) with 24 random bits.
inline float uniform_from_bits(uint32_t bits) noexcept { return static_cast<float>(bits >> 8) * 0x1p-24F; }

/// Element n of the stream: word n % 4 of block n / 4.
uint32_t philox_word(uint64_t seed, uint64_t stream, uint64_t index) noexcept;

}  // namespace heddle
