// RMS normalisation over the last axis: y = w x / sqrt(mean(x²) + eps), and its gradient.
#include "cuda/core/columns.cuh"
#include "cuda/core/rows.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

using Partial = Shared<float, kWarpSize>;

/// rstd [rows] may be null.
template <class Team>
__global__ void normalise_rows(const float* x, const float* w, float* y, float* rstd, int64_t rows, int64_t width,
                               float eps) {
  __shared__ Partial partial;
  for (int64_t row = Team::first_row(); row < rows; row += Team::row_step()) {
    const int64_t at = row * width;
    float squares = 0.0F;
    for (int64_t i = Team::rank(); i < width; i += Team::size()) squares += x[at + i] * x[at + i];
    squares = Team::reduce(squares, 0.0F, Sum(), partial);
    const float scale = 1.0F / sqrtf(squares / static_cast<float>(width) + eps);
    if (rstd != nullptr && Team::rank() == 0) rstd[row] = scale;
    for (int64_t i = Team::rank(); i < width; i += Team::size()) y[at + i] = x[at + i] * scale * w[i];
  }
}

/// dx = rstd (w g - x rstd² mean(w g x)); g and dx may be the same memory.
template <class Team>
__global__ void normalise_rows_vjp(const float* x, const float* w, const float* rstd, const float* g, float* dx,
                                   int64_t rows, int64_t width) {
  __shared__ Partial partial;
  for (int64_t row = Team::first_row(); row < rows; row += Team::row_step()) {
    const int64_t at = row * width;
    float dot = 0.0F;
    for (int64_t i = Team::rank(); i < width; i += Team::size()) dot += w[i] * g[at + i] * x[at + i];
    dot = Team::reduce(dot, 0.0F, Sum(), partial);
    const float scale = rstd[row];
    const float shrink = scale * scale * dot / static_cast<float>(width);
    for (int64_t i = Team::rank(); i < width; i += Team::size())
      dx[at + i] = scale * (w[i] * g[at + i] - x[at + i] * shrink);
  }
}

/// d w: g x rstd of each row.
struct WeightTerm {
  const float *x, *rstd, *g;
  int64_t width;
  __device__ float operator()(int64_t row, int64_t column) const {
    return rstd[row] * x[row * width + column] * g[row * width + column];
  }
};

Kernel compile_rms_norm(const KernelRequest& request) {
  const int64_t rows = row_count(request.inputs[0]), width = row_width(request.inputs[0]);
  const auto eps = static_cast<float>(request.attributes.number("eps"));
  if (rows == 0) return nothing();
  return {.run = [rows, width, eps](const Run& run) {
    launch(run, for_width(width, normalise_rows<WarpTeam>, normalise_rows<BlockTeam>), row_grid(rows, width),
           run.input<float>(0), run.input<float>(1), run.output<float>(0), run.output<float>(1), rows, width, eps);
  }};
}

Kernel compile_rms_norm_vjp(const KernelRequest& request) {
  const int64_t rows = row_count(request.inputs[0]), width = row_width(request.inputs[0]);
  Kernel kernel;
  const ColumnChunks chunks(rows, width);
  const bool has_dx = request.outputs[0].present, has_dw = request.outputs[1].present;
  if (has_dw) kernel.scratch_bytes = chunks.scratch_bytes();
  kernel.in_place = {{3, 0}};
  kernel.run = [=](const Run& run) {
    const auto *x = run.input<float>(0), *rstd = run.input<float>(2), *g = run.input<float>(3);
    // dw first: dx may overwrite g.
    if (has_dw) sum_columns(run, chunks, WeightTerm{x, rstd, g, width}, run.output<float>(1));
    if (has_dx && rows != 0)
      launch(run, for_width(width, normalise_rows_vjp<WarpTeam>, normalise_rows_vjp<BlockTeam>), row_grid(rows, width),
             x, run.input<float>(1), rstd, g, run.output<float>(0), rows, width);
  };
  return kernel;
}

}  // namespace

void register_norm(KernelTable& table) {
  table["rms_norm"] = compile_rms_norm;
  table["rms_norm_vjp"] = compile_rms_norm_vjp;
}

}  // namespace heddle::cuda
