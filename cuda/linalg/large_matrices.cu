#include <algorithm>

#include "cuda/core/transpose.cuh"
#include "cuda/library/solver.h"
#include "cuda/linalg/large_matrices.h"

namespace heddle::cuda {
namespace {

template <class T>
__global__ void check_finite(const T* values, int64_t count, Report report, Complaint complaint) {
  bool good = true;
  for (int64_t i = first_unit(); i < count; i += unit_step()) good = good && values[i] - values[i] == T{0};
  holds(report, good, complaint);
}

__global__ void check_info(const int* info, Report report, Complaint complaint) {
  holds(report, *info == 0, complaint, *info);
}

/// One block.
template <class T>
__global__ void find_scale(const T* work, int64_t count, T* scale) {
  __shared__ Shared<T, kWarpSize> partial;
  const T found = scale_of(work, count, partial);
  if (threadIdx.x == 0) *scale = found;
}

/// Divides by the scale, unless that is null. What is not finite, and ends the run anyhow, becomes 0: iterations on it
/// might not end, and pivots found among it not be places of rows.
template <class T>
__global__ void make_tame(T* work, int64_t count, const T* scale) {
  const T inverse = scale == nullptr ? T{1} : T{1} / *scale;
  for (int64_t i = first_unit(); i < count; i += unit_step()) {
    const T value = work[i];
    work[i] = value - value == T{0} ? inverse * value : T{0};
  }
}

template <class T>
__global__ void bring_back(T* values, int64_t count, const T* scale) {
  for (int64_t i = first_unit(); i < count; i += unit_step()) values[i] *= *scale;
}

/// work [n, n] = the lower triangle of a, above its diagonal as well.
template <class T>
__global__ void mirror(const T* a, T* work, int64_t n) {
  for (int64_t i = first_unit(); i < n * n; i += unit_step()) {
    const int64_t row = i / n, column = i % n;
    work[i] = row >= column ? a[i] : a[column * n + row];
  }
}

/// The lower triangle of a, zeros above it.
template <class T>
__global__ void keep_lower(const T* a, T* out, int64_t n) {
  for (int64_t i = first_unit(); i < n * n; i += unit_step()) out[i] = i % n > i / n ? T{0} : a[i];
}

/// out [rows, n] = the upper triangle of work [m, n], column-major, times the scale unless that is null.
template <class T>
__global__ void take_upper(const T* work, int64_t m, int64_t n, const T* scale, T* out, int64_t rows) {
  const T factor = scale == nullptr ? T{1} : *scale;
  for (int64_t i = first_unit(); i < rows * n; i += unit_step()) {
    const int64_t row = i / n, column = i % n;
    out[i] = column < row ? T{0} : factor * work[column * m + row];
  }
}

/// out [m, rank] = the lower triangle of work, column-major, with ones on its diagonal.
template <class T>
__global__ void take_lower(const T* work, int64_t m, T* out, int64_t rank) {
  for (int64_t i = first_unit(); i < m * rank; i += unit_step()) {
    const int64_t row = i / rank, column = i % rank;
    out[i] = column < row ? work[column * m + row] : column == row ? T{1} : T{0};
  }
}

/// One block: where each row comes from after all swaps.
__global__ void follow_swaps(const int* swaps, int64_t rank, int32_t* order, int64_t rows) {
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) order[i] = static_cast<int32_t>(i);
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int64_t i = 0; i < rank; ++i) {
    const int32_t place = order[i];
    order[i] = order[swaps[i] - 1];
    order[swaps[i] - 1] = place;
  }
}

/// Squared lengths of columns from row `step` on, a warp for each.
template <class T>
__global__ void measure_columns(const T* work, T* norms, int64_t m, int64_t n) {
  for (int64_t j = blockIdx.x * warp_count() + warp_index(); j < n; j += gridDim.x * warp_count()) {
    const T square = warp_dot(work + j * m, work + j * m, m);
    if (lane_index() == 0) norms[j] = square;
  }
}

/// One block: swaps the longest rest of a column to place `step`, and makes its reflector.
template <class T>
__global__ void choose_pivot(T* work, const T* norms, T* taus, int32_t* order, int64_t m, int64_t n, int64_t step) {
  __shared__ Shared<T, kWarpSize> partial;
  __shared__ Shared<int, kWarpSize> places;
  T longest{-1};
  int best = static_cast<int>(step);
  for (int64_t j = step + threadIdx.x; j < n; j += blockDim.x)
    if (norms[j] > longest) {
      longest = norms[j];
      best = static_cast<int>(j);
    }
  best = block_argmax(longest, best, partial, places);
  T* const column = work + step * m;
  T* const other = work + best * m;
  for (int64_t i = threadIdx.x; i < m && best != step; i += blockDim.x) {
    const T value = other[i];
    other[i] = column[i];
    column[i] = value;
  }
  if (threadIdx.x == 0) {
    const int32_t place = order[best];
    order[best] = order[step];
    order[step] = place;
  }
  __syncthreads();
  const T tau = make_reflector(column, step, m, partial);
  if (threadIdx.x == 0) taus[step] = tau;
}

/// Reflects the columns behind `step`, a warp for each, and measures what is left of them.
template <class T>
__global__ void reflect_columns(T* work, const T* taus, T* norms, int64_t m, int64_t n, int64_t step) {
  const T tau = taus[step];
  for (int64_t j = step + 1 + blockIdx.x * warp_count() + warp_index(); j < n; j += gridDim.x * warp_count()) {
    T* const column = work + j * m;
    if (tau != T{0}) reflect(work + step * m, tau, column, step, m);
    __syncwarp();
    const T square = warp_dot(column + step + 1, column + step + 1, m - step - 1);
    if (lane_index() == 0) norms[j] = square;
  }
}

constexpr unsigned kThreads = 512;
constexpr unsigned kWarps = kThreads / kWarpSize;

/// Where the matrix that is worked on lies, and what every routine needs.
struct Pieces {
  ScratchLayout layout;
  size_t work = 0, scale = 0, info = 0, library = 0, library_bytes = 0;

  SolverCall call(const Run& run) const {
    return {run.stream, run.scratch_at<void>(library), library_bytes, run.scratch_at<int>(info)};
  }
  void check(const Run& run, Complaint complaint) const {
    launch(run, check_info, {1, 1}, run.scratch_at<const int>(info), run.report, complaint);
  }
};

template <class T>
Pieces pieces_of(const MatrixBatch& a, size_t library_bytes) {
  Pieces pieces;
  pieces.work = pieces.layout.take(a.size(), sizeof(T));
  pieces.scale = pieces.layout.take(1, sizeof(T));
  pieces.info = pieces.layout.take(1, sizeof(int));
  pieces.library = pieces.layout.take(static_cast<int64_t>(library_bytes), 1);
  pieces.library_bytes = library_bytes;
  return pieces;
}

/// `one(run, i)` does matrix i of all.
template <class One>
Kernel one_by_one(const MatrixBatch& a, const Pieces& pieces, One one) {
  Kernel kernel;
  kernel.scratch_bytes = pieces.layout.bytes;
  kernel.recordable = false;
  kernel.run = [a, one](const Run& run) {
    for (int64_t i = 0; i < a.count; ++i) one(run, i);
  };
  return kernel;
}

template <class T>
void start_check(const Run& run, const T* values, int64_t count) {
  if (count > 0) launch(run, check_finite<T>, grid_of(count), values, count, run.report, kWantsFinite);
}

/// Brings work to numbers of about 1; bring_back() undoes it.
template <class T>
void start_scaling(const Run& run, const Pieces& pieces, int64_t count) {
  T* const work = run.scratch_at<T>(pieces.work);
  T* const scale = run.scratch_at<T>(pieces.scale);
  launch(run, find_scale<T>, {1, kThreads}, work, count, scale);
  launch(run, make_tame<T>, grid_of(count), work, count, scale);
}

void copy_on_device(const Run& run, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, run.stream), run.report.operation);
}

}  // namespace

/// To the library the row-major a is its transpose: its left vectors are our right ones, and lie as vh does.
template <class T>
Kernel large_svd(const MatrixBatch& a, bool full, bool wants_u, bool wants_vh) {
  const int64_t m = a.rows, n = a.columns, rank = a.rank();
  const int64_t left = full ? m : rank, right = full ? n : rank;
  const bool vectors = wants_u || wants_vh;
  Pieces pieces = pieces_of<T>(a, Solver<T>::gesvdj_scratch(n, m, vectors, full));
  const size_t own_vh = pieces.layout.take(vectors && !wants_vh ? right * n : 0, sizeof(T));
  const size_t left_at = pieces.layout.take(vectors ? m * left : 0, sizeof(T));
  return one_by_one(a, pieces, [=](const Run& run, int64_t i) {
    const T* const from = run.input<T>(0) + i * a.size();
    T* const work = run.scratch_at<T>(pieces.work);
    T* const s = run.output<T>(1) + i * rank;
    T* const vh = !vectors ? nullptr : wants_vh ? run.output<T>(2) + i * right * n : run.scratch_at<T>(own_vh);
    T* const columns = vectors ? run.scratch_at<T>(left_at) : nullptr;
    start_check(run, from, a.size());
    copy_on_device(run, work, from, static_cast<size_t>(a.size()) * sizeof(T));
    start_scaling<T>(run, pieces, a.size());
    Solver<T>::gesvdj(pieces.call(run), n, m, full, work, s, vh, columns);
    pieces.check(run, kConverges);
    launch(run, bring_back<T>, grid_of(rank), s, rank, run.scratch_at<const T>(pieces.scale));
    if (wants_u) turn<T>(run, columns, run.output<T>(0) + i * m * left, 1, left, m);
  });
}

template <class T>
Kernel large_qr(const MatrixBatch& a, int64_t inner, bool pivots) {
  const int64_t m = a.rows, n = a.columns, rank = a.rank();
  Pieces pieces =
      pieces_of<T>(a, std::max(pivots ? 0 : Solver<T>::geqrf_scratch(m, n), Solver<T>::orgqr_scratch(m, inner, rank)));
  const size_t basis_at = pieces.layout.take(m * inner, sizeof(T));
  const size_t taus_at = pieces.layout.take(rank, sizeof(T));
  const size_t norms_at = pieces.layout.take(pivots ? n : 0, sizeof(T));
  return one_by_one(a, pieces, [=](const Run& run, int64_t i) {
    const T* const from = run.input<T>(0) + i * a.size();
    T* const work = run.scratch_at<T>(pieces.work);
    T* const taus = run.scratch_at<T>(taus_at);
    start_check(run, from, a.size());
    turn<T>(run, from, work, 1, m, n);
    start_scaling<T>(run, pieces, a.size());
    if (pivots) {
      T* const norms = run.scratch_at<T>(norms_at);
      auto* const order = run.output<int32_t>(2) + i * n;
      launch(run, follow_swaps, {1, kThreads}, static_cast<const int*>(nullptr), 0, order, n);
      launch(run, measure_columns<T>, {blocks_for(ceil_div(n, kWarps)), kThreads}, work, norms, m, n);
      for (int64_t step = 0; step < rank; ++step) {
        launch(run, choose_pivot<T>, {1, kThreads}, work, norms, taus, order, m, n, step);
        if (step + 1 < n)
          launch(run, reflect_columns<T>, {blocks_for(ceil_div(n - step - 1, kWarps)), kThreads}, work, taus, norms, m,
                 n, step);
      }
    } else {
      Solver<T>::geqrf(pieces.call(run), m, n, work, taus);
    }
    if (T* const r = run.output<T>(1); r != nullptr)
      launch(run, take_upper<T>, grid_of(inner * n), work, m, n, run.scratch_at<const T>(pieces.scale),
             r + i * inner * n, inner);
    if (T* const q = run.output<T>(0); q != nullptr) {
      T* const basis = run.scratch_at<T>(basis_at);
      copy_on_device(run, basis, work, static_cast<size_t>(m * rank) * sizeof(T));
      Solver<T>::orgqr(pieces.call(run), m, inner, rank, basis, taus);
      turn<T>(run, basis, q + i * m * inner, 1, inner, m);
    }
  });
}

template <class T>
Kernel large_eigh(const MatrixBatch& a) {
  const int64_t n = a.rows;
  const Pieces pieces = pieces_of<T>(a, Solver<T>::syevd_scratch(n));
  return one_by_one(a, pieces, [=](const Run& run, int64_t i) {
    const T* const from = run.input<T>(0) + i * a.size();
    T* const work = run.scratch_at<T>(pieces.work);
    T* const w = run.output<T>(0) + i * n;
    start_check(run, from, a.size());
    launch(run, mirror<T>, grid_of(a.size()), from, work, n);
    start_scaling<T>(run, pieces, a.size());
    Solver<T>::syevd(pieces.call(run), n, work, w);
    pieces.check(run, kConverges);
    launch(run, bring_back<T>, grid_of(n), w, n, run.scratch_at<const T>(pieces.scale));
    turn<T>(run, work, run.output<T>(1) + i * a.size(), 1, n, n);
  });
}

template <class T>
Kernel large_lu(const MatrixBatch& a) {
  const int64_t m = a.rows, n = a.columns, rank = a.rank();
  Pieces pieces = pieces_of<T>(a, Solver<T>::getrf_scratch(m, n));
  const size_t swaps_at = pieces.layout.take(rank, sizeof(int));
  return one_by_one(a, pieces, [=](const Run& run, int64_t i) {
    const T* const from = run.input<T>(0) + i * a.size();
    T* const work = run.scratch_at<T>(pieces.work);
    start_check(run, from, a.size());
    turn<T>(run, from, work, 1, m, n);
    launch(run, make_tame<T>, grid_of(a.size()), work, a.size(), static_cast<const T*>(nullptr));
    // A zero pivot is a valid factorisation of a singular matrix.
    Solver<T>::getrf(pieces.call(run), m, n, work, run.scratch_at<int>(swaps_at));
    launch(run, follow_swaps, {1, kThreads}, run.scratch_at<const int>(swaps_at), rank, run.output<int32_t>(0) + i * m,
           m);
    launch(run, take_lower<T>, grid_of(m * rank), work, m, run.output<T>(1) + i * m * rank, rank);
    launch(run, take_upper<T>, grid_of(rank * n), work, m, n, static_cast<const T*>(nullptr),
           run.output<T>(2) + i * rank * n, rank);
  });
}

/// The lower triangle of a row-major matrix is the upper one of the same bytes taken as column-major.
template <class T>
Kernel large_cholesky(const MatrixBatch& a) {
  const int64_t n = a.rows;
  const Pieces pieces = pieces_of<T>({}, Solver<T>::potrf_scratch(n));
  return one_by_one(a, pieces, [=](const Run& run, int64_t i) {
    const T* const from = run.input<T>(0) + i * a.size();
    T* const lower = run.output<T>(0) + i * a.size();
    start_check(run, from, a.size());
    launch(run, keep_lower<T>, grid_of(a.size()), from, lower, n);
    Solver<T>::potrf(pieces.call(run), n, lower);
    pieces.check(run, kDefinite);
  });
}

template <class T>
Kernel large_solve(const MatrixBatch& a, int64_t columns) {
  const int64_t n = a.rows;
  Pieces pieces = pieces_of<T>(a, Solver<T>::getrf_scratch(n, n));
  const size_t swaps_at = pieces.layout.take(n, sizeof(int));
  const size_t right_at = pieces.layout.take(n * columns, sizeof(T));
  return one_by_one(a, pieces, [=](const Run& run, int64_t i) {
    const T* const from = run.input<T>(0) + i * a.size();
    const T* const b = run.input<T>(1) + i * n * columns;
    T* const work = run.scratch_at<T>(pieces.work);
    T* const right = run.scratch_at<T>(right_at);
    start_check(run, from, a.size());
    start_check(run, b, n * columns);
    turn<T>(run, from, work, 1, n, n);
    launch(run, make_tame<T>, grid_of(a.size()), work, a.size(), static_cast<const T*>(nullptr));
    Solver<T>::getrf(pieces.call(run), n, n, work, run.scratch_at<int>(swaps_at));
    pieces.check(run, kInvertible);
    if (columns == 0) return;
    turn<T>(run, b, right, 1, n, columns);
    Solver<T>::getrs(pieces.call(run), n, columns, work, run.scratch_at<const int>(swaps_at), right);
    turn<T>(run, right, run.output<T>(0) + i * n * columns, 1, columns, n);
  });
}

template Kernel large_svd<float>(const MatrixBatch&, bool, bool, bool);
template Kernel large_svd<double>(const MatrixBatch&, bool, bool, bool);
template Kernel large_qr<float>(const MatrixBatch&, int64_t, bool);
template Kernel large_qr<double>(const MatrixBatch&, int64_t, bool);
template Kernel large_eigh<float>(const MatrixBatch&);
template Kernel large_eigh<double>(const MatrixBatch&);
template Kernel large_lu<float>(const MatrixBatch&);
template Kernel large_lu<double>(const MatrixBatch&);
template Kernel large_cholesky<float>(const MatrixBatch&);
template Kernel large_cholesky<double>(const MatrixBatch&);
template Kernel large_solve<float>(const MatrixBatch&, int64_t);
template Kernel large_solve<double>(const MatrixBatch&, int64_t);

}  // namespace heddle::cuda
