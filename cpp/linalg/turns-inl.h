// Plane rotations of matrices in lanes (lanes.h), as implicit QR iterations make them: found one by one on a few
// numbers, recorded, and applied to the vectors a few sweeps at a time, row by row. A lane that takes no part in a
// rotation has the identity. Included once per target (see foreach_target.h), inside no namespace.
#if defined(HEDDLE_LINALG_TURNS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEDDLE_LINALG_TURNS_INL_H_
#undef HEDDLE_LINALG_TURNS_INL_H_
#else
#define HEDDLE_LINALG_TURNS_INL_H_
#endif

#include "linalg/reflections-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class V>
struct Turn {
  V cos, sin, length;
};

/// cos f + sin g = length, cos g - sin f = 0; the identity where `active` is false.
template <class D, class V = hn::Vec<D>, class M = hn::Mask<D>>
HWY_INLINE Turn<V> turn_of(D d, V f, V g, M active) {
  using T = hn::TFromD<D>;
  const auto one = hn::Set(d, T{1});
  const auto squares = hn::MulAdd(f, f, hn::Mul(g, g));
  const auto turns = hn::And(active, hn::Gt(squares, hn::Set(d, vanishing<T>())));
  const auto length = hn::Sqrt(hn::IfThenElse(turns, squares, one));
  return {hn::IfThenElse(turns, hn::Div(f, length), one), hn::IfThenElseZero(turns, hn::Div(g, length)),
          hn::IfThenElse(turns, length, f)};
}

/// The vectors need more care than the numbers: what is wrong in the length of (cos, sin) is often the same sweep after
/// sweep, and all vectors would grow. So sin is corrected, and of cos that is kept which it lacks to 1: small angles,
/// which are many, would be lost in its rounding.
template <class D, class T = hn::TFromD<D>, class V = hn::Vec<D>>
HWY_INLINE void record_turn(D d, const TurnRecord<T>& record, size_t place, const Turn<V>& turn) {
  if (record.z == nullptr) return;
  const size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, T{1});
  const auto missing = hn::NegMulAdd(turn.sin, turn.sin, hn::NegMulAdd(turn.cos, turn.cos, one));
  const auto half = hn::Mul(missing, hn::Set(d, T(0.5)));
  const auto sin = hn::MulAdd(turn.sin, half, turn.sin);
  const auto cos = hn::MulAdd(turn.cos, half, turn.cos);
  const auto sharp = hn::Gt(cos, hn::Zero(d));
  const auto small = hn::Div(hn::Mul(sin, sin), hn::Add(one, hn::IfThenElseZero(sharp, cos)));
  hn::Store(hn::IfThenElse(sharp, small, hn::Sub(one, cos)), d, record.losses(record.sweeps, lanes) + place * lanes);
  hn::Store(sin, d, record.sines(record.sweeps, lanes) + place * lanes);
}

/// One sweep: columns j and j + 1 turn for j in [first, last), in four rows. A column is read and written once.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void turn_rows(D d, T* HWY_RESTRICT z, size_t width, const T* HWY_RESTRICT losses,
                          const T* HWY_RESTRICT sines, size_t first, size_t last) {
  const size_t lanes = hn::Lanes(d);
  T *const z1 = z + width, *const z2 = z1 + width, *const z3 = z2 + width;
  size_t j = first * lanes;
  auto x0 = hn::Load(d, z + j), x1 = hn::Load(d, z1 + j), x2 = hn::Load(d, z2 + j), x3 = hn::Load(d, z3 + j);
  for (; j < last * lanes; j += lanes) {
    const auto l = hn::Load(d, losses + j);
    const auto s = hn::Load(d, sines + j);
    const size_t next = j + lanes;
    const auto y0 = hn::Load(d, z + next), y1 = hn::Load(d, z1 + next), y2 = hn::Load(d, z2 + next),
               y3 = hn::Load(d, z3 + next);
    hn::Store(hn::NegMulAdd(l, x0, hn::MulAdd(s, y0, x0)), d, z + j);
    hn::Store(hn::NegMulAdd(l, x1, hn::MulAdd(s, y1, x1)), d, z1 + j);
    hn::Store(hn::NegMulAdd(l, x2, hn::MulAdd(s, y2, x2)), d, z2 + j);
    hn::Store(hn::NegMulAdd(l, x3, hn::MulAdd(s, y3, x3)), d, z3 + j);
    x0 = hn::NegMulAdd(l, y0, hn::NegMulAdd(s, x0, y0));
    x1 = hn::NegMulAdd(l, y1, hn::NegMulAdd(s, x1, y1));
    x2 = hn::NegMulAdd(l, y2, hn::NegMulAdd(s, x2, y2));
    x3 = hn::NegMulAdd(l, y3, hn::NegMulAdd(s, x3, y3));
  }
  hn::Store(x0, d, z + j);
  hn::Store(x1, d, z1 + j);
  hn::Store(x2, d, z2 + j);
  hn::Store(x3, d, z3 + j);
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE void apply_turns(D d, TurnRecord<T>& record) {
  const size_t lanes = hn::Lanes(d);
  const size_t width = record.columns * lanes;
  for (size_t i = 0; i < record.rows && record.z != nullptr; i += kRowBlock)
    for (size_t sweep = 0; sweep < record.sweeps; ++sweep)
      turn_rows(d, record.z + i * width, width, record.losses(sweep, lanes), record.sines(sweep, lanes),
                record.first[sweep], record.last[sweep]);
  record.sweeps = 0;
}

/// Ends the sweep over [first, last).
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void end_sweep(D d, TurnRecord<T>& record, size_t first, size_t last) {
  record.first[record.sweeps] = first;
  record.last[record.sweeps] = last;
  if (++record.sweeps == TurnRecord<T>::kSweeps) apply_turns(d, record);
}

/// The last unreduced block of each lane's bidiagonal or tridiagonal matrix: places lo ... hi.
template <class D>
struct Block {
  using V = hn::Vec<D>;
  using M = hn::Mask<D>;
  M active;
  V lo, hi;
  /// d[hi - 1], e[hi - 1] and d[hi], from which shifts are made.
  V above, link, bottom;
  /// Whether an element of d in the block is zero.
  M singular;
  /// Over all lanes: places [first, last] hold all blocks.
  size_t first, last;
};

/// Sets what is negligible in e [n - 1] to zero, and in d [n] beside what is not if `kZeroD`, and finds the blocks. An
/// element of e is negligible beside its neighbours in d, any below half the rounding of the whole matrix's largest.
template <bool kZeroD, class D, class T = hn::TFromD<D>, class V = hn::Vec<D>>
HWY_INLINE Block<D> find_blocks(D d, T* diagonal, T* beside, size_t n, V largest) {
  const size_t lanes = hn::Lanes(d);
  const auto epsilon = hn::Set(d, std::numeric_limits<T>::epsilon());
  const auto floor = hn::Mul(hn::Mul(epsilon, hn::Set(d, T(0.5))), largest);
  const auto zero = hn::Zero(d);
  const auto nothing = hn::Lt(zero, zero);
  auto open = nothing, closed = nothing, singular = nothing;
  auto lo = zero, hi = zero, above = zero, link = zero, bottom = zero;
  auto below = hn::Load(d, diagonal + (n - 1) * lanes);
  for (size_t i = n - 1; i-- > 0;) {
    auto here = hn::Load(d, diagonal + i * lanes);
    const auto e = hn::Load(d, beside + i * lanes);
    const auto near = hn::Mul(epsilon, hn::Add(hn::Abs(here), hn::Abs(below)));
    const auto large = hn::Gt(hn::Abs(e), hn::Max(near, floor));
    hn::Store(hn::IfThenElseZero(large, e), d, beside + i * lanes);
    if constexpr (kZeroD) {
      here = hn::IfThenZeroElse(hn::And(large, hn::Le(hn::Abs(here), floor)), here);
      below = hn::IfThenZeroElse(hn::And(large, hn::Le(hn::Abs(below), floor)), below);
      hn::Store(here, d, diagonal + i * lanes);
      hn::Store(below, d, diagonal + (i + 1) * lanes);
    }
    const auto place = hn::Set(d, static_cast<T>(i + 1));
    const auto starts = hn::AndNot(hn::Or(open, closed), large);
    const auto ends = hn::AndNot(large, open);
    hi = hn::IfThenElse(starts, place, hi);
    above = hn::IfThenElse(starts, here, above);
    link = hn::IfThenElse(starts, e, link);
    bottom = hn::IfThenElse(starts, below, bottom);
    lo = hn::IfThenElse(ends, place, lo);
    closed = hn::Or(closed, ends);
    open = hn::And(hn::Or(open, starts), large);
    singular = hn::Or(singular, hn::And(open, hn::Eq(hn::Min(hn::Abs(here), hn::Abs(below)), zero)));
    below = here;
  }
  const auto active = hn::Or(open, closed);
  const auto far = hn::Set(d, static_cast<T>(n));
  const auto first = hn::GetLane(hn::MinOfLanes(d, hn::IfThenElse(active, lo, far)));
  const auto last = hn::GetLane(hn::MaxOfLanes(d, hn::IfThenElseZero(active, hi)));
  return {active, lo, hi, above, link, bottom, singular, static_cast<size_t>(first), static_cast<size_t>(last)};
}

}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#endif
