// bf16 numbers in f32 vectors. Included once per target (see foreach_target.h), inside no namespace.
#if defined(HEDDLE_KERNELS_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEDDLE_KERNELS_BF16_INL_H_
#undef HEDDLE_KERNELS_BF16_INL_H_
#else
#define HEDDLE_KERNELS_BF16_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The bits of x rounded to nearest even at bit 16, in the upper half; NaN stays NaN.
template <class D, class U = hn::RebindToUnsigned<D>>
HWY_INLINE hn::Vec<U> rounded_bits(D, hn::Vec<D> x) {
  const U u;
  const auto bits = hn::BitCast(u, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(u, 0x7fff)));
  const auto quiet = hn::Or(bits, hn::Set(u, 0x400000));
  const auto is_nan = hn::RebindMask(u, hn::IsNaN(x));
  return hn::IfThenElse(is_nan, quiet, rounded);
}

/// The nearest bf16 number.
template <class D>
HWY_INLINE hn::Vec<D> round_to_bf16(D d, hn::Vec<D> x) {
  const hn::RebindToUnsigned<D> u;
  return hn::BitCast(d, hn::And(rounded_bits(d, x), hn::Set(u, 0xffff0000U)));
}

template <class D>
HWY_INLINE hn::Vec<D> load_bf16(D d, const uint16_t* source) {
  const hn::RebindToUnsigned<D> u;
  const hn::Rebind<uint16_t, D> half;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(u, hn::LoadU(half, source))));
}

/// Rounds to nearest even.
template <class D>
HWY_INLINE void store_bf16(D d, hn::Vec<D> x, uint16_t* target) {
  const hn::Rebind<int32_t, D> i;
  const hn::Rebind<uint16_t, D> half;
  hn::StoreU(hn::DemoteTo(half, hn::BitCast(i, hn::ShiftRight<16>(rounded_bits(d, x)))), half, target);
}

}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#endif
