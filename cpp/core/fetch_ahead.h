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
      : regions_(regions), line_(first), left_(last - first), share_(steps == 0 ? 0 : (left_ + steps - 1) / steps) {
    skip_regions();
  }

  void step() noexcept {
    for (size_t i = std::min(share_, left_); i > 0; --i) {
      hwy::Prefetch(regions_.front().data + line_ * kLineBytes);
      ++line_;
      --left_;
      skip_regions();
    }
  }

 private:
  /// Goes on in the region that the line is in.
  void skip_regions() noexcept {
    while (left_ > 0 && line_ >= regions_.front().lines()) {
      line_ -= regions_.front().lines();
      regions_ = regions_.subspan(1);
    }
  }

  std::span<const FetchRegion> regions_;
  /// Within the first of the regions.
  size_t line_ = 0;
  size_t left_ = 0;
  size_t share_ = 0;
};

}  // namespace heddle
