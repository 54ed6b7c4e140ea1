// Philox 4x32-10 on the device: the words of cpp/core/random.h, bit for bit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace heddle::cuda {

/// Word `index` of a stream.
__device__ inline uint32_t philox_word(uint64_t seed, uint64_t stream, uint64_t index) {
  const uint64_t block = index / 4;
  uint32_t x[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), static_cast<uint32_t>(stream),
                   static_cast<uint32_t>(stream >> 32)};
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xd2511f53U, x[0]), low0 = 0xd2511f53U * x[0];
    const uint32_t high1 = __umulhi(0xcd9e8d57U, x[2]), low1 = 0xcd9e8d57U * x[2];
    x[0] = high1 ^ x[1] ^ key0;
    x[1] = low1;
    x[2] = high0 ^ x[3] ^ key1;
    x[3] = low0;
    key0 += 0x9e3779b9U;
    key1 += 0xbb67ae85U;
  }
  const auto word = static_cast<unsigned>(index % 4);
  return word == 0 ? x[0] : word == 1 ? x[1] : word == 2 ? x[2] : x[3];
}

/// [0, 1) with 24 random bits; with `offset` 1, (0, 1].
__device__ inline float unit_interval(uint32_t bits, uint32_t offset = 0) {
  return static_cast<float>((bits >> 8) + offset) * 5.9604644775390625e-8F;  // 2^-24
}

}  // namespace heddle::cuda
