// Memory that is read soon, asked for line by line while something else is computed: products of a few rows wait for
// arithmetic, what follows them for memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "core/fetch_region.h"
#include "hwy/cache_control.h"

namespace heddle {

/// Asks for some of the lines of regions, in their order, an equal share at each of so many steps. Whatever the
/// addresses are, asking is no access.
class Fetcher {
 public:
  Fetcher() = default;
  /// Lines [first, last) of all those of the regions, which outlive it.
  Fetcher(std::span<const FetchRegion> regions, size_t first, size_t last, size_t steps) noexcept
      : rest_(regions), left_(last - first), share_(steps == 0 ? 0 : (left_ + steps - 1) / steps) {
    if (left_ == 0) return;
    while (first >= rest_.front().lines()) {
      first -= rest_.front().lines();
      rest_ = rest_.subspan(1);
    }
    enter_region();
    at_ += first * kLineBytes;
  }

  void step() noexcept {
    for (size_t i = std::min(share_, left_); i > 0; --i) {
      hwy::Prefetch(at_);
      at_ += kLineBytes;
      --left_;
      if (at_ >= end_) enter_region();
    }
  }

 private:
  void enter_region() noexcept {
    while (left_ > 0 && at_ >= end_) {
      at_ = rest_.front().data;
      end_ = at_ + rest_.front().bytes;
      rest_ = rest_.subspan(1);
    }
  }

  /// Behind the one that at_ is in.
  std::span<const FetchRegion> rest_;
  const std::byte* at_ = nullptr;
  const std::byte* end_ = nullptr;
  size_t left_ = 0;
  size_t share_ = 0;
};

}  // namespace heddle
