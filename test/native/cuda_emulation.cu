// Kernels with one defect each, and sound ones, for the emulation of CUDA on the processor: it must name the defect.
// Prints `ran` and the result, or what the emulation found. Usage: cuda_emulation <case>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/core/shared.cuh"
#include "cuda/core/warp.cuh"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 64;

/// Every thread reads its neighbour's element.
template <bool kBarrier>
__global__ void rotate(int* out) {
  __shared__ Shared<int, kThreads> values;
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % kThreads];
}

/// The same within each warp, whose lanes need no more than their own barrier.
template <bool kBarrier>
__global__ void rotate_warps(int* out) {
  __shared__ Shared<int, kThreads> values;
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncwarp();
  out[threadIdx.x] = values[threadIdx.x / kWarpSize * kWarpSize + (threadIdx.x + 1) % kWarpSize];
}

/// A second write before all have read.
__global__ void overwrite(int* out) {
  __shared__ Shared<int, 1> value;
  if (threadIdx.x == 0) value[0] = 1;
  __syncthreads();
  out[threadIdx.x] = value[0];
  if (threadIdx.x == kThreads - 1) value[0] = 2;
}

__global__ void read_unwritten(int* out) {
  __shared__ Shared<int, kThreads> values;
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void index_outside(int* out) {
  __shared__ Shared<int, kThreads> values;
  values[threadIdx.x + 1] = 0;
  out[threadIdx.x] = 0;
}

__global__ void more_than_launched(int* out) {
  const auto values = dynamic_shared<int>(0, kThreads);
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[threadIdx.x];
}

/// Half of the threads wait at one barrier of the block, the others at their warp's for ever.
__global__ void diverge(int* out) {
  if (threadIdx.x == 1)
    __syncwarp();
  else
    __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void shuffle_with_ended(int* out) {
  if (threadIdx.x % 2 == 1) return;
  out[threadIdx.x] = __shfl_xor_sync(kWholeWarp, 1, 2);
}

__global__ void count_atomically(int* out) {
  __shared__ Shared<int, 1> count;
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  count.atomic_add(0, 1);
  __syncthreads();
  out[threadIdx.x] = count[0];
}

/// 0 + 1 + … in every thread, by the block and by the warps.
__global__ void sum(int* out) {
  __shared__ Shared<int, kWarpSize> partial;
  const auto own = static_cast<int>(threadIdx.x);
  const int total = block_reduce(own, 0, Sum(), partial);
  const unsigned odd = __ballot_sync(kWholeWarp, own % 2);
  const int below = __shfl_up_sync(kWholeWarp, own, 1);
  out[threadIdx.x] = total + (odd == 0xaaaaaaaaU ? 0 : 1000) + (own % 32 == 0 ? own - below : own - 1 - below);
}

void run(void (*kernel)(int*)) {
  std::vector<int> out(kThreads, -1);
  host::run_grid(2, kThreads, 0, [&] { kernel(out.data()); });
  std::printf("ran");
  for (const int value : out) std::printf(" %d", value);
  std::printf("\n");
}

const std::map<std::string, void (*)(int*)> kCases = {
    {"barrier", rotate<true>},
    {"no barrier", rotate<false>},
    {"warp barrier", rotate_warps<true>},
    {"no warp barrier", rotate_warps<false>},
    {"write after read", overwrite},
    {"read of nothing", read_unwritten},
    {"index", index_outside},
    {"dynamic memory", more_than_launched},
    {"divergence", diverge},
    {"shuffle", shuffle_with_ended},
    {"atomic", count_atomically},
    {"sum", sum},
};

}  // namespace
}  // namespace heddle::cuda

int main(int, char** arguments) {
  try {
    heddle::cuda::run(heddle::cuda::kCases.at(arguments[1]));
  } catch (const heddle::Error& error) {
    std::printf("%s\n", error.what());
  }
  return 0;
}
