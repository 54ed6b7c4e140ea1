// `sort` and `top_k` of the rows of the last axis, by a bitonic network over numbers that hold an element's order above
// its place, so that sorting them is stable sorting of elements. NaN counts as the largest value. Rows that fit are
// sorted in shared memory, longer ones by a launch for each far step of the network.
#include <algorithm>
#include <bit>

#include "cuda/core/launch.cuh"
#include "cuda/core/shared.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

/// Keys that a block sorts in shared memory.
constexpr unsigned kTile = 1024;
constexpr unsigned kThreads = kTile / 2;

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using Type = uint32_t;
  static __device__ uint32_t of(float value) { return __float_as_uint(value); }
};
template <>
struct BitsOf<double> {
  using Type = unsigned long long;
  static __device__ unsigned long long of(double value) {
    return static_cast<unsigned long long>(__double_as_longlong(value));
  }
};

/// Grows with the value; -0 is 0.
template <class T>
__device__ typename BitsOf<T>::Type order_of(T value, bool descending) {
  using Bits = typename BitsOf<T>::Type;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  Bits bits = BitsOf<T>::of(value == T{0} ? T{0} : value);
  if (value != value)
    bits = ~Bits{0};
  else
    bits = (bits & kSign) != 0 ? ~bits : bits | kSign;
  return descending ? ~bits : bits;
}

/// Places beyond the row come last: none of its elements is that far.
template <class T>
struct Key {
  typename BitsOf<T>::Type order;
  uint32_t place;

  __device__ bool before(const Key& other) const {
    return order != other.order ? order < other.order : place < other.place;
  }
};

/// Rows of width elements, padded to 2^k; the first `kept` of each are wanted.
struct SortPlan {
  int64_t rows = 0, width = 0, padded = 0, kept = 0;
  bool descending = false;
};

/// Steps `far`, far / 2, …, 1 of the merge of runs of `length` keys, on a tile of keys whose first is number `first` of
/// its row.
template <class T>
__device__ void merge_tile(Shared<Key<T>, kTile>& tile, int64_t first, int64_t length, unsigned far) {
  for (unsigned step = far; step > 0; step /= 2) {
    __syncthreads();
    const unsigned i = threadIdx.x / step * 2 * step + threadIdx.x % step;
    const Key<T> a = tile[i], b = tile[i + step];
    const bool ascends = ((first + i) & length) == 0;
    if (ascends == b.before(a)) {
      tile[i] = b;
      tile[i + step] = a;
    }
  }
  __syncthreads();
}

/// Keys of x, sorted in tiles: those with an odd number the other way round.
template <class T>
__global__ void sort_tiles(SortPlan plan, const T* x, Key<T>* keys) {
  __shared__ Shared<Key<T>, kTile> tile;
  for (int64_t unit = blockIdx.x; unit < plan.rows * plan.padded / kTile; unit += gridDim.x) {
    const int64_t first = unit * kTile % plan.padded, row = unit * kTile / plan.padded;
    for (unsigned i = threadIdx.x; i < kTile; i += kThreads) {
      const int64_t at = first + i;
      const Key<T> beyond{static_cast<typename BitsOf<T>::Type>(~typename BitsOf<T>::Type{0}), ~0U};
      tile[i] = at < plan.width ? Key<T>{order_of(x[row * plan.width + at], plan.descending), static_cast<uint32_t>(at)}
                                : beyond;
    }
    for (unsigned length = 2; length <= kTile; length *= 2) merge_tile(tile, first, length, length / 2);
    for (unsigned i = threadIdx.x; i < kTile; i += kThreads) keys[unit * kTile + i] = tile[i];
    __syncthreads();
  }
}

/// A step of the network over keys that are further apart than a tile.
template <class T>
__global__ void compare_far(SortPlan plan, Key<T>* keys, int64_t length, int64_t far) {
  for (int64_t unit = first_unit(); unit < plan.rows * plan.padded / 2; unit += unit_step()) {
    const int64_t i = unit / far * 2 * far + unit % far;
    const Key<T> a = keys[i], b = keys[i + far];
    const bool ascends = (i % plan.padded & length) == 0;
    if (ascends == b.before(a)) {
      keys[i] = b;
      keys[i + far] = a;
    }
  }
}

/// The rest of a merge, within tiles.
template <class T>
__global__ void merge_tiles(SortPlan plan, Key<T>* keys, int64_t length) {
  __shared__ Shared<Key<T>, kTile> tile;
  for (int64_t unit = blockIdx.x; unit < plan.rows * plan.padded / kTile; unit += gridDim.x) {
    for (unsigned i = threadIdx.x; i < kTile; i += kThreads) tile[i] = keys[unit * kTile + i];
    merge_tile(tile, unit * kTile % plan.padded, length, kTile / 2);
    for (unsigned i = threadIdx.x; i < kTile; i += kThreads) keys[unit * kTile + i] = tile[i];
    __syncthreads();
  }
}

template <class T>
__global__ void store_sorted(SortPlan plan, const Key<T>* keys, const T* x, T* values, int32_t* places) {
  for (int64_t unit = first_unit(); unit < plan.rows * plan.kept; unit += unit_step()) {
    const int64_t row = unit / plan.kept;
    const uint32_t place = keys[row * plan.padded + unit % plan.kept].place;
    if (values != nullptr) values[unit] = x[row * plan.width + place];
    if (places != nullptr) places[unit] = static_cast<int32_t>(place);
  }
}

template <class T>
Kernel sorting(const SortPlan& plan) {
  Kernel kernel;
  kernel.scratch_bytes = static_cast<size_t>(plan.rows * plan.padded) * sizeof(Key<T>);
  kernel.run = [plan](const Run& run) {
    auto* const keys = run.scratch_at<Key<T>>(0);
    const int64_t count = plan.rows * plan.padded;
    const Grid tiles{blocks_for(count / kTile), kThreads};
    launch(run, sort_tiles<T>, tiles, plan, run.input<T>(0), keys);
    for (int64_t length = 2 * int64_t{kTile}; length <= plan.padded; length *= 2) {
      for (int64_t far = length / 2; far >= kTile; far /= 2)
        launch(run, compare_far<T>, grid_of(count / 2, kThreads), plan, keys, length, far);
      launch(run, merge_tiles<T>, tiles, plan, keys, length);
    }
    launch(run, store_sorted<T>, grid_of(plan.rows * plan.kept, kThreads), plan, keys, run.input<T>(0),
           run.output<T>(0), run.output<int32_t>(1));
  };
  return kernel;
}

Kernel compile_sorting(const KernelRequest& request, int64_t kept) {
  const Operand& x = request.inputs[0];
  SortPlan plan;
  plan.width = x.shape.back(0);
  plan.rows = static_cast<int64_t>(x.shape.count()) / plan.width;
  plan.kept = kept;
  if (plan.rows * plan.kept == 0) return nothing();
  plan.padded = std::max<int64_t>(kTile, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(plan.width))));
  plan.descending = request.attributes.integer("descending") != 0;
  return x.dtype == DType::kF64 ? sorting<double>(plan) : sorting<float>(plan);
}

}  // namespace

void register_sort(KernelTable& table) {
  table["sort"] = [](const KernelRequest& request) {
    return compile_sorting(request, request.inputs[0].shape.back(0));
  };
  table["top_k"] = [](const KernelRequest& request) {
    return compile_sorting(request, request.attributes.integer("k"));
  };
}

}  // namespace heddle::cuda
