// Sorting by NVIDIA's CUB; in the emulation, by the C++ library.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace heddle::cuda {

/// Scratch memory that sort_pairs takes for so many pairs.
size_t sort_pairs_scratch(int64_t count);

/// Orders pairs by their keys, equal keys as they stood, on the stream. Keys are below 2^bits.
void sort_pairs(cudaStream_t stream, const uint32_t* keys, uint32_t* sorted_keys, const uint32_t* values,
                uint32_t* sorted_values, int64_t count, int bits, void* scratch, size_t scratch_bytes);

}  // namespace heddle::cuda
