// `random_uniform` and `random_normal`: element n is a function of (seed, stream, n) alone, as on the CPU.
#include "cuda/core/launch.cuh"
#include "cuda/core/philox.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

__device__ uint64_t seed_of(const uint32_t* words) { return words[0] | static_cast<uint64_t>(words[1]) << 32; }

__global__ void fill_uniform(const uint32_t* seed, uint64_t stream, float* y, int64_t count) {
  for (int64_t n = first_unit(); n < count; n += unit_step())
    y[n] = unit_interval(philox_word(seed_of(seed), stream, static_cast<uint64_t>(n)));
}

/// Box-Muller: words (2p, 2p + 1) give numbers (2p, 2p + 1).
__global__ void fill_normal(const uint32_t* seed, uint64_t stream, float* y, int64_t count) {
  for (int64_t n = 2 * first_unit(); n < count; n += 2 * unit_step()) {
    const auto word = static_cast<uint64_t>(n);
    // (0, 1], so that the logarithm is finite.
    const float radius = sqrtf(-2.0F * logf(unit_interval(philox_word(seed_of(seed), stream, word), 1)));
    const float angle = unit_interval(philox_word(seed_of(seed), stream, word + 1)) * 6.28318530717958648F;
    y[n] = radius * cosf(angle);
    if (n + 1 < count) y[n + 1] = radius * sinf(angle);
  }
}

template <bool kNormal>
Kernel compile_random(const KernelRequest& request) {
  const auto count = static_cast<int64_t>(request.outputs[0].shape.count());
  if (count == 0) return nothing();
  const auto stream = static_cast<uint64_t>(request.attributes.integer("stream"));
  return {.run = [count, stream](const Run& run) {
    const Grid grid = grid_of(count);
    launch(run, kNormal ? fill_normal : fill_uniform, grid, run.input<uint32_t>(0), stream, run.output<float>(0),
           count);
  }};
}

}  // namespace

void register_random(KernelTable& table) {
  table["random_uniform"] = compile_random<false>;
  table["random_normal"] = compile_random<true>;
}

}  // namespace heddle::cuda
