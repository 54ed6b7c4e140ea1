// `linear_assignment` as the CPU has it: shortest augmenting paths with potentials (Jonker and Volgenant 1987, in the
// rectangular form of Crouse 2016). A warp takes a matrix, its lanes the columns.
#include "cuda/kernels/kernel_table.h"
#include "cuda/linalg/blocks.cuh"

namespace heddle::cuda {
namespace {

constexpr int32_t kNone = -1;

struct AssignmentPlan {
  MatrixBatch a;
  /// Of the matrix or its transpose, whichever has no more rows than columns.
  int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 0;
  size_t row_potential = 0, column_potential = 0, distance = 0;
  size_t row_of = 0, column_of = 0, before = 0, row_seen = 0, column_seen = 0, bytes = 0;
  bool turned = false;
};

/// A matrix under way. What one lane writes others read after __syncwarp.
template <class T>
struct Assignment {
  const T* cost;
  double *row_potential, *column_potential, *distance;
  int32_t *row_of, *column_of, *before, *row_seen, *column_seen;
};

struct Nearest {
  double distance;
  int taken, column;
};

/// A free column ends the search, so it is taken before others that are as near.
__device__ bool nearer(const Nearest& a, const Nearest& b) {
  if (a.distance != b.distance) return a.distance < b.distance;
  return a.taken != b.taken ? a.taken < b.taken : a.column < b.column;
}

template <class T>
__device__ Nearest nearest_column(const AssignmentPlan& plan, const Assignment<T>& state, int64_t row, double reached) {
  Nearest best{INFINITY, 2, 0x7fffffff};
  for (int64_t j = threadIdx.x; j < plan.columns; j += kWarpSize) {
    if (state.column_seen[j] != 0) continue;
    const double cost = state.cost[row * plan.row_stride + j * plan.column_stride];
    const double through = reached + cost - state.row_potential[row] - state.column_potential[j];
    if (through < state.distance[j]) {
      state.distance[j] = through;
      state.before[j] = static_cast<int32_t>(row);
    }
    const Nearest own{state.distance[j], state.row_of[j] == kNone ? 0 : 1, static_cast<int>(j)};
    if (nearer(own, best)) best = own;
  }
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    const Nearest other{__shfl_xor_sync(kWholeWarp, best.distance, bits), __shfl_xor_sync(kWholeWarp, best.taken, bits),
                        __shfl_xor_sync(kWholeWarp, best.column, bits)};
    if (nearer(other, best)) best = other;
  }
  return best;
}

/// Dijkstra over reduced costs from a free row to the nearest free column; the path's edges change sides.
template <class T>
__device__ void augment(const AssignmentPlan& plan, const Assignment<T>& state, int64_t start) {
  const unsigned lane = threadIdx.x;
  for (int64_t j = lane; j < plan.columns; j += kWarpSize) {
    state.distance[j] = INFINITY;
    state.before[j] = kNone;
    state.column_seen[j] = 0;
  }
  for (int64_t i = lane; i < plan.rows; i += kWarpSize) state.row_seen[i] = 0;
  __syncwarp();
  double reached = 0;
  int64_t row = start;
  int32_t sink = kNone;
  while (sink == kNone) {
    const Nearest nearest = nearest_column(plan, state, row, reached);
    reached = nearest.distance;
    if (lane == 0) {
      state.row_seen[row] = 1;
      state.column_seen[nearest.column] = 1;
    }
    __syncwarp();
    if (nearest.taken == 0)
      sink = nearest.column;
    else
      row = state.row_of[nearest.column];
  }
  for (int64_t i = lane; i < plan.rows; i += kWarpSize)
    if (state.row_seen[i] != 0)
      state.row_potential[i] += i == start ? reached : reached - state.distance[state.column_of[i]];
  for (int64_t j = lane; j < plan.columns; j += kWarpSize)
    if (state.column_seen[j] != 0) state.column_potential[j] -= reached - state.distance[j];
  __syncwarp();
  if (lane == 0)
    for (int32_t column = sink; column != kNone;) {
      const int32_t owner = state.before[column];
      state.row_of[column] = owner;
      const int32_t next = state.column_of[owner];
      state.column_of[owner] = column;
      column = owner == start ? kNone : next;
    }
  __syncwarp();
}

template <class T>
__global__ void assign(AssignmentPlan plan, const T* cost, int32_t* columns, std::byte* scratch, Report report,
                       Complaint wants_finite) {
  scratch += blockIdx.x * plan.bytes;
  Assignment<T> state{nullptr,
                      piece_at<double>(scratch, plan.row_potential),
                      piece_at<double>(scratch, plan.column_potential),
                      piece_at<double>(scratch, plan.distance),
                      piece_at<int32_t>(scratch, plan.row_of),
                      piece_at<int32_t>(scratch, plan.column_of),
                      piece_at<int32_t>(scratch, plan.before),
                      piece_at<int32_t>(scratch, plan.row_seen),
                      piece_at<int32_t>(scratch, plan.column_seen)};
  for (int64_t matrix = blockIdx.x; matrix < plan.a.count; matrix += gridDim.x) {
    state.cost = cost + matrix * plan.a.size();
    if (!finite(report, state.cost, plan.a.size(), wants_finite)) continue;
    for (int64_t i = threadIdx.x; i < plan.rows; i += kWarpSize) {
      state.row_potential[i] = 0;
      state.column_of[i] = kNone;
    }
    for (int64_t j = threadIdx.x; j < plan.columns; j += kWarpSize) {
      state.column_potential[j] = 0;
      state.row_of[j] = kNone;
    }
    __syncwarp();
    for (int64_t row = 0; row < plan.rows; ++row) augment(plan, state, row);
    const int32_t* const result = plan.turned ? state.row_of : state.column_of;
    for (int64_t i = threadIdx.x; i < plan.a.rows; i += kWarpSize) columns[matrix * plan.a.rows + i] = result[i];
    __syncwarp();
  }
}

/// Of matrices without columns: no row has one.
__global__ void fill_none(int32_t* columns, int64_t count) {
  for (int64_t i = first_unit(); i < count; i += unit_step()) columns[i] = kNone;
}

template <class T>
Kernel assignment(AssignmentPlan plan) {
  ScratchLayout pieces;
  plan.row_potential = pieces.take(plan.rows, sizeof(double));
  plan.column_potential = pieces.take(plan.columns, sizeof(double));
  plan.distance = pieces.take(plan.columns, sizeof(double));
  plan.row_of = pieces.take(plan.columns, sizeof(int32_t));
  plan.column_of = pieces.take(plan.rows, sizeof(int32_t));
  plan.before = pieces.take(plan.columns, sizeof(int32_t));
  plan.row_seen = pieces.take(plan.rows, sizeof(int32_t));
  plan.column_seen = pieces.take(plan.columns, sizeof(int32_t));
  plan.bytes = pieces.bytes;
  Kernel kernel;
  kernel.scratch_bytes = scratch_of(plan.a, plan.bytes);
  kernel.run = [plan](const Run& run) {
    const auto blocks = static_cast<unsigned>(matrices_at_once(plan.a.count, plan.bytes));
    launch(run, assign<T>, {blocks, kWarpSize}, plan, run.input<T>(0), run.output<int32_t>(0), run.scratch, run.report,
           kWantsFinite);
  };
  return kernel;
}

Kernel compile_linear_assignment(const KernelRequest& request) {
  AssignmentPlan plan;
  plan.a = read_batch(request.inputs[0]);
  const int64_t results = plan.a.count * plan.a.rows;
  if (results == 0) return nothing();
  if (plan.a.columns == 0)
    return {.run = [results](const Run& run) {
      launch(run, fill_none, grid_of(results), run.output<int32_t>(0), results);
    }};
  plan.turned = plan.a.rows > plan.a.columns;
  plan.rows = plan.a.rank();
  plan.columns = std::max(plan.a.rows, plan.a.columns);
  plan.row_stride = plan.turned ? 1 : plan.a.columns;
  plan.column_stride = plan.turned ? plan.a.columns : 1;
  return request.inputs[0].dtype == DType::kF64 ? assignment<double>(plan) : assignment<float>(plan);
}

}  // namespace

void register_assignment(KernelTable& table) { table["linear_assignment"] = compile_linear_assignment; }

}  // namespace heddle::cuda
