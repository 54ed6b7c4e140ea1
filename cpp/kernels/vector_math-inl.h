// Vectorised f32 functions on Highway vectors, about 1e-7 relative error over the whole range, NaN and infinities as
// in libm. Included once per target (see foreach_target.h), inside no namespace.
#if defined(HEDDLE_KERNELS_VECTOR_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEDDLE_KERNELS_VECTOR_MATH_INL_H_
#undef HEDDLE_KERNELS_VECTOR_MATH_INL_H_
#else
#define HEDDLE_KERNELS_VECTOR_MATH_INL_H_
#endif

#include <cmath>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// e^r 2^n for n = round(x / ln 2) and what remains of x; returns e^r and sets n.
template <class D, class V = hn::Vec<D>, class VI = hn::Vec<hn::RebindToSigned<D>>>
HWY_INLINE V exp_fraction(D d, V x, VI& n) {
  n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504088896341F)));
  const V nf = hn::ConvertTo(d, n);
  // ln 2 in two parts: the first has 9 trailing zero bits, so nf * high is exact.
  V r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375F), x);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4F), r);
  // Taylor series: |r| <= ln(2) / 2, so the first omitted term is below 6e-9.
  V p = hn::Set(d, 1.0F / 5040.0F);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 720.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 120.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 24.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 6.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  return hn::MulAdd(p, r, hn::Set(d, 1.0F));
}

/// e^x. Below -104 gives 0, above 88.73 infinity; results below the smallest normal are correctly scaled.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  // Beyond these the result is 0 or infinity anyway, and the integer exponent stays in range.
  const V clamped = hn::Min(hn::Max(x, hn::Set(d, -105.0F)), hn::Set(d, 90.0F));
  hn::Vec<decltype(di)> n;
  const V p = exp_fraction(d, clamped, n);
  // 2^n in two factors, so that n = 128 and subnormal results need no special case.
  const auto half = hn::ShiftRight<1>(n);
  const auto bias = hn::Set(di, 127);
  const V scale1 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const V scale2 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(n, half), bias)));
  const V y = hn::Mul(hn::Mul(p, scale1), scale2);
  return hn::IfThenElse(hn::IsNaN(x), x, y);
}

/// e^-a for a >= 0: 0 instead of a subnormal result, and for NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_exp_minus(D d, V a) {
  const hn::RebindToSigned<D> di;
  const auto small = hn::Lt(a, hn::Set(d, 87.3F));
  hn::Vec<decltype(di)> n;
  const V p = exp_fraction(d, hn::Neg(hn::IfThenElseZero(small, a)), n);
  // Adding n to the exponent bits of p, which lies in [0.7, 1.42], multiplies by 2^n.
  return hn::IfThenElseZero(small, hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(n))));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_log(D d, V x) {
  const V infinity = hn::Set(d, std::numeric_limits<float>::infinity());
  V y = hn::Log(d, x);
  y = hn::IfThenElse(hn::Eq(x, infinity), infinity, y);
  y = hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Neg(infinity), y);
  const auto valid = hn::Ge(x, hn::Zero(d));
  return hn::IfThenElse(valid, y, hn::Set(d, std::numeric_limits<float>::quiet_NaN()));
}

/// 1 / (1 + e^-x); e^-|x| cannot overflow, so that small results keep their precision.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0F);
  const V e = vector_exp_minus(d, hn::Abs(x));
  const V y = hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
  return hn::IfThenElse(hn::IsNaN(x), x, y);
}

/// As the product that it is defined as: programs that need the sigmoid too compute the product themselves.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_silu(D d, V x) {
  return hn::Mul(x, vector_sigmoid(d, x));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_tanh(D d, V x) {
  const V one = hn::Set(d, 1.0F);
  const V a = hn::Abs(x);
  // Fifth convergent of Lambert's continued fraction: error below 1e-9 for |x| < 0.6.
  const V s = hn::Mul(x, x);
  const V near_top = hn::Mul(a, hn::MulAdd(hn::Add(s, hn::Set(d, 105.0F)), s, hn::Set(d, 945.0F)));
  const V near_bottom = hn::MulAdd(hn::MulAdd(s, hn::Set(d, 15.0F), hn::Set(d, 420.0F)), s, hn::Set(d, 945.0F));
  // (1 - e^-2a) / (1 + e^-2a)
  const V e = vector_exp_minus(d, hn::Add(a, a));
  const auto near = hn::Lt(a, hn::Set(d, 0.6F));
  const V y =
      hn::Div(hn::IfThenElse(near, near_top, hn::Sub(one, e)), hn::IfThenElse(near, near_bottom, hn::Add(one, e)));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::CopySign(y, x));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_erf(D d, V x) {
  const V one = hn::Set(d, 1.0F);
  const V a = hn::Abs(x);
  const V s = hn::Mul(x, x);
  // |x| < 1: Maclaurin series 2/sqrt(pi) * sum (-1)^n x^(2n+1) / (n! (2n+1)).
  constexpr float kScale = 1.12837916709551257F;
  V near = hn::Set(d, kScale / (3628800.0F * 21.0F));
  near = hn::MulAdd(near, s, hn::Set(d, -kScale / (362880.0F * 19.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, kScale / (40320.0F * 17.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, -kScale / (5040.0F * 15.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, kScale / (720.0F * 13.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, -kScale / (120.0F * 11.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, kScale / (24.0F * 9.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, -kScale / (6.0F * 7.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, kScale / (2.0F * 5.0F)));
  near = hn::MulAdd(near, s, hn::Set(d, -kScale / 3.0F));
  near = hn::Mul(hn::MulAdd(near, s, hn::Set(d, kScale)), a);
  // |x| >= 1: Abramowitz & Stegun 7.1.26, absolute error 1.5e-7.
  const V t = hn::Div(one, hn::MulAdd(a, hn::Set(d, 0.3275911F), one));
  V far = hn::Set(d, 1.061405429F);
  far = hn::MulAdd(far, t, hn::Set(d, -1.453152027F));
  far = hn::MulAdd(far, t, hn::Set(d, 1.421413741F));
  far = hn::MulAdd(far, t, hn::Set(d, -0.284496736F));
  far = hn::MulAdd(far, t, hn::Set(d, 0.254829592F));
  far = hn::NegMulAdd(hn::Mul(far, t), vector_exp_minus(d, s), one);
  const V y = hn::IfThenElse(hn::Lt(a, one), near, far);
  return hn::IfThenElse(hn::IsNaN(x), x, hn::CopySign(y, x));
}

/// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_softplus(D d, V x) {
  const V y = hn::Add(hn::Max(x, hn::Zero(d)), hn::Log1p(d, vector_exp_minus(d, hn::Abs(x))));
  return hn::IfThenElse(hn::IsNaN(x), x, y);
}

/// Applies a libm function lane by lane: arguments outside the range of the vector form are rare.
template <class D, class V = hn::Vec<D>>
HWY_NOINLINE V lane_by_lane(D d, V x, float (*function)(float)) {
  alignas(64) float lanes[hn::MaxLanes(d)];
  hn::Store(x, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = function(lanes[i]);
  return hn::Load(d, lanes);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_sin(D d, V x) {
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Le(hn::Abs(x), hn::Set(d, 39000.0F))))) return lane_by_lane(d, x, std::sin);
  return hn::Sin(d, x);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V vector_cos(D d, V x) {
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Le(hn::Abs(x), hn::Set(d, 39000.0F))))) return lane_by_lane(d, x, std::cos);
  return hn::Cos(d, x);
}

}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#endif
