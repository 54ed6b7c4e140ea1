// Sums along a row of f32, the same on any number of threads. Included once per target (see foreach_target.h), inside
// no namespace.
#if defined(HEDDLE_KERNELS_ROW_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEDDLE_KERNELS_ROW_SUM_INL_H_
#undef HEDDLE_KERNELS_ROW_SUM_INL_H_
#else
#define HEDDLE_KERNELS_ROW_SUM_INL_H_
#endif

#include <cstddef>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Sum of term(i) over [0, width): two vector accumulators, then the elements that do not fill a vector.
template <class VectorTerm, class ScalarTerm>
HWY_INLINE float sum_over(size_t width, const VectorTerm& vector_term, const ScalarTerm& scalar_term) {
  const hn::CappedTag<float, 16> d;
  const size_t n = hn::Lanes(d);
  auto even = hn::Zero(d);
  auto odd = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * n <= width; i += 2 * n) {
    even = hn::Add(even, vector_term(i));
    odd = hn::Add(odd, vector_term(i + n));
  }
  if (i + n <= width) {
    even = hn::Add(even, vector_term(i));
    i += n;
  }
  float total = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < width; ++i) total += scalar_term(i);
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#endif
