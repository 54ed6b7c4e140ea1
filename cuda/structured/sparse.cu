// Products with a sparse matrix S of a fixed support: `spmm`, its gradient by the values `sddmm`, and the ways between
// S and a dense matrix, `sparse_add` and `sparse_gather`. Each sum is taken in the order of the entries. Products from
// the right turn their operands in scratch memory, so that vectors always lie along the dense dimension.
#include <algorithm>

#include "cuda/core/transpose.cuh"
#include "cuda/core/warp.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarps = kThreads / kWarpSize;
/// From so many columns on a thread multiplies four.
constexpr int64_t kManyColumns = 128;
/// Neighbouring entries that a warp takes; it looks for the row of the first.
constexpr int64_t kRun = 8;

constexpr Complaint kStart{"row pointers that start at 0"};
constexpr Complaint kFall{"row pointers that never fall"};
constexpr Complaint kEnd{"row pointers that end at the number of entries"};

/// The support by rows: entry t of row r, pointers[r] <= t < pointers[r + 1], lies in column indices[t]; its value is
/// values[order[t]], or values[t] without an order.
struct Support {
  const int32_t* pointers;
  const int32_t* indices;
  const int32_t* order;
  int64_t rows, columns, count;
  /// Not 0 when contents were refused: nothing may follow them then.
  unsigned* refused;

  __device__ int64_t place(int64_t t) const { return order == nullptr ? t : order[t]; }
};

/// One block: what follows wants all pointers to be right.
__global__ void check_pointers(Support support, Report report, Complaint start, Complaint fall, Complaint end) {
  bool good = true;
  if (threadIdx.x == 0) good = holds(report, support.pointers[0] == 0, start, support.pointers[0]);
  bool refused = __syncthreads_or(good ? 0 : 1) != 0;
  for (int64_t row = threadIdx.x; row < support.rows && !refused; row += blockDim.x)
    good = holds(report, support.pointers[row + 1] >= support.pointers[row], fall, support.pointers[row + 1]) && good;
  refused = __syncthreads_or(good ? 0 : 1) != 0 || refused;
  if (threadIdx.x != 0) return;
  const int32_t last = support.pointers[support.rows];
  if (!refused) refused = !holds(report, last == support.count, end, last);
  *support.refused = refused ? 1 : 0;
}

/// Numbers are below `limit`.
__global__ void check_numbers(const int32_t* numbers, int64_t count, int64_t limit, unsigned* refused, Report report) {
  for (int64_t t = first_unit(); t < count; t += unit_step())
    if (!within(report, numbers[t], 0, limit)) *refused = 1;
}

/// y [rows, d] = S x [columns, d]; a thread has kEach columns of a row.
template <class T, int kEach>
__global__ void multiply(Support support, const T* values, const T* x, T* y, int64_t d) {
  if (*support.refused != 0) return;
  const int64_t groups = ceil_div(d, kEach);
  for (int64_t unit = first_unit(); unit < support.rows * groups; unit += unit_step()) {
    const int64_t row = unit / groups, column = unit % groups;
    T sums[kEach] = {};
    for (int64_t t = support.pointers[row]; t < support.pointers[row + 1]; ++t) {
      const T value = values[support.place(t)];
      const T* const from = x + support.indices[t] * d + column;
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (i == 0 || column + i * groups < d) sums[i] += value * from[i * groups];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (i == 0 || column + i * groups < d) y[row * d + column + i * groups] = sums[i];
  }
}

/// The row of entry t: the last that does not start behind it and is not empty.
__device__ int64_t row_of(const Support& support, int64_t t) {
  int64_t low = 0, high = support.rows;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (support.pointers[middle] <= t)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/// values[t] = g[i, :] · x[j, :] for entry t in row i, column j; g [rows, d], x [columns, d]; a warp has kRun entries.
template <class T>
__global__ void sample(Support support, const T* g, const T* x, T* values, int64_t d) {
  if (*support.refused != 0) return;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y) * kRun; first < support.count;
       first += static_cast<int64_t>(gridDim.x) * blockDim.y * kRun) {
    int64_t row = row_of(support, first);
    for (int64_t t = first; t < support.count && t < first + kRun; ++t) {
      while (support.pointers[row + 1] <= t) ++row;
      const T* const a = g + row * d;
      const T* const b = x + support.indices[t] * d;
      T sum{0};
      for (int64_t i = threadIdx.x; i < d; i += kWarpSize) sum += a[i] * b[i];
      sum = warp_reduce(sum, Sum());
      if (threadIdx.x == 0) values[t] = sum;
    }
  }
}

/// y [rows, columns] += S; a warp has a row, and lane l of it the columns with remainder l: entries of equal place are
/// added in their order.
template <class T>
__global__ void add_entries(Support support, const T* values, T* y) {
  if (*support.refused != 0) return;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < support.rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const int64_t end = support.pointers[row + 1];
    for (int64_t first = support.pointers[row]; first < end; first += kWarpSize) {
      const int64_t t = first + threadIdx.x;
      const int32_t own_index = t < end ? support.indices[t] : 0;
      const T own_value = t < end ? values[t] : T{0};
      for (int lane = 0; lane < static_cast<int>(kWarpSize) && first + lane < end; ++lane) {
        const int32_t index = __shfl_sync(kWholeWarp, own_index, lane);
        const T value = __shfl_sync(kWholeWarp, own_value, lane);
        if (static_cast<unsigned>(index) % kWarpSize == threadIdx.x) y[row * support.columns + index] += value;
      }
    }
  }
}

/// values[t] = x[i, j]; a warp has a row.
template <class T>
__global__ void gather_entries(Support support, const T* x, T* values) {
  if (*support.refused != 0) return;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < support.rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y)
    for (int64_t t = support.pointers[row] + threadIdx.x; t < support.pointers[row + 1]; t += kWarpSize)
      values[t] = x[row * support.columns + support.indices[t]];
}

/// The first piece of scratch memory, for Support::refused.
constexpr size_t kRefusedBytes = 256;

struct SupportShape {
  size_t first = 0;
  int64_t rows = 0, columns = 0, count = 0;

  /// With its contents checked, in the order in which the CPU does.
  Support checked(const Run& run) const {
    const Support support{
        run.input<int32_t>(first),  run.input<int32_t>(first + 1), run.input<int32_t>(first + 2), rows, columns, count,
        run.scratch_at<unsigned>(0)};
    launch(run, check_pointers, {1, 1024}, support, run.report, kStart, kFall, kEnd);
    check_below(run, support.indices, columns, "indices within the matrix");
    if (support.order != nullptr) check_below(run, support.order, count, "an order of the entries");
    return support;
  }
  Grid row_grid() const { return {blocks_for(ceil_div(rows, kWarps)), dim3(kWarpSize, kWarps)}; }

 private:
  void check_below(const Run& run, const int32_t* numbers, int64_t limit, const char* expected) const {
    if (count > 0)
      launch(run, check_numbers, grid_of(count), numbers, count, limit, run.scratch_at<unsigned>(0),
             run.report.in_words(expected));
  }
};

SupportShape read_support(const KernelRequest& request, size_t first, int64_t rows, int64_t columns) {
  return {first, rows, columns, request.inputs[first + 1].shape[0]};
}

template <class Compile>
Kernel for_dtype(DType dtype, const Compile& compile) {
  return dtype == DType::kF64 ? compile(double{}) : compile(float{});
}

template <class T>
void start_product(const Run& run, const Support& support, const T* x, T* y, int64_t d) {
  if (support.rows * d == 0) return;
  const auto start = [&](auto* kernel, int64_t each) {
    launch(run, kernel, grid_of(support.rows * ceil_div(d, each)), support, run.input<T>(0), x, y, d);
  };
  if (d >= kManyColumns)
    start(multiply<T, 4>, 4);
  else
    start(multiply<T, 1>, 1);
}

template <class T>
Kernel product(const SupportShape& shape, bool right, int64_t d) {
  ScratchLayout scratch{kRefusedBytes};
  const size_t x_at = right ? scratch.take(shape.columns * d, sizeof(T)) : 0;
  const size_t y_at = right ? scratch.take(shape.rows * d, sizeof(T)) : 0;
  Kernel kernel;
  kernel.scratch_bytes = scratch.bytes;
  kernel.run = [=](const Run& run) {
    const Support support = shape.checked(run);
    if (!right) return start_product(run, support, run.input<T>(1), run.output<T>(0), d);
    T* const x = run.scratch_at<T>(x_at);
    T* const y = run.scratch_at<T>(y_at);
    turn(run, run.input<T>(1), x, 1, d, shape.columns);
    start_product<T>(run, support, x, y, d);
    turn<T>(run, y, run.output<T>(0), 1, shape.rows, d);
  };
  return kernel;
}

Kernel compile_spmm(const KernelRequest& request) {
  const Operand &x = request.inputs[1], &y = request.outputs[0];
  const bool right = request.attributes.integer("right") != 0;
  const size_t side = right ? 1 : 0;
  const SupportShape shape = read_support(request, 2, y.shape[side], x.shape[side]);
  return for_dtype(y.dtype, [&](auto zero) { return product<decltype(zero)>(shape, right, x.shape[1 - side]); });
}

template <class T>
Kernel sampling(const SupportShape& shape, bool right, int64_t d) {
  ScratchLayout scratch{kRefusedBytes};
  const size_t g_at = right ? scratch.take(shape.rows * d, sizeof(T)) : 0;
  const size_t x_at = right ? scratch.take(shape.columns * d, sizeof(T)) : 0;
  Kernel kernel;
  kernel.scratch_bytes = scratch.bytes;
  kernel.run = [=](const Run& run) {
    const Support support = shape.checked(run);
    if (shape.count == 0) return;
    const T* g = run.input<T>(0);
    const T* x = run.input<T>(1);
    if (right) {
      turn(run, g, run.scratch_at<T>(g_at), 1, d, shape.rows);
      turn(run, x, run.scratch_at<T>(x_at), 1, d, shape.columns);
      g = run.scratch_at<T>(g_at);
      x = run.scratch_at<T>(x_at);
    }
    launch(run, sample<T>, {blocks_for(ceil_div(shape.count, kRun * kWarps)), dim3(kWarpSize, kWarps)}, support, g, x,
           run.output<T>(0), d);
  };
  return kernel;
}

Kernel compile_sddmm(const KernelRequest& request) {
  const Operand &g = request.inputs[0], &x = request.inputs[1];
  const bool right = request.attributes.integer("right") != 0;
  const size_t side = right ? 1 : 0;
  const SupportShape shape = read_support(request, 2, g.shape[side], x.shape[side]);
  return for_dtype(g.dtype, [&](auto zero) { return sampling<decltype(zero)>(shape, right, x.shape[1 - side]); });
}

template <class T>
Kernel addition(const SupportShape& shape) {
  Kernel kernel;
  kernel.scratch_bytes = kRefusedBytes;
  kernel.in_place = {{1, 0}};
  kernel.run = [shape](const Run& run) {
    const size_t bytes = static_cast<size_t>(shape.rows * shape.columns) * sizeof(T);
    const T* const c = run.input<T>(1);
    T* const y = run.output<T>(0);
    const Support support = shape.checked(run);
    if (bytes == 0) return;
    if (c == nullptr)
      check(cudaMemsetAsync(y, 0, bytes, run.stream), run.report.operation);
    else if (c != y)
      check(cudaMemcpyAsync(y, c, bytes, cudaMemcpyDefault, run.stream), run.report.operation);
    launch(run, add_entries<T>, shape.row_grid(), support, run.input<T>(0), y);
  };
  return kernel;
}

/// y = c + S; inputs values, c (or nothing, for 0), pointers, indices.
Kernel compile_sparse_add(const KernelRequest& request) {
  const Operand& y = request.outputs[0];
  const SupportShape shape = read_support(request, 2, y.shape[0], y.shape[1]);
  return for_dtype(y.dtype, [&](auto zero) { return addition<decltype(zero)>(shape); });
}

/// values[t] = x[i, j]; inputs x, pointers, indices.
Kernel compile_sparse_gather(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  const SupportShape shape = read_support(request, 1, x.shape[0], x.shape[1]);
  return for_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Kernel kernel;
    kernel.scratch_bytes = kRefusedBytes;
    kernel.run = [shape](const Run& run) {
      const Support support = shape.checked(run);
      if (shape.rows > 0) launch(run, gather_entries<T>, shape.row_grid(), support, run.input<T>(0), run.output<T>(0));
    };
    return kernel;
  });
}

}  // namespace

void register_sparse(KernelTable& table) {
  table["spmm"] = compile_spmm;
  table["sddmm"] = compile_sddmm;
  table["sparse_add"] = compile_sparse_add;
  table["sparse_gather"] = compile_sparse_gather;
}

}  // namespace heddle::cuda
