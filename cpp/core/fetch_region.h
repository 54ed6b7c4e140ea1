// Memory that is read soon. What asks for it is in fetch_ahead.h.
#pragma once

#include <cstddef>
#include <span>

namespace heddle {

inline constexpr size_t kLineBytes = 64;

/// Bytes that are read one after the other.
struct FetchRegion {
  const std::byte* data = nullptr;
  size_t bytes = 0;

  size_t lines() const noexcept { return (bytes + kLineBytes - 1) / kLineBytes; }
};

inline size_t count_lines(std::span<const FetchRegion> regions) noexcept {
  size_t lines = 0;
  for (const FetchRegion& region : regions) lines += region.lines();
  return lines;
}

}  // namespace heddle
