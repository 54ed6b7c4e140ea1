#include "core/memory_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/dtype.h"

namespace heddle {

namespace {

constexpr size_t kAlignment = 64;

size_t aligned(size_t bytes) { return checked_add(bytes, kAlignment - 1, "memory plan") / kAlignment * kAlignment; }

/// Places the buffers in the given order, each into the tightest gap that the buffers alive with it leave.
MemoryPlan place(std::span<const LiveRange> ranges, std::span<const uint32_t> order) {
  MemoryPlan plan{std::vector<size_t>(ranges.size(), 0), 0};
  // Buffers placed so far, by offset.
  std::vector<uint32_t> placed;
  placed.reserve(ranges.size());
  for (const uint32_t id : order) {
    const LiveRange& range = ranges[id];
    const size_t bytes = aligned(range.bytes);
    if (bytes == 0) continue;
    size_t best = std::numeric_limits<size_t>::max();
    size_t best_gap = std::numeric_limits<size_t>::max();
    size_t end = 0;
    for (const uint32_t other : placed) {
      if (ranges[other].last < range.first || ranges[other].first > range.last) continue;
      const size_t begin = plan.offsets[other];
      if (begin > end && begin - end >= bytes && begin - end < best_gap) {
        best = end;
        best_gap = begin - end;
      }
      end = std::max(end, begin + aligned(ranges[other].bytes));
    }
    const size_t offset = best_gap == std::numeric_limits<size_t>::max() ? end : best;
    plan.offsets[id] = offset;
    plan.bytes = std::max(plan.bytes, checked_add(offset, bytes, "memory plan"));
    const auto position =
        std::ranges::upper_bound(placed, offset, {}, [&](uint32_t other) { return plan.offsets[other]; });
    placed.insert(position, id);
  }
  return plan;
}

}  // namespace

MemoryPlan plan_memory(std::span<const LiveRange> ranges) {
  std::vector<uint32_t> by_start(ranges.size());
  std::iota(by_start.begin(), by_start.end(), 0U);
  std::ranges::stable_sort(by_start, {}, [&](uint32_t id) { return ranges[id].first; });
  std::vector<uint32_t> by_size = by_start;
  std::ranges::stable_sort(by_size, std::greater<>(), [&](uint32_t id) { return ranges[id].bytes; });

  // Neither order is always better: big first packs forward/backward programs, in time packs straight chains.
  MemoryPlan a = place(ranges, by_size);
  MemoryPlan b = place(ranges, by_start);
  return a.bytes <= b.bytes ? a : b;
}

}  // namespace heddle
