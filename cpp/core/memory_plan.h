// Where the temporaries of a program lie in its one arena: buffers whose lives do not overlap share memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace heddle {

/// A buffer lives from instruction `first` to instruction `last`, both included.
struct LiveRange {
  size_t bytes = 0;
  uint32_t first = 0;
  uint32_t last = 0;
};

struct MemoryPlan {
  /// One per range, each a multiple of 64.
  std::vector<size_t> offsets;
  size_t bytes = 0;
};

/// Throws kShape when the sizes overflow.
MemoryPlan plan_memory(std::span<const LiveRange> ranges);

}  // namespace heddle
