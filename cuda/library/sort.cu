#ifdef __CUDACC__

#include <cub/device/device_radix_sort.cuh>

#include "cuda/core/device.h"
#include "cuda/library/sort.h"

namespace heddle::cuda {

size_t sort_pairs_scratch(int64_t count) {
  size_t bytes = 0;
  const uint32_t* const none = nullptr;
  check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, none, static_cast<uint32_t*>(nullptr), none,
                                        static_cast<uint32_t*>(nullptr), static_cast<int>(count)),
        "sort");
  return bytes;
}

void sort_pairs(cudaStream_t stream, const uint32_t* keys, uint32_t* sorted_keys, const uint32_t* values,
                uint32_t* sorted_values, int64_t count, int bits, void* scratch, size_t scratch_bytes) {
  check(cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, keys, sorted_keys, values, sorted_values,
                                        static_cast<int>(count), 0, bits, stream),
        "sort");
}

}  // namespace heddle::cuda

#endif
