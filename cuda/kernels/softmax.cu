// Softmax, its gradient, and the logarithm of a sum of exponentials, over the last axis. The maximum is taken off
// first, so that no exponential overflows.
#include "cuda/core/rows.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

using Partial = Shared<float, kWarpSize>;

template <class Team>
__device__ float row_maximum(const float* x, int64_t width, Partial& partial) {
  float top = -INFINITY;
  for (int64_t i = Team::rank(); i < width; i += Team::size()) top = Maximum()(x[i], top);
  return Team::reduce(top, -INFINITY, Maximum(), partial);
}

/// x and y may be the same memory: a thread reads and writes its own elements only.
template <class Team>
__global__ void softmax_rows(const float* x, float* y, int64_t rows, int64_t width) {
  __shared__ Partial partial;
  for (int64_t row = Team::first_row(); row < rows; row += Team::row_step()) {
    const float* const from = x + row * width;
    float* const to = y + row * width;
    const float top = row_maximum<Team>(from, width, partial);
    float sum = 0.0F;
    for (int64_t i = Team::rank(); i < width; i += Team::size()) {
      const float term = expf(from[i] - top);
      to[i] = term;
      sum += term;
    }
    const float scale = 1.0F / Team::reduce(sum, 0.0F, Sum(), partial);
    for (int64_t i = Team::rank(); i < width; i += Team::size()) to[i] *= scale;
  }
}

template <class Team>
__global__ void log_sum_exp_rows(const float* x, float* y, int64_t rows, int64_t width) {
  __shared__ Partial partial;
  for (int64_t row = Team::first_row(); row < rows; row += Team::row_step()) {
    const float* const from = x + row * width;
    const float top = row_maximum<Team>(from, width, partial);
    float sum = 0.0F;
    for (int64_t i = Team::rank(); i < width; i += Team::size()) sum += expf(from[i] - top);
    sum = Team::reduce(sum, 0.0F, Sum(), partial);
    // A row of -inf alone sums up to e^-inf = 0; inf - inf would be NaN.
    if (Team::rank() == 0) y[row] = isinf(top) ? top : top + logf(sum);
  }
}

/// dx = y * (g - sum(g * y)); g and dx may be the same memory.
template <class Team>
__global__ void softmax_vjp_rows(const float* y, const float* g, float* dx, int64_t rows, int64_t width) {
  __shared__ Partial partial;
  for (int64_t row = Team::first_row(); row < rows; row += Team::row_step()) {
    const int64_t at = row * width;
    float dot = 0.0F;
    for (int64_t i = Team::rank(); i < width; i += Team::size()) dot += y[at + i] * g[at + i];
    dot = Team::reduce(dot, 0.0F, Sum(), partial);
    for (int64_t i = Team::rank(); i < width; i += Team::size()) dx[at + i] = y[at + i] * (g[at + i] - dot);
  }
}

Kernel compile_softmax(const KernelRequest& request) {
  const int64_t rows = row_count(request.inputs[0]), width = row_width(request.inputs[0]);
  if (rows == 0) return nothing();
  Kernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [rows, width](const Run& run) {
    launch(run, for_width(width, softmax_rows<WarpTeam>, softmax_rows<BlockTeam>), row_grid(rows, width),
           run.input<float>(0), run.output<float>(0), rows, width);
  };
  return kernel;
}

Kernel compile_softmax_vjp(const KernelRequest& request) {
  const int64_t rows = row_count(request.inputs[0]), width = row_width(request.inputs[0]);
  if (rows == 0) return nothing();
  Kernel kernel;
  kernel.in_place = {{1, 0}};
  kernel.run = [rows, width](const Run& run) {
    launch(run, for_width(width, softmax_vjp_rows<WarpTeam>, softmax_vjp_rows<BlockTeam>), row_grid(rows, width),
           run.input<float>(0), run.input<float>(1), run.output<float>(0), rows, width);
  };
  return kernel;
}

Kernel compile_log_sum_exp(const KernelRequest& request) {
  const int64_t rows = row_count(request.inputs[0]), width = row_width(request.inputs[0]);
  if (rows == 0) return nothing();
  return {.run = [rows, width](const Run& run) {
    launch(run, for_width(width, log_sum_exp_rows<WarpTeam>, log_sum_exp_rows<BlockTeam>), row_grid(rows, width),
           run.input<float>(0), run.output<float>(0), rows, width);
  }};
}

}  // namespace

void register_softmax(KernelTable& table) {
  table["softmax"] = compile_softmax;
  table["softmax_vjp"] = compile_softmax_vjp;
  table["log_sum_exp"] = compile_log_sum_exp;
}

}  // namespace heddle::cuda
