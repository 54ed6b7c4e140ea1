// Factorisations with triangular factors, and systems of equations: `lu`, `cholesky`, `solve`, `solve_triangular`. A
// block of threads takes a matrix, row-major, and subtracts from what is left after each of its columns; large matrices
// are large_matrices.h's, but for those that are triangular already.
#include "cuda/kernels/kernel_table.h"
#include "cuda/linalg/blocks.cuh"
#include "cuda/linalg/large_matrices.h"

namespace heddle::cuda {
namespace {

/// Swaps rows of a row-major matrix.
template <class T>
__device__ void swap_rows(T* a, int64_t width, int64_t i, int64_t j) {
  for (int64_t c = threadIdx.x; c < width && i != j; c += blockDim.x) {
    const T value = a[i * width + c];
    a[i * width + c] = a[j * width + c];
    a[j * width + c] = value;
  }
}

/// work [rows, columns] = l below its diagonal and u, of the rows in an order; `beside` [rows, width] goes the way of
/// the rows, and of the elimination. Returns the first step whose pivot is zero, the number of steps where there is
/// none.
template <class T>
__device__ int64_t eliminate(T* work, const MatrixBatch& a, T* beside, int64_t width, int32_t* order,
                             Shared<T, kWarpSize>& partial, Shared<int, kWarpSize>& places) {
  const int64_t m = a.rows, n = a.columns, rank = a.rank();
  int64_t zero = rank;
  for (int64_t step = 0; step < rank; ++step) {
    T largest{-1};
    int at = static_cast<int>(step);
    for (int64_t i = step + threadIdx.x; i < m; i += blockDim.x)
      if (abs(work[i * n + step]) > largest) {
        largest = abs(work[i * n + step]);
        at = static_cast<int>(i);
      }
    at = block_argmax(largest, at, partial, places);
    swap_rows(work, n, step, at);
    swap_rows(beside, width, step, at);
    if (threadIdx.x == 0 && order != nullptr) {
      const int32_t place = order[step];
      order[step] = order[at];
      order[at] = place;
    }
    __syncthreads();
    const T pivot = work[step * n + step];
    if (pivot == T{0}) {
      if (zero == rank) zero = step;
      continue;
    }
    for (int64_t i = step + 1 + threadIdx.x; i < m; i += blockDim.x) work[i * n + step] /= pivot;
    __syncthreads();
    const int64_t left = n - step - 1;
    for (int64_t e = threadIdx.x; e < (m - step - 1) * (left + width); e += blockDim.x) {
      const int64_t i = step + 1 + e / (left + width), c = e % (left + width);
      const T factor = work[i * n + step];
      if (c < left)
        work[i * n + step + 1 + c] -= factor * work[step * n + step + 1 + c];
      else
        beside[i * width + c - left] -= factor * beside[step * width + c - left];
    }
    __syncthreads();
  }
  return zero;
}

struct LuPlan {
  MatrixBatch a;
  size_t bytes = 0;
};

template <class T>
__global__ void factor(LuPlan plan, const T* a, int32_t* order, T* lower, T* upper, std::byte* scratch, Report report,
                       Complaint wants_finite) {
  __shared__ Shared<T, kWarpSize> partial;
  __shared__ Shared<int, kWarpSize> places;
  T* const work = piece_at<T>(scratch, blockIdx.x * plan.bytes);
  const int64_t m = plan.a.rows, n = plan.a.columns, rank = plan.a.rank();
  for (int64_t matrix = blockIdx.x; matrix < plan.a.count; matrix += gridDim.x) {
    const T* const from = a + matrix * plan.a.size();
    if (!finite(report, from, plan.a.size(), wants_finite)) continue;
    for (int64_t i = threadIdx.x; i < plan.a.size(); i += blockDim.x) work[i] = from[i];
    for (int64_t i = threadIdx.x; i < m; i += blockDim.x) order[matrix * m + i] = static_cast<int32_t>(i);
    __syncthreads();
    eliminate<T>(work, plan.a, nullptr, 0, order + matrix * m, partial, places);
    for (int64_t i = threadIdx.x; i < m * rank; i += blockDim.x) {
      const int64_t row = i / rank, column = i % rank;
      lower[matrix * m * rank + i] = column < row ? work[row * n + column] : column == row ? T{1} : T{0};
    }
    for (int64_t i = threadIdx.x; i < rank * n; i += blockDim.x)
      upper[matrix * rank * n + i] = i % n < i / n ? T{0} : work[i];
    __syncthreads();
  }
}

__global__ void fill_order(int32_t* order, int64_t count, int64_t rows) {
  for (int64_t i = first_unit(); i < count * rows; i += unit_step()) order[i] = static_cast<int32_t>(i % rows);
}

template <class T>
Kernel lu_kernel(const MatrixBatch& a) {
  LuPlan plan{a};
  ScratchLayout pieces;
  pieces.take(a.size(), sizeof(T));
  plan.bytes = pieces.bytes;
  Kernel kernel;
  kernel.scratch_bytes = scratch_of(a, plan.bytes);
  kernel.run = [plan](const Run& run) {
    launch(run, factor<T>, matrix_grid(plan.a.count, plan.a.columns, plan.bytes), plan, run.input<T>(0),
           run.output<int32_t>(0), run.output<T>(1), run.output<T>(2), run.scratch, run.report, kWantsFinite);
  };
  return kernel;
}

Kernel compile_lu(const KernelRequest& request) {
  const MatrixBatch a = read_batch(request.inputs[0]);
  if (a.count * a.rows == 0) return nothing();
  if (a.rank() == 0)
    return {.run = [a](const Run& run) {
      launch(run, fill_order, grid_of(a.count * a.rows), run.output<int32_t>(0), a.count, a.rows);
    }};
  const bool wide = request.inputs[0].dtype == DType::kF64;
  if (is_large(a)) return wide ? large_lu<double>(a) : large_lu<float>(a);
  return wide ? lu_kernel<double>(a) : lu_kernel<float>(a);
}

/// a = l lᵀ; reads the lower triangle.
template <class T>
__global__ void take_root(MatrixBatch a, const T* values, T* lower, Report report, Complaint wants_finite,
                          Complaint definite) {
  const int64_t n = a.rows;
  for (int64_t matrix = blockIdx.x; matrix < a.count; matrix += gridDim.x) {
    const T* const from = values + matrix * n * n;
    T* const l = lower + matrix * n * n;
    if (!finite(report, from, n * n, wants_finite)) continue;
    for (int64_t i = threadIdx.x; i < n * n; i += blockDim.x) l[i] = i % n > i / n ? T{0} : from[i];
    __syncthreads();
    for (int64_t step = 0; step < n; ++step) {
      const T pivot = l[step * n + step];
      __syncthreads();
      if (!(pivot > T{0})) {
        if (threadIdx.x == 0) holds(report, false, definite, step + 1);
        break;
      }
      const T root = sqrt(pivot);
      for (int64_t i = step + 1 + threadIdx.x; i < n; i += blockDim.x) l[i * n + step] /= root;
      if (threadIdx.x == 0) l[step * n + step] = root;
      __syncthreads();
      const int64_t left = n - step - 1;
      for (int64_t e = threadIdx.x; e < left * left; e += blockDim.x) {
        const int64_t i = step + 1 + e / left, j = step + 1 + e % left;
        if (j <= i) l[i * n + j] -= l[i * n + step] * l[j * n + step];
      }
      __syncthreads();
    }
  }
}

template <class T>
Kernel cholesky_kernel(const MatrixBatch& a) {
  return {.run = [a](const Run& run) {
    launch(run, take_root<T>, matrix_grid(a.count, a.columns, 0), a, run.input<T>(0), run.output<T>(0), run.report,
           kWantsFinite, kDefinite);
  }};
}

Kernel compile_cholesky(const KernelRequest& request) {
  const MatrixBatch a = read_batch(request.inputs[0]);
  if (a.count * a.rank() == 0) return nothing();
  const bool wide = request.inputs[0].dtype == DType::kF64;
  if (is_large(a)) return wide ? large_cholesky<double>(a) : large_cholesky<float>(a);
  return wide ? cholesky_kernel<double>(a) : cholesky_kernel<float>(a);
}

/// a x = b for b of so many columns.
struct SolvePlan {
  MatrixBatch a;
  int64_t columns = 0;
  bool upper = false, transpose = false, unit = false;
  /// Columns that a block takes.
  int64_t chunk = 0;
  size_t bytes = 0;
};

template <class T>
__global__ void solve_general(SolvePlan plan, const T* a, const T* b, T* x, std::byte* scratch, Report report,
                              Complaint wants_finite, Complaint invertible) {
  __shared__ Shared<T, kWarpSize> partial;
  __shared__ Shared<int, kWarpSize> places;
  T* const work = piece_at<T>(scratch, blockIdx.x * plan.bytes);
  const int64_t n = plan.a.rows, columns = plan.columns;
  for (int64_t matrix = blockIdx.x; matrix < plan.a.count; matrix += gridDim.x) {
    const T* const from = a + matrix * n * n;
    const T* const right = b + matrix * n * columns;
    T* const to = x + matrix * n * columns;
    if (!finite(report, from, n * n, wants_finite) || !finite(report, right, n * columns, wants_finite)) continue;
    for (int64_t i = threadIdx.x; i < n * n; i += blockDim.x) work[i] = from[i];
    for (int64_t i = threadIdx.x; i < n * columns; i += blockDim.x) to[i] = right[i];
    __syncthreads();
    const int64_t zero = eliminate<T>(work, plan.a, to, columns, nullptr, partial, places);
    if (threadIdx.x == 0) holds(report, zero == n, invertible, zero + 1);
    for (int64_t step = n - 1; step >= 0 && zero == n; --step) {
      const T pivot = work[step * n + step];
      for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) to[step * columns + c] /= pivot;
      __syncthreads();
      for (int64_t e = threadIdx.x; e < step * columns; e += blockDim.x)
        to[e] -= work[e / columns * n + step] * to[step * columns + e % columns];
      __syncthreads();
    }
    __syncthreads();
  }
}

/// Rows of x one after the other, each taken from those behind it (from the last on, when op(a) is upper).
template <class T>
__global__ void substitute(SolvePlan plan, const T* a, const T* b, T* x, Report report, Complaint wants_finite,
                           Complaint invertible) {
  const int64_t n = plan.a.rows, columns = plan.columns;
  const int64_t chunks = columns == 0 ? 1 : ceil_div(columns, plan.chunk);
  const bool backwards = plan.upper != plan.transpose;
  for (int64_t unit = blockIdx.x; unit < plan.a.count * chunks; unit += gridDim.x) {
    const T* const from = a + unit / chunks * n * n;
    const int64_t first = unit % chunks * plan.chunk;
    const int64_t width = columns - first < plan.chunk ? columns - first : plan.chunk;
    const T* const right = b + unit / chunks * n * columns + first;
    T* const to = x + unit / chunks * n * columns + first;
    if (!finite(report, from, n * n, wants_finite)) continue;
    bool good = true;
    for (int64_t e = threadIdx.x; e < n * width; e += blockDim.x) {
      const int64_t at = e / width * columns + e % width;
      good = good && right[at] - right[at] == T{0};
      to[at] = right[at];
    }
    if (__syncthreads_or(holds(report, good, wants_finite) ? 0 : 1) != 0) continue;
    for (int64_t step = 0; step < n; ++step) {
      const int64_t i = backwards ? n - 1 - step : step;
      const T pivot = plan.unit ? T{1} : from[i * n + i];
      if (pivot == T{0}) {
        if (threadIdx.x == 0) holds(report, false, invertible, i + 1);
        break;
      }
      for (int64_t c = threadIdx.x; c < width && !plan.unit; c += blockDim.x) to[i * columns + c] /= pivot;
      __syncthreads();
      for (int64_t e = threadIdx.x; e < (n - step - 1) * width; e += blockDim.x) {
        const int64_t j = backwards ? i - 1 - e / width : i + 1 + e / width, c = e % width;
        to[j * columns + c] -= (plan.transpose ? from[i * n + j] : from[j * n + i]) * to[i * columns + c];
      }
      __syncthreads();
    }
  }
}

template <class T>
Kernel solve_kernel(SolvePlan plan) {
  ScratchLayout pieces;
  pieces.take(plan.a.size(), sizeof(T));
  plan.bytes = pieces.bytes;
  Kernel kernel;
  kernel.scratch_bytes = scratch_of(plan.a, plan.bytes);
  kernel.run = [plan](const Run& run) {
    launch(run, solve_general<T>, matrix_grid(plan.a.count, plan.a.columns, plan.bytes), plan, run.input<T>(0),
           run.input<T>(1), run.output<T>(0), run.scratch, run.report, kWantsFinite, kInvertible);
  };
  return kernel;
}

template <class T>
Kernel triangular_kernel(SolvePlan plan) {
  plan.chunk = 64;
  return {.run = [plan](const Run& run) {
    const int64_t units = plan.a.count * std::max<int64_t>(1, ceil_div(plan.columns, plan.chunk));
    launch(run, substitute<T>, {blocks_for(units), matrix_threads(plan.a.columns)}, plan, run.input<T>(0),
           run.input<T>(1), run.output<T>(0), run.report, kWantsFinite, kInvertible);
  }};
}

SolvePlan read_solve(const KernelRequest& request) {
  SolvePlan plan;
  plan.a = read_batch(request.inputs[0]);
  plan.columns = request.inputs[1].shape.back(0);
  return plan;
}

Kernel compile_solve(const KernelRequest& request) {
  const SolvePlan plan = read_solve(request);
  if (plan.a.count * plan.a.rank() == 0) return nothing();
  const bool wide = request.inputs[0].dtype == DType::kF64;
  if (is_large(plan.a))
    return wide ? large_solve<double>(plan.a, plan.columns) : large_solve<float>(plan.a, plan.columns);
  return wide ? solve_kernel<double>(plan) : solve_kernel<float>(plan);
}

Kernel compile_solve_triangular(const KernelRequest& request) {
  SolvePlan plan = read_solve(request);
  plan.upper = request.attributes.integer("upper") != 0;
  plan.transpose = request.attributes.integer("transpose") != 0;
  plan.unit = request.attributes.integer("unit") != 0;
  if (plan.a.count * plan.a.rank() == 0) return nothing();
  return request.inputs[0].dtype == DType::kF64 ? triangular_kernel<double>(plan) : triangular_kernel<float>(plan);
}

}  // namespace

void register_triangular(KernelTable& table) {
  table["lu"] = compile_lu;
  table["cholesky"] = compile_cholesky;
  table["solve"] = compile_solve;
  table["solve_triangular"] = compile_solve_triangular;
}

}  // namespace heddle::cuda
