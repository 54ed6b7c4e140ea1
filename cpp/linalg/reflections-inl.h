// Householder's reflections 1 - tau v v^T of matrices in lanes (lanes.h). A reflection is applied in the same pass over
// the matrix that prepares the next one, so that each pass reads and writes memory once. Included once per target (see
// foreach_target.h), inside no namespace.
#if defined(HEDDLE_LINALG_REFLECTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEDDLE_LINALG_REFLECTIONS_INL_H_
#undef HEDDLE_LINALG_REFLECTIONS_INL_H_
#else
#define HEDDLE_LINALG_REFLECTIONS_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "linalg/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// body of the vectors that a group of matrices goes in.
template <class T, class Body>
HWY_INLINE auto at_width(bool narrow, const Body& body) {
  if (narrow) return body(hn::CappedTag<T, kNarrowBytes / sizeof(T)>());
  return body(hn::ScalableTag<T>());
}

/// Squares below this are far below rounding in a matrix of about 1, but near where they would lose digits themselves.
template <class T>
HWY_INLINE T vanishing() {
  return sizeof(T) == 4 ? T(1e-30) : T(1e-290);
}

template <class V>
struct Reflected {
  V tau;
  /// What is left of the vector, in its first place.
  V beta;
};

/// Makes v [begin, end) of the vector that is there: (1 - tau v v^T) x = (beta, 0, ...), v[begin] = 1, with LAPACK's
/// signs.
template <class D, class T = hn::TFromD<D>, class V = hn::Vec<D>>
HWY_INLINE Reflected<V> make_reflection(D d, T* v, size_t begin, size_t end) {
  const size_t lanes = hn::Lanes(d);
  const auto alpha = hn::Load(d, v + begin * lanes);
  auto squares = hn::Zero(d);
  for (size_t i = begin + 1; i < end; ++i) {
    const auto x = hn::Load(d, v + i * lanes);
    squares = hn::MulAdd(x, x, squares);
  }
  const auto turns = hn::Gt(squares, hn::Set(d, vanishing<T>()));
  const auto length = hn::Sqrt(hn::MulAdd(alpha, alpha, squares));
  const auto beta = hn::IfThenElse(turns, hn::Neg(hn::CopySign(length, alpha)), alpha);
  const auto one = hn::Set(d, T{1});
  const auto tau = hn::IfThenElseZero(turns, hn::Div(hn::Sub(beta, alpha), hn::IfThenElse(turns, beta, one)));
  const auto scale = hn::IfThenElseZero(turns, hn::Div(one, hn::IfThenElse(turns, hn::Sub(alpha, beta), one)));
  for (size_t i = begin + 1; i < end; ++i) hn::Store(hn::Mul(hn::Load(d, v + i * lanes), scale), d, v + i * lanes);
  hn::Store(one, d, v + begin * lanes);
  return {tau, beta};
}

template <class D, class T = hn::TFromD<D>, class V = hn::Vec<D>>
HWY_INLINE void scale_lanes(D d, T* x, size_t begin, size_t end, V factor) {
  const size_t lanes = hn::Lanes(d);
  for (size_t i = begin; i < end; ++i) hn::Store(hn::Mul(hn::Load(d, x + i * lanes), factor), d, x + i * lanes);
}

/// a -= left right^T in rows [row, end of a) and columns [column, columns); then sums += next^T a.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void update_and_sum(D d, T* a, size_t rows, size_t columns, size_t row, size_t column,
                               const T* HWY_RESTRICT left, const T* HWY_RESTRICT right, const T* HWY_RESTRICT next,
                               T* HWY_RESTRICT sums) {
  const size_t lanes = hn::Lanes(d);
  const size_t width = columns * lanes;
  for (size_t i = row / kRowBlock * kRowBlock; i < rows; i += kRowBlock) {
    T* HWY_RESTRICT x = a + i * width;
    const T* const l = left + i * lanes;
    const T* const n = next + i * lanes;
    const auto l0 = hn::Load(d, l), l1 = hn::Load(d, l + lanes), l2 = hn::Load(d, l + 2 * lanes),
               l3 = hn::Load(d, l + 3 * lanes);
    const auto n0 = hn::Load(d, n), n1 = hn::Load(d, n + lanes), n2 = hn::Load(d, n + 2 * lanes),
               n3 = hn::Load(d, n + 3 * lanes);
    for (size_t j = column * lanes; j < width; j += lanes) {
      const auto r = hn::Load(d, right + j);
      const auto x0 = hn::NegMulAdd(l0, r, hn::Load(d, x + j));
      const auto x1 = hn::NegMulAdd(l1, r, hn::Load(d, x + width + j));
      const auto x2 = hn::NegMulAdd(l2, r, hn::Load(d, x + 2 * width + j));
      const auto x3 = hn::NegMulAdd(l3, r, hn::Load(d, x + 3 * width + j));
      hn::Store(x0, d, x + j);
      hn::Store(x1, d, x + width + j);
      hn::Store(x2, d, x + 2 * width + j);
      hn::Store(x3, d, x + 3 * width + j);
      const auto upper = hn::MulAdd(n1, x1, hn::MulAdd(n0, x0, hn::Load(d, sums + j)));
      hn::Store(hn::MulAdd(n3, x3, hn::MulAdd(n2, x2, upper)), d, sums + j);
    }
  }
}

/// A second pair of vectors for update_and_dot, or none.
template <class T>
struct RankOne {
  const T* left;
  const T* right;
};

/// a -= left right^T (and that of a second pair) in rows [row, end of a) and columns [column, columns); then
/// dots = a along.
template <bool kTwo, class D, class T = hn::TFromD<D>>
HWY_INLINE void update_and_dot(D d, T* a, size_t rows, size_t columns, size_t row, size_t column, RankOne<T> first,
                               [[maybe_unused]] RankOne<T> second, const T* HWY_RESTRICT along, T* HWY_RESTRICT dots) {
  const size_t lanes = hn::Lanes(d);
  const size_t width = columns * lanes;
  for (size_t i = row / kRowBlock * kRowBlock; i < rows; i += kRowBlock) {
    T* HWY_RESTRICT x = a + i * width;
    const T* const l = first.left + i * lanes;
    const auto l0 = hn::Load(d, l), l1 = hn::Load(d, l + lanes), l2 = hn::Load(d, l + 2 * lanes),
               l3 = hn::Load(d, l + 3 * lanes);
    const T* const m = (kTwo ? second.left : first.left) + i * lanes;
    const auto m0 = hn::Load(d, m), m1 = hn::Load(d, m + lanes), m2 = hn::Load(d, m + 2 * lanes),
               m3 = hn::Load(d, m + 3 * lanes);
    auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
    for (size_t j = column * lanes; j < width; j += lanes) {
      const auto r = hn::Load(d, first.right + j);
      auto x0 = hn::NegMulAdd(l0, r, hn::Load(d, x + j));
      auto x1 = hn::NegMulAdd(l1, r, hn::Load(d, x + width + j));
      auto x2 = hn::NegMulAdd(l2, r, hn::Load(d, x + 2 * width + j));
      auto x3 = hn::NegMulAdd(l3, r, hn::Load(d, x + 3 * width + j));
      if constexpr (kTwo) {
        const auto q = hn::Load(d, second.right + j);
        x0 = hn::NegMulAdd(m0, q, x0);
        x1 = hn::NegMulAdd(m1, q, x1);
        x2 = hn::NegMulAdd(m2, q, x2);
        x3 = hn::NegMulAdd(m3, q, x3);
      }
      hn::Store(x0, d, x + j);
      hn::Store(x1, d, x + width + j);
      hn::Store(x2, d, x + 2 * width + j);
      hn::Store(x3, d, x + 3 * width + j);
      const auto u = hn::Load(d, along + j);
      s0 = hn::MulAdd(x0, u, s0);
      s1 = hn::MulAdd(x1, u, s1);
      s2 = hn::MulAdd(x2, u, s2);
      s3 = hn::MulAdd(x3, u, s3);
    }
    hn::Store(s0, d, dots + i * lanes);
    hn::Store(s1, d, dots + (i + 1) * lanes);
    hn::Store(s2, d, dots + (i + 2) * lanes);
    hn::Store(s3, d, dots + (i + 3) * lanes);
  }
}

/// Reflections one after the other: the k-th has its vector at vectors + k * size, 0 before place k + offset and 1
/// there. `size` is padded.
template <class T>
struct Reflections {
  T* vectors;
  T* taus;
  size_t count, size, offset;
};

/// q [size, columns] = the product of all reflections, from the first on the left, of which these are the leading
/// columns. q is zero before; `work` has 2 * columns + size vectors, zero.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void multiply_reflections(D d, const Reflections<T>& all, T* q, size_t columns, T* work) {
  const size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, T{1});
  for (size_t j = 0; j < columns; ++j) hn::Store(one, d, q + (j * columns + j) * lanes);
  T* right = work;
  T* sums = right + columns * lanes;
  const T* left = sums + columns * lanes;
  for (size_t k = all.count; k-- > 0;) {
    const size_t start = k + all.offset;
    const T* const v = all.vectors + k * all.size * lanes;
    std::fill(sums + start * lanes, sums + columns * lanes, T{0});
    update_and_sum(d, q, all.size, columns, start, start, left, right, v, sums);
    scale_lanes(d, sums, start, columns, hn::Load(d, all.taus + k * lanes));
    left = v;
    std::swap(right, sums);
  }
  const T* const nothing = work + 2 * columns * lanes;
  std::fill_n(sums, columns * lanes, T{0});
  if (all.count != 0) update_and_sum(d, q, all.size, columns, all.offset, all.offset, left, right, nothing, sums);
}

}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#endif
