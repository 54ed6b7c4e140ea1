// `random_uniform` and `random_normal`: element n is a function of (seed, stream, n) alone. The vector form of Philox
// below gives bit for bit what core/random.cpp gives.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/random.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/vector_math-inl.h"

#ifndef HEDDLE_KERNELS_RANDOM_ONCE
#define HEDDLE_KERNELS_RANDOM_ONCE

#include <algorithm>

#include "core/random.h"
#include "kernels/kernel_table.h"

namespace heddle {
namespace {

constexpr size_t kTileElements = 16384;
constexpr size_t kBatch = 1024;  // words made at a time, in L1

struct RandomKey {
  uint64_t seed, stream;
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_RANDOM_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace ::heddle::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

#if HWY_TARGET == HWY_SCALAR

/// Words of blocks [block, block + kBatch / 4).
void philox_batch(RandomKey key, uint64_t block, uint32_t* words) {
  for (size_t at = 0; at < kBatch / 4; ++at) {
    const Philox4 four = philox(key.seed, key.stream, block + at);
    std::copy(four.begin(), four.end(), words + 4 * at);
  }
}

#else

using D64 = hn::CappedTag<uint64_t, 8>;
using V64 = hn::Vec<D64>;

/// Product of the lower 32 bits of each lane; what stands in the upper 32 bits does not matter.
HWY_INLINE V64 mul_low_words(V64 a, V64 b) {
  const hn::RepartitionToNarrow<D64> d32;
  return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, b));
}

/// Words of blocks [block, block + kBatch / 4). Each 64-bit lane holds a word of one block in its lower half.
void philox_batch(RandomKey key, uint64_t block, uint32_t* words) {
  const D64 d;
  const V64 multiplier0 = hn::Set(d, 0xd2511f53U);
  const V64 multiplier1 = hn::Set(d, 0xcd9e8d57U);
  const V64 low_half = hn::Set(d, 0xffffffffU);
  for (size_t at = 0; at < kBatch / 4; at += hn::Lanes(d)) {
    V64 x0 = hn::Add(hn::Set(d, block + at), hn::Iota(d, 0));
    V64 x1 = hn::ShiftRight<32>(x0);
    V64 x2 = hn::Set(d, key.stream);
    V64 x3 = hn::ShiftRight<32>(x2);
    auto key0 = static_cast<uint32_t>(key.seed);
    auto key1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const V64 a = mul_low_words(multiplier0, x0);
      const V64 b = mul_low_words(multiplier1, x2);
      x0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(b), x1), hn::Set(d, key0));
      x1 = b;
      x2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(a), x3), hn::Set(d, key1));
      x3 = a;
      key0 += 0x9e3779b9U;
      key1 += 0xbb67ae85U;
    }
    const V64 first = hn::Or(hn::And(x0, low_half), hn::ShiftLeft<32>(x1));
    const V64 second = hn::Or(hn::And(x2, low_half), hn::ShiftLeft<32>(x3));
    hn::StoreInterleaved2(first, second, d, reinterpret_cast<uint64_t*>(words) + 2 * at);
  }
}

#endif  // HWY_TARGET == HWY_SCALAR

/// [0, 1) from the upper 24 bits.
template <class V>
HWY_INLINE VF unit_interval(V words, uint32_t offset) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  const auto bits = hn::Add(hn::ShiftRight<8>(words), hn::Set(du, offset));
  return hn::Mul(hn::ConvertTo(d, hn::BitCast(di, bits)), hn::Set(d, 0x1p-24F));
}

void uniform_batch(const uint32_t* words, float* numbers) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  for (size_t i = 0; i < kBatch; i += hn::Lanes(d))
    hn::StoreU(unit_interval(hn::LoadU(du, words + i), 0), d, numbers + i);
}

/// Box-Muller: words (2p, 2p + 1) give numbers (2p, 2p + 1).
void normal_batch(const uint32_t* words, float* numbers) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  for (size_t i = 0; i < kBatch; i += 2 * hn::Lanes(d)) {
    hn::Vec<decltype(du)> first, second;
    hn::LoadInterleaved2(du, words + i, first, second);
    // (0, 1], so that the logarithm is finite.
    const VF u1 = unit_interval(first, 1);
    const VF radius = hn::Sqrt(hn::Mul(hn::Set(d, -2.0F), vector_log(d, u1)));
    const VF angle = hn::Mul(unit_interval(second, 0), hn::Set(d, 6.28318530717958648F));
    hn::StoreInterleaved2(hn::Mul(radius, vector_cos(d, angle)), hn::Mul(radius, vector_sin(d, angle)), d, numbers + i);
  }
}

/// Elements [begin, end); begin is a multiple of kBatch.
void random_range(bool normal, RandomKey key, float* out, size_t begin, size_t end) {
  HWY_ALIGN uint32_t words[kBatch];
  HWY_ALIGN float numbers[kBatch];
  for (size_t at = begin; at < end; at += kBatch) {
    philox_batch(key, at / 4, words);
    float* target = end - at >= kBatch ? out + at : numbers;
    if (normal)
      normal_batch(words, target);
    else
      uniform_batch(words, target);
    if (target == numbers) std::copy_n(numbers, end - at, out + at);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(random_range);

static_assert(kTileElements % kBatch == 0);

template <bool kNormal>
CompiledKernel compile_random(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Operand& seed = request.inputs[0];
  const Operand& y = request.outputs[0];
  request.check(seed.present && y.present, "a seed and an output", "an absent operand");
  request.check(seed.dtype == DType::kU32 && seed.shape == Shape({2}), "a seed of u32 [2]", seed.shape.str());
  request.check(y.dtype == DType::kF32, "f32", dtype_name(y.dtype));
  CompiledKernel kernel;
  kernel.run = [stream = static_cast<uint64_t>(request.attributes.integer("stream")),
                count = y.shape.count()](const RunArguments& arguments) {
    if (count == 0) return;
    const auto* words = arguments.input<uint32_t>(0);
    const RandomKey key{words[0] | static_cast<uint64_t>(words[1]) << 32, stream};
    auto* out = arguments.output<float>(0);
    const auto run = [&](size_t tile, size_t) {
      const size_t begin = tile * kTileElements;
      HWY_DYNAMIC_DISPATCH(random_range)(kNormal, key, out, begin, std::min(begin + kTileElements, count));
    };
    const size_t tiles = (count + kTileElements - 1) / kTileElements;
    if (tiles == 1)
      run(0, 0);
    else
      arguments.pool.run(tiles, [r = &run](size_t tile, size_t thread) { (*r)(tile, thread); });
  };
  return kernel;
}

}  // namespace

void register_random(KernelTable& table) {
  table["random_uniform"] = compile_random<false>;
  table["random_normal"] = compile_random<true>;
}

}  // namespace heddle

#endif  // HWY_ONCE
