// `walsh_hadamard`: y = H x for each row of 2^k elements, in k passes of sums and differences. Rows that fit go through
// shared memory.
#include <algorithm>

#include "cuda/core/launch.cuh"
#include "cuda/core/shared.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr int64_t kSharedRow = 4096;

/// The passes over a row of an array-like Row, by all threads of the block.
template <class T, class Row>
__device__ void transform(Row& row, int64_t width) {
  for (int64_t half = 1; half < width; half *= 2) {
    for (int64_t pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
      const auto i = static_cast<unsigned>(pair / half * 2 * half + pair % half);
      const T a = row[i];
      const T b = row[i + static_cast<unsigned>(half)];
      row[i] = a + b;
      row[i + static_cast<unsigned>(half)] = a - b;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void transform_rows(const T* x, T* y, int64_t rows, int64_t width) {
  __shared__ Shared<T, kSharedRow> shared;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* const from = x + row * width;
    T* to = y + row * width;
    if (width <= kSharedRow) {
      for (int64_t i = threadIdx.x; i < width; i += blockDim.x) shared[static_cast<unsigned>(i)] = from[i];
      __syncthreads();
      transform<T>(shared, width);
      for (int64_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = shared[static_cast<unsigned>(i)];
    } else {
      for (int64_t i = threadIdx.x; i < width && from != to; i += blockDim.x) to[i] = from[i];
      __syncthreads();
      transform<T>(to, width);
    }
    __syncthreads();
  }
}

template <class T>
Kernel transformation(int64_t rows, int64_t width) {
  Kernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [rows, width](const Run& run) {
    const auto threads = static_cast<unsigned>(std::clamp<int64_t>(width / 2, 32, 512));
    launch(run, transform_rows<T>, {blocks_for(rows), threads}, run.input<T>(0), run.output<T>(0), rows, width);
  };
  return kernel;
}

Kernel compile_walsh_hadamard(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  const int64_t width = x.shape.back(0), rows = static_cast<int64_t>(x.shape.count()) / width;
  if (rows == 0) return nothing();
  return x.dtype == DType::kF64 ? transformation<double>(rows, width) : transformation<float>(rows, width);
}

}  // namespace

void register_walsh_hadamard(KernelTable& table) { table["walsh_hadamard"] = compile_walsh_hadamard; }

}  // namespace heddle::cuda
