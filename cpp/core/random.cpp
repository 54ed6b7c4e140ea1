#include "core/random.h"

namespace heddle {

namespace {

constexpr uint64_t kMultiplier0 = 0xd2511f53U;
constexpr uint64_t kMultiplier1 = 0xcd9e8d57U;
constexpr uint32_t kWeyl0 = 0x9e3779b9U;
constexpr uint32_t kWeyl1 = 0xbb67ae85U;
constexpr int kRounds = 10;

constexpr uint32_t low(uint64_t x) noexcept { return static_cast<uint32_t>(x); }
constexpr uint32_t high(uint64_t x) noexcept { return static_cast<uint32_t>(x >> 32); }

}  // namespace

Philox4 philox(uint64_t seed, uint64_t stream, uint64_t block) noexcept {
  Philox4 x = {low(block), high(block), low(stream), high(stream)};
  uint32_t key0 = low(seed);
  uint32_t key1 = high(seed);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = kMultiplier0 * x[0];
    const uint64_t b = kMultiplier1 * x[2];
    x = {high(b) ^ x[1] ^ key0, low(b), high(a) ^ x[3] ^ key1, low(a)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return x;
}

uint32_t philox_word(uint64_t seed, uint64_t stream, uint64_t index) noexcept {
  return philox(seed, stream, index / 4)[index % 4];
}

}  // namespace heddle
