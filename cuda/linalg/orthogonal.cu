// Factorisations with orthogonal factors: `svd` by one-sided and `eigh` by two-sided Jacobi rotations, `qr` and
// `qr_pivoted` by Householder reflections with LAPACK's signs. A block of threads takes a matrix, so that batches of
// small and middle-sized matrices fill the GPU; large ones are large_matrices.h's.
#include "cuda/kernels/kernel_table.h"
#include "cuda/linalg/blocks.cuh"
#include "cuda/linalg/large_matrices.h"

namespace heddle::cuda {
namespace {

/// Some six to ten are usual.
constexpr int kMostSweeps = 60;

/// The tangent of the smaller angle whose double has the cotangent zeta.
template <class T>
__device__ T tangent_of(T zeta) {
  return (zeta < T{0} ? T{-1} : T{1}) / (abs(zeta) + sqrt(T{1} + zeta * zeta));
}

/// (x, y) to (x cos - y sin, x sin + y cos), in Rutishauser's form: errors of small angles are small ones.
template <class T>
struct Turn {
  T sine, half;

  explicit __device__ Turn(T tangent) {
    const T cosine = T{1} / sqrt(T{1} + tangent * tangent);
    sine = cosine * tangent;
    half = sine / (T{1} + cosine);
  }
  __device__ void apply(T& x, T& y) const {
    const T from = x;
    x -= sine * (y + half * from);
    y += sine * (from - half * y);
  }
};

/// A wide matrix is taken as its transpose, whose left and right vectors are swapped.
struct SvdPlan {
  MatrixBatch a;
  bool full = false, wide = false;
  int64_t height = 0, n = 0;
  bool tall_asked = false, square_asked = false;
  /// Of the vectors of the longer side.
  int64_t tall_columns = 0;
  size_t work = 0, turns = 0, basis = 0, values = 0, order = 0, factors = 0, bytes = 0;
};

/// squares[j] = the squared length of column j of work [height, n].
template <class T>
__device__ void square_columns(const T* work, T* squares, int64_t height, int64_t n) {
  for (int64_t j = warp_index(); j < n; j += warp_count()) {
    const T square = warp_dot(work + j * height, work + j * height, height);
    if (lane_index() == 0) squares[j] = square;
  }
  __syncthreads();
}

/// Rotates columns until all are orthogonal; turns [n, n], unless null, goes along. False where that has no end.
template <class T>
__device__ bool orthogonalise(T* work, T* turns, T* squares, int64_t height, int64_t n) {
  const T tolerance = Precision<T>::kEpsilon * Maximum()(T{4}, sqrt(static_cast<T>(height)));
  // Columns of about this size are rounding errors of 0: squares, with all numbers scaled to about 1.
  const T nothing = Precision<T>::kEpsilon * Precision<T>::kEpsilon * Precision<T>::kEpsilon * Precision<T>::kEpsilon;
  const int64_t pairs = (n + 1) / 2;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    int turned = 0;
    square_columns(work, squares, height, n);
    for (int64_t round = 0; round < n + n % 2 - 1; ++round) {
      for (int64_t pair = warp_index(); pair < pairs; pair += warp_count()) {
        int64_t p, q;
        if (!meeting(n, round, pair, p, q)) continue;
        T* const left = work + p * height;
        T* const right = work + q * height;
        const T alpha = squares[p], beta = squares[q];
        const T gamma = warp_dot(left, right, height);
        if (alpha <= nothing || beta <= nothing || abs(gamma) <= tolerance * sqrt(alpha) * sqrt(beta)) continue;
        turned = 1;
        const T tangent = tangent_of((beta - alpha) / (T{2} * gamma));
        const Turn<T> turn(tangent);
        __syncwarp();
        if (lane_index() == 0) {
          squares[p] = alpha - tangent * gamma;
          squares[q] = beta + tangent * gamma;
        }
        for (int64_t i = lane_index(); i < height; i += kWarpSize) {
          turn.apply(left[i], right[i]);
        }
        for (int64_t i = lane_index(); i < n && turns != nullptr; i += kWarpSize) {
          turn.apply(turns[p * n + i], turns[q * n + i]);
        }
      }
      __syncthreads();
    }
    if (__syncthreads_or(turned) == 0) return true;
  }
  return false;
}

/// vectors [height, columns], column-major: the columns of u [height, columns], or the rows of vh [columns, height].
template <class T>
__device__ void store_vectors(const T* vectors, int64_t height, int64_t columns, bool as_rows, T* out) {
  for (int64_t i = threadIdx.x; i < height * columns; i += blockDim.x)
    out[i] = as_rows ? vectors[i] : vectors[i % columns * height + i / columns];
}

template <class T>
__global__ void decompose(SvdPlan plan, const T* a, T* u, T* s, T* vh, std::byte* scratch, Report report,
                          Complaint wants_finite, Complaint converges) {
  __shared__ Shared<T, kWarpSize> partial;
  __shared__ Shared<int, kWarpSize> places;
  scratch += blockIdx.x * plan.bytes;
  T* const work = piece_at<T>(scratch, plan.work);
  T* const turns = plan.square_asked ? piece_at<T>(scratch, plan.turns) : nullptr;
  T* const basis = piece_at<T>(scratch, plan.basis);
  T* const values = piece_at<T>(scratch, plan.values);
  auto* const order = piece_at<int32_t>(scratch, plan.order);
  const int64_t height = plan.height, n = plan.n;
  for (int64_t matrix = blockIdx.x; matrix < plan.a.count; matrix += gridDim.x) {
    const T* const from = a + matrix * plan.a.size();
    if (!finite(report, from, plan.a.size(), wants_finite)) continue;
    const T scale = scale_of(from, plan.a.size(), partial), inverse = T{1} / scale;
    for (int64_t i = threadIdx.x; i < height * n; i += blockDim.x)
      work[i] = inverse * (plan.wide ? from[i] : from[i % height * n + i / height]);
    if (turns != nullptr) set_identity(turns, n, n);
    __syncthreads();
    const bool converged = orthogonalise(work, turns, values, height, n);
    if (threadIdx.x == 0) holds(report, converged, converges);
    square_columns(work, values, height, n);
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) values[j] = sqrt(values[j]);
    __syncthreads();
    sort_places(values, order, n, true);
    for (int64_t r = threadIdx.x; r < n; r += blockDim.x) s[matrix * n + r] = values[order[r]] * scale;
    if (plan.tall_asked) {
      const T least = values[order[0]] * Precision<T>::kEpsilon * Precision<T>::kEpsilon;
      int64_t known = 0;
      while (known < n && values[order[known]] > least) ++known;
      for (int64_t i = threadIdx.x; i < height * known; i += blockDim.x) {
        const int32_t place = order[i / height];
        basis[i] = work[place * height + i % height] / values[place];
      }
      __syncthreads();
      complete_basis(basis, height, known, plan.tall_columns, piece_at<T>(scratch, plan.factors), partial, places);
      store_vectors(basis, height, plan.tall_columns, plan.wide,
                    (plan.wide ? vh : u) + matrix * height * plan.tall_columns);
      __syncthreads();
    }
    if (turns != nullptr) {
      T* const out = (plan.wide ? u : vh) + matrix * n * n;
      for (int64_t i = threadIdx.x; i < n * n; i += blockDim.x) {
        const int64_t row = i / n, column = i % n;
        out[i] = plan.wide ? turns[order[column] * n + row] : turns[order[row] * n + column];
      }
    }
    __syncthreads();
  }
}

/// The identity in each of `count` matrices.
template <class T>
__global__ void fill_identities(T* out, int64_t count, int64_t n) {
  for (int64_t i = first_unit(); i < count * n * n; i += unit_step()) out[i] = i % (n * n) / n == i % n ? T{1} : T{0};
}

template <class T>
void start_identities(const Run& run, T* out, int64_t count, int64_t n) {
  if (out != nullptr && count * n > 0) launch(run, fill_identities<T>, grid_of(count * n * n), out, count, n);
}

template <class T>
Kernel svd_kernel(SvdPlan plan) {
  if (plan.n == 0)
    return {.run = [plan](const Run& run) {
      if (!plan.full) return;
      start_identities(run, run.output<T>(0), plan.a.count, plan.a.rows);
      start_identities(run, run.output<T>(2), plan.a.count, plan.a.columns);
    }};
  ScratchLayout pieces;
  plan.work = pieces.take(plan.height * plan.n, sizeof(T));
  plan.turns = pieces.take(plan.square_asked ? plan.n * plan.n : 0, sizeof(T));
  plan.basis = pieces.take(plan.tall_asked ? plan.height * plan.tall_columns : 0, sizeof(T));
  plan.values = pieces.take(plan.n, sizeof(T));
  plan.order = pieces.take(plan.n, sizeof(int32_t));
  plan.factors = pieces.take(plan.height, sizeof(T));
  plan.bytes = pieces.bytes;
  Kernel kernel;
  kernel.scratch_bytes = scratch_of(plan.a, plan.bytes);
  kernel.run = [plan](const Run& run) {
    launch(run, decompose<T>, matrix_grid(plan.a.count, plan.n, plan.bytes), plan, run.input<T>(0), run.output<T>(0),
           run.output<T>(1), run.output<T>(2), run.scratch, run.report, kWantsFinite, kConverges);
  };
  return kernel;
}

Kernel compile_svd(const KernelRequest& request) {
  SvdPlan plan;
  plan.a = read_batch(request.inputs[0]);
  if (plan.a.count == 0) return nothing();
  plan.full = request.attributes.integer("full") != 0;
  plan.wide = plan.a.columns > plan.a.rows;
  plan.height = std::max(plan.a.rows, plan.a.columns);
  plan.n = plan.a.rank();
  const bool u = request.outputs[0].present, vh = request.outputs[2].present;
  const bool wide = request.inputs[0].dtype == DType::kF64;
  // A basis that is completed is as large as its vectors are long.
  const bool large =
      is_large(plan.a) || (plan.full && plan.n > 0 && is_large({plan.a.count, plan.height, plan.height}));
  if (large) return wide ? large_svd<double>(plan.a, plan.full, u, vh) : large_svd<float>(plan.a, plan.full, u, vh);
  plan.tall_asked = plan.wide ? vh : u;
  plan.square_asked = plan.wide ? u : vh;
  plan.tall_columns = plan.full ? plan.height : plan.n;
  return wide ? svd_kernel<double>(plan) : svd_kernel<float>(plan);
}

struct EighPlan {
  int64_t count = 0, n = 0;
  size_t work = 0, vectors = 0, values = 0, order = 0, rotations = 0, bytes = 0;
};

/// What a round does to places p < q; nothing where the sine is 0.
template <class T>
struct Rotation {
  Turn<T> turn;
  int32_t p, q;
};

/// Rotates rows and columns of work [n, n] until it is diagonal; vectors [n, n] goes along.
template <class T>
__device__ bool diagonalise(T* work, T* vectors, Rotation<T>* rotations, int64_t n) {
  // Numbers are scaled to about 1.
  const T tolerance = Precision<T>::kEpsilon / T{4};
  const int64_t pairs = (n + 1) / 2;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    int turned = 0;
    for (int64_t round = 0; round < n + n % 2 - 1; ++round) {
      int needed = 0;
      for (int64_t pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
        int64_t p, q;
        T tangent{0};
        if (meeting(n, round, pair, p, q) && abs(work[q * n + p]) > tolerance) {
          needed = 1;
          tangent = tangent_of((work[q * n + q] - work[p * n + p]) / (T{2} * work[q * n + p]));
        }
        rotations[pair] = {Turn<T>(tangent), static_cast<int32_t>(p), static_cast<int32_t>(q)};
      }
      if (__syncthreads_or(needed) == 0) continue;
      turned = 1;
      for (int64_t pair = warp_index(); pair < pairs; pair += warp_count()) {
        const Rotation<T> rotation = rotations[pair];
        if (rotation.turn.sine == T{0}) continue;
        for (T* const matrix : {work, vectors})
          for (int64_t i = lane_index(); i < n; i += kWarpSize)
            rotation.turn.apply(matrix[rotation.p * n + i], matrix[rotation.q * n + i]);
      }
      __syncthreads();
      for (int64_t column = warp_index(); column < n; column += warp_count())
        for (int64_t pair = lane_index(); pair < pairs; pair += kWarpSize) {
          const Rotation<T> rotation = rotations[pair];
          if (rotation.turn.sine == T{0}) continue;
          T x = work[column * n + rotation.p], y = work[column * n + rotation.q];
          rotation.turn.apply(x, y);
          work[column * n + rotation.p] = column == rotation.q ? T{0} : x;
          work[column * n + rotation.q] = column == rotation.p ? T{0} : y;
        }
      __syncthreads();
    }
    if (turned == 0) return true;
  }
  return false;
}

template <class T>
__global__ void decompose_symmetric(EighPlan plan, const T* a, T* w, T* v, std::byte* scratch, Report report,
                                    Complaint wants_finite, Complaint converges) {
  __shared__ Shared<T, kWarpSize> partial;
  scratch += blockIdx.x * plan.bytes;
  T* const work = piece_at<T>(scratch, plan.work);
  T* const vectors = piece_at<T>(scratch, plan.vectors);
  T* const values = piece_at<T>(scratch, plan.values);
  auto* const order = piece_at<int32_t>(scratch, plan.order);
  const int64_t n = plan.n;
  for (int64_t matrix = blockIdx.x; matrix < plan.count; matrix += gridDim.x) {
    const T* const from = a + matrix * n * n;
    if (!finite(report, from, n * n, wants_finite)) continue;
    // The lower triangle alone counts.
    for (int64_t i = threadIdx.x; i < n * n; i += blockDim.x) {
      const int64_t row = i / n, column = i % n;
      work[i] = row >= column ? from[i] : from[column * n + row];
    }
    __syncthreads();
    const T scale = scale_of(work, n * n, partial), inverse = T{1} / scale;
    for (int64_t i = threadIdx.x; i < n * n; i += blockDim.x) work[i] *= inverse;
    set_identity(vectors, n, n);
    const bool converged = diagonalise(work, vectors, piece_at<Rotation<T>>(scratch, plan.rotations), n);
    if (threadIdx.x == 0) holds(report, converged, converges);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) values[i] = work[i * n + i];
    __syncthreads();
    sort_places(values, order, n, false);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) w[matrix * n + i] = values[order[i]] * scale;
    for (int64_t i = threadIdx.x; i < n * n; i += blockDim.x) v[matrix * n * n + i] = vectors[order[i % n] * n + i / n];
    __syncthreads();
  }
}

template <class T>
Kernel eigh_kernel(const MatrixBatch& a) {
  EighPlan plan{a.count, a.rows};
  ScratchLayout pieces;
  plan.work = pieces.take(a.size(), sizeof(T));
  plan.vectors = pieces.take(a.size(), sizeof(T));
  plan.values = pieces.take(a.rows, sizeof(T));
  plan.order = pieces.take(a.rows, sizeof(int32_t));
  plan.rotations = pieces.take((a.rows + 1) / 2, sizeof(Rotation<T>));
  plan.bytes = pieces.bytes;
  Kernel kernel;
  kernel.scratch_bytes = scratch_of(a, plan.bytes);
  kernel.run = [plan](const Run& run) {
    launch(run, decompose_symmetric<T>, matrix_grid(plan.count, plan.n, plan.bytes), plan, run.input<T>(0),
           run.output<T>(0), run.output<T>(1), run.scratch, run.report, kWantsFinite, kConverges);
  };
  return kernel;
}

Kernel compile_eigh(const KernelRequest& request) {
  const MatrixBatch a = read_batch(request.inputs[0]);
  if (a.count * a.rank() == 0) return nothing();
  const bool wide = request.inputs[0].dtype == DType::kF64;
  if (is_large(a)) return wide ? large_eigh<double>(a) : large_eigh<float>(a);
  return wide ? eigh_kernel<double>(a) : eigh_kernel<float>(a);
}

struct QrPlan {
  MatrixBatch a;
  bool pivots = false;
  /// Columns of q, rows of r.
  int64_t inner = 0;
  size_t work = 0, basis = 0, taus = 0, norms = 0, order = 0, bytes = 0;
};

/// Swaps the column of the largest rest, from row `step` on, to place `step`.
template <class T>
__device__ void bring_largest(const QrPlan& plan, T* work, T* norms, int32_t* order, int64_t step) {
  const int64_t m = plan.a.rows, n = plan.a.columns;
  for (int64_t j = step + warp_index(); j < n; j += warp_count()) {
    const T* const rest = work + j * m + step;
    const T square = warp_dot(rest, rest, m - step);
    if (lane_index() == 0) norms[j] = square;
  }
  __syncthreads();
  int64_t best = step;
  for (int64_t j = step + 1; j < n; ++j)
    if (norms[j] > norms[best]) best = j;
  if (best == step) return;
  for (int64_t i = threadIdx.x; i < m; i += blockDim.x) {
    const T value = work[best * m + i];
    work[best * m + i] = work[step * m + i];
    work[step * m + i] = value;
  }
  if (threadIdx.x == 0) {
    const int32_t place = order[best];
    order[best] = order[step];
    order[step] = place;
  }
  __syncthreads();
}

template <class T>
__global__ void triangularise(QrPlan plan, const T* a, T* q, T* r, int32_t* pivots, std::byte* scratch, Report report,
                              Complaint wants_finite) {
  __shared__ Shared<T, kWarpSize> partial;
  scratch += blockIdx.x * plan.bytes;
  T* const work = piece_at<T>(scratch, plan.work);
  T* const basis = piece_at<T>(scratch, plan.basis);
  T* const taus = piece_at<T>(scratch, plan.taus);
  auto* const order = piece_at<int32_t>(scratch, plan.order);
  const int64_t m = plan.a.rows, n = plan.a.columns, rank = plan.a.rank();
  for (int64_t matrix = blockIdx.x; matrix < plan.a.count; matrix += gridDim.x) {
    const T* const from = a + matrix * m * n;
    if (!finite(report, from, m * n, wants_finite)) continue;
    const T scale = scale_of(from, m * n, partial), inverse = T{1} / scale;
    for (int64_t i = threadIdx.x; i < m * n; i += blockDim.x) work[i] = inverse * from[i % m * n + i / m];
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) order[j] = static_cast<int32_t>(j);
    __syncthreads();
    for (int64_t step = 0; step < rank; ++step) {
      if (plan.pivots) bring_largest(plan, work, piece_at<T>(scratch, plan.norms), order, step);
      T* const column = work + step * m;
      const T tau = make_reflector(column, step, m, partial);
      if (threadIdx.x == 0) taus[step] = tau;
      __syncthreads();
      for (int64_t j = step + 1 + warp_index(); j < n && tau != T{0}; j += warp_count())
        reflect(column, tau, work + j * m, step, m);
      __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < plan.inner * n && r != nullptr; i += blockDim.x) {
      const int64_t row = i / n, column = i % n;
      r[matrix * plan.inner * n + i] = column < row ? T{0} : scale * work[column * m + row];
    }
    for (int64_t j = threadIdx.x; j < n && pivots != nullptr; j += blockDim.x) pivots[matrix * n + j] = order[j];
    if (q != nullptr) {
      set_identity(basis, m, plan.inner);
      for (int64_t j = warp_index(); j < plan.inner; j += warp_count())
        for (int64_t step = rank - 1; step >= 0; --step) {
          if (taus[step] != T{0}) reflect(work + step * m, taus[step], basis + j * m, step, m);
          __syncwarp();
        }
      __syncthreads();
      store_vectors(basis, m, plan.inner, false, q + matrix * m * plan.inner);
    }
    __syncthreads();
  }
}

/// 0, 1, 2, … in each row.
__global__ void fill_places(int32_t* places, int64_t count, int64_t n) {
  for (int64_t i = first_unit(); i < count * n; i += unit_step()) places[i] = static_cast<int32_t>(i % n);
}

template <class T>
Kernel qr_kernel(QrPlan plan) {
  if (plan.a.rank() == 0)
    return {.run = [plan](const Run& run) {
      if (!plan.pivots) return start_identities(run, run.output<T>(0), plan.a.count, plan.inner);
      if (plan.a.columns > 0)
        launch(run, fill_places, grid_of(plan.a.count * plan.a.columns), run.output<int32_t>(2), plan.a.count,
               plan.a.columns);
    }};
  ScratchLayout pieces;
  plan.work = pieces.take(plan.a.size(), sizeof(T));
  plan.basis = pieces.take(plan.a.rows * plan.inner, sizeof(T));
  plan.taus = pieces.take(plan.a.rank(), sizeof(T));
  plan.norms = pieces.take(plan.a.columns, sizeof(T));
  plan.order = pieces.take(plan.a.columns, sizeof(int32_t));
  plan.bytes = pieces.bytes;
  Kernel kernel;
  kernel.scratch_bytes = scratch_of(plan.a, plan.bytes);
  kernel.run = [plan](const Run& run) {
    launch(run, triangularise<T>, matrix_grid(plan.a.count, plan.a.columns, plan.bytes), plan, run.input<T>(0),
           run.output<T>(0), run.output<T>(1), plan.pivots ? run.output<int32_t>(2) : nullptr, run.scratch, run.report,
           kWantsFinite);
  };
  return kernel;
}

Kernel compile_factors(const KernelRequest& request, bool pivots) {
  QrPlan plan;
  plan.a = read_batch(request.inputs[0]);
  if (plan.a.count == 0) return nothing();
  plan.pivots = pivots;
  const bool full = !pivots && request.attributes.integer("full") != 0;
  plan.inner = full ? plan.a.rows : plan.a.rank();
  const bool wide = request.inputs[0].dtype == DType::kF64;
  const bool large =
      is_large(plan.a) || (full && plan.a.rank() > 0 && is_large({plan.a.count, plan.inner, plan.inner}));
  if (large) return wide ? large_qr<double>(plan.a, plan.inner, pivots) : large_qr<float>(plan.a, plan.inner, pivots);
  return wide ? qr_kernel<double>(plan) : qr_kernel<float>(plan);
}

}  // namespace

void register_orthogonal(KernelTable& table) {
  table["svd"] = compile_svd;
  table["qr"] = [](const KernelRequest& request) { return compile_factors(request, false); };
  table["qr_pivoted"] = [](const KernelRequest& request) { return compile_factors(request, true); };
  table["eigh"] = compile_eigh;
}

}  // namespace heddle::cuda
