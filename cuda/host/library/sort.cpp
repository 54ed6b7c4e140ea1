#include "cuda/library/sort.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/host/record.h"

namespace heddle::cuda {

size_t sort_pairs_scratch(int64_t) { return 0; }

void sort_pairs(cudaStream_t stream, const uint32_t* keys, uint32_t* sorted_keys, const uint32_t* values,
                uint32_t* sorted_values, int64_t count, int, void*, size_t) {
  if (host::recorded("CUB")) return;
  host::start(stream, [=] {
    std::vector<size_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, {}, [&](size_t i) { return keys[i]; });
    for (size_t i = 0; i < order.size(); ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_values[i] = values[order[i]];
    }
  });
}

}  // namespace heddle::cuda
