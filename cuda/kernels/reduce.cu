// Sums and maxima over axes, and the place of the maximum of the last one. Where the innermost axis is reduced, a warp
// or a block takes an output; else neighbouring threads take neighbouring outputs. Long reductions with few outputs are
// cut into chunks, whose results a second kernel joins.
#include <algorithm>
#include <vector>

#include "cuda/core/launch.cuh"
#include "cuda/core/loops.h"
#include "cuda/core/warp.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kRowsPerBlock = kThreads / kWarpSize;
/// Up to so many elements a warp does better than a block.
constexpr int64_t kWarpRow = 1024;
/// Outputs times chunks that keep every multiprocessor busy.
constexpr int64_t kWantedUnits = 1024;
constexpr int64_t kSmallestChunk = 256;

struct Plan {
  Walk kept, reduced;
  int64_t outputs = 1, length = 1;
  int64_t chunks = 1, chunk = 1;
};

template <class T, class Op>
struct Identity;
template <class T>
struct Identity<T, Sum> {
  static __device__ T value() { return T{0}; }
};
template <class T>
struct Identity<T, Maximum> {
  static __device__ T value() { return -static_cast<T>(INFINITY); }
};

/// Elements first, first + step, … of a chunk of one output, in this order.
template <class T, class Op>
__device__ T walk_chunk(const Plan& plan, const T* x, int64_t output, int64_t chunk, unsigned first, unsigned step) {
  const T* const from = x + plan.kept.offset(output);
  const int64_t begin = chunk * plan.chunk;
  const int64_t end = begin + plan.chunk < plan.length ? begin + plan.chunk : plan.length;
  T total = Identity<T, Op>::value();
  for (int64_t i = begin + first; i < end; i += step) total = Op()(total, from[plan.reduced.offset(i)]);
  return total;
}

/// y [chunks, outputs], a warp each.
template <class T, class Op>
__global__ void reduce_by_warps(Plan plan, const T* x, T* y) {
  const int64_t units = plan.outputs * plan.chunks;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; unit < units;
       unit += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const T part = walk_chunk<T, Op>(plan, x, unit % plan.outputs, unit / plan.outputs, threadIdx.x,
                                     static_cast<unsigned>(kWarpSize));
    const T total = warp_reduce(part, Op());
    if (threadIdx.x == 0) y[unit] = total;
  }
}

/// y [chunks, outputs], a block each.
template <class T, class Op>
__global__ void reduce_by_blocks(Plan plan, const T* x, T* y) {
  __shared__ Shared<T, kWarpSize> partial;
  const int64_t units = plan.outputs * plan.chunks;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const T part = walk_chunk<T, Op>(plan, x, unit % plan.outputs, unit / plan.outputs, threadIdx.x, blockDim.x);
    const T total = block_reduce(part, Identity<T, Op>::value(), Op(), partial);
    if (threadIdx.x == 0) y[unit] = total;
  }
}

/// y [chunks, outputs], a thread each.
template <class T, class Op>
__global__ void reduce_by_threads(Plan plan, const T* x, T* y) {
  for (int64_t unit = first_unit(); unit < plan.outputs * plan.chunks; unit += unit_step())
    y[unit] = walk_chunk<T, Op>(plan, x, unit % plan.outputs, unit / plan.outputs, 0, 1);
}

template <class T, class Op>
__global__ void join_chunks(const T* parts, T* y, int64_t outputs, int64_t chunks) {
  for (int64_t output = first_unit(); output < outputs; output += unit_step()) {
    T total = Identity<T, Op>::value();
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total = Op()(total, parts[chunk * outputs + output]);
    y[output] = total;
  }
}

Walk walk_over(const Shape& shape, const std::vector<bool>& chosen) {
  const auto dense = dense_strides(shape);
  std::array<size_t, Shape::kMaxRank> dims{}, strides{};
  size_t rank = 0;
  for (size_t axis = 0; axis < shape.rank(); ++axis) {
    if (!chosen[axis]) continue;
    dims[rank] = static_cast<size_t>(shape[axis]);
    strides[rank++] = dense[axis];
  }
  return single_walk(rank, dims, strides);
}

template <class T, class Op>
Kernel reduction(const Plan& plan, bool inner_reduced) {
  Kernel kernel;
  if (plan.chunks > 1) kernel.scratch_bytes = static_cast<size_t>(plan.outputs * plan.chunks) * sizeof(T);
  kernel.run = [plan, inner_reduced](const Run& run) {
    const T* const x = run.input<T>(0);
    T* const y = run.output<T>(0);
    T* const parts = plan.chunks > 1 ? run.scratch_at<T>(0) : y;
    const int64_t units = plan.outputs * plan.chunks;
    if (!inner_reduced)
      launch(run, reduce_by_threads<T, Op>, grid_of(units), plan, x, parts);
    else if (plan.chunk <= kWarpRow)
      launch(run, reduce_by_warps<T, Op>, {blocks_for(ceil_div(units, kRowsPerBlock)), dim3(kWarpSize, kRowsPerBlock)},
             plan, x, parts);
    else
      launch(run, reduce_by_blocks<T, Op>, {blocks_for(units), kThreads}, plan, x, parts);
    if (plan.chunks > 1) launch(run, join_chunks<T, Op>, grid_of(plan.outputs), parts, y, plan.outputs, plan.chunks);
  };
  return kernel;
}

template <class Op>
Kernel compile_reduce(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  if (request.outputs[0].shape.count() == 0) return nothing();
  std::vector<bool> reduced(x.shape.rank(), false);
  for (const int64_t axis : request.attributes.integers("axes")) reduced[static_cast<size_t>(axis)] = true;
  std::vector<bool> kept = reduced;
  kept.flip();

  bool inner_reduced = false;
  for (size_t axis = 0; axis < x.shape.rank(); ++axis)
    if (x.shape[axis] != 1) inner_reduced = reduced[axis];
  Plan plan;
  plan.kept = walk_over(x.shape, kept);
  plan.reduced = walk_over(x.shape, reduced);
  plan.outputs = static_cast<int64_t>(request.outputs[0].shape.count());
  plan.length = static_cast<int64_t>(x.shape.count()) / plan.outputs;
  plan.chunk = std::max<int64_t>(plan.length, 1);
  const int64_t wanted = ceil_div(inner_reduced ? kWantedUnits : kWantedUnits * kWarpSize, plan.outputs);
  plan.chunk = std::min(plan.chunk, std::max(kSmallestChunk, ceil_div(plan.length, wanted)));
  plan.chunks = std::max<int64_t>(1, ceil_div(plan.length, plan.chunk));
  return x.dtype == DType::kF64 ? reduction<double, Op>(plan, inner_reduced)
                                : reduction<float, Op>(plan, inner_reduced);
}

/// A number and where it stands. The larger number wins, a NaN over all, and the first of equal ones.
template <class T>
struct Place {
  T value;
  int64_t at;
};

template <class T>
__device__ Place<T> better(const Place<T>& a, const Place<T>& b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  const bool equal = a_nan ? b_nan : !b_nan && a.value == b.value;
  const bool first = equal ? a.at < b.at : a_nan || (!b_nan && a.value > b.value);
  return first ? a : b;
}

/// x [rows, width] with width >= 1; a warp each.
template <class T>
__global__ void argmax_rows(const T* x, int32_t* y, int64_t rows, int64_t width) {
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const T* const from = x + row * width;
    // Lanes beyond the end repeat the first element, which changes nothing.
    int64_t at = threadIdx.x < width ? threadIdx.x : 0;
    Place<T> best{from[at], at};
    for (at = threadIdx.x + static_cast<int64_t>(kWarpSize); at < width; at += kWarpSize)
      best = better(best, Place<T>{from[at], at});
    for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
      const Place<T> other{__shfl_xor_sync(kWholeWarp, best.value, bits), __shfl_xor_sync(kWholeWarp, best.at, bits)};
      best = better(best, other);
    }
    if (threadIdx.x == 0) y[row] = static_cast<int32_t>(best.at);
  }
}

template <class T>
Kernel argmax(int64_t rows, int64_t width) {
  return {.run = [rows, width](const Run& run) {
    launch(run, argmax_rows<T>, {blocks_for(ceil_div(rows, kRowsPerBlock)), dim3(kWarpSize, kRowsPerBlock)},
           run.input<T>(0), run.output<int32_t>(0), rows, width);
  }};
}

Kernel compile_argmax(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  const auto rows = static_cast<int64_t>(request.outputs[0].shape.count());
  if (rows == 0) return nothing();
  return x.dtype == DType::kF64 ? argmax<double>(rows, x.shape.back(0)) : argmax<float>(rows, x.shape.back(0));
}

}  // namespace

void register_reduce(KernelTable& table) {
  table["reduce_sum"] = compile_reduce<Sum>;
  table["reduce_max"] = compile_reduce<Maximum>;
  table["argmax"] = compile_argmax;
}

}  // namespace heddle::cuda
