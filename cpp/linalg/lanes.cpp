#include "linalg/lanes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linalg/lanes.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {

size_t widest() { return hwy::HWY_NAMESPACE::Lanes(hwy::HWY_NAMESPACE::ScalableTag<float>()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(widest);

}  // namespace

size_t float_lanes(const Matrices& a) {
  const size_t all = HWY_DYNAMIC_DISPATCH(widest)();
  return narrow_lanes(a) ? std::min(all, kNarrowBytes / sizeof(float)) : all;
}

}  // namespace heddle

#endif  // HWY_ONCE
