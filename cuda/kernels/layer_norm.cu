// Layer normalisation over the last axis: y = w (x - mean) rstd + b, and its gradient. Weight and bias may be left out.
#include "cuda/core/columns.cuh"
#include "cuda/core/rows.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

using Partial = Shared<float, kWarpSize>;

struct Forward {
  const float *x, *w, *b;
  float *y, *mean, *rstd;
  int64_t rows, width;
  float eps;
};

template <class Team>
__global__ void normalise_rows(Forward of) {
  __shared__ Partial partial;
  const auto width = static_cast<float>(of.width);
  for (int64_t row = Team::first_row(); row < of.rows; row += Team::row_step()) {
    const float* const x = of.x + row * of.width;
    float* const y = of.y + row * of.width;
    float sum = 0.0F;
    for (int64_t i = Team::rank(); i < of.width; i += Team::size()) sum += x[i];
    const float mean = Team::reduce(sum, 0.0F, Sum(), partial) / width;
    // Around the mean, for differences of large numbers would lose their digits.
    float squares = 0.0F;
    for (int64_t i = Team::rank(); i < of.width; i += Team::size()) squares += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0F / sqrtf(Team::reduce(squares, 0.0F, Sum(), partial) / width + of.eps);
    if (Team::rank() == 0) {
      if (of.mean != nullptr) of.mean[row] = mean;
      if (of.rstd != nullptr) of.rstd[row] = rstd;
    }
    for (int64_t i = Team::rank(); i < of.width; i += Team::size()) {
      const float hat = (x[i] - mean) * rstd;
      const float scaled = of.w == nullptr ? hat : hat * of.w[i];
      y[i] = of.b == nullptr ? scaled : scaled + of.b[i];
    }
  }
}

struct Backward {
  const float *x, *w, *mean, *rstd, *g;
  float* dx;
  int64_t rows, width;
};

/// dx = rstd (h - mean(h) - hat mean(h hat)) with h = w g; g and dx may be the same memory.
template <class Team>
__global__ void normalise_rows_vjp(Backward of) {
  __shared__ Partial partial;
  const auto width = static_cast<float>(of.width);
  for (int64_t row = Team::first_row(); row < of.rows; row += Team::row_step()) {
    const float* const x = of.x + row * of.width;
    const float* const g = of.g + row * of.width;
    float* const dx = of.dx + row * of.width;
    const float mean = of.mean[row], rstd = of.rstd[row];
    float sum = 0.0F, dot = 0.0F;
    for (int64_t i = Team::rank(); i < of.width; i += Team::size()) {
      const float h = of.w == nullptr ? g[i] : of.w[i] * g[i];
      sum += h;
      dot += h * ((x[i] - mean) * rstd);
    }
    sum = Team::reduce(sum, 0.0F, Sum(), partial) / width;
    dot = Team::reduce(dot, 0.0F, Sum(), partial) / width;
    for (int64_t i = Team::rank(); i < of.width; i += Team::size()) {
      const float h = of.w == nullptr ? g[i] : of.w[i] * g[i];
      dx[i] = rstd * (h - sum - (x[i] - mean) * rstd * dot);
    }
  }
}

struct WeightTerm {
  const float *x, *mean, *rstd, *g;
  int64_t width;
  __device__ float operator()(int64_t row, int64_t column) const {
    const int64_t at = row * width + column;
    return (x[at] - mean[row]) * rstd[row] * g[at];
  }
};

struct BiasTerm {
  const float* g;
  int64_t width;
  __device__ float operator()(int64_t row, int64_t column) const { return g[row * width + column]; }
};

Kernel compile_layer_norm(const KernelRequest& request) {
  const int64_t rows = row_count(request.inputs[0]), width = row_width(request.inputs[0]);
  const auto eps = static_cast<float>(request.attributes.number("eps"));
  if (rows == 0) return nothing();
  return {.run = [rows, width, eps](const Run& run) {
    launch(run, for_width(width, normalise_rows<WarpTeam>, normalise_rows<BlockTeam>), row_grid(rows, width),
           Forward{run.input<float>(0), run.input<float>(1), run.input<float>(2), run.output<float>(0),
                   run.output<float>(1), run.output<float>(2), rows, width, eps});
  }};
}

Kernel compile_layer_norm_vjp(const KernelRequest& request) {
  const int64_t rows = row_count(request.inputs[0]), width = row_width(request.inputs[0]);
  Kernel kernel;
  const ColumnChunks chunks(rows, width);
  const bool has_dx = request.outputs[0].present, has_dw = request.outputs[1].present,
             has_db = request.outputs[2].present;
  if (has_dw || has_db) kernel.scratch_bytes = chunks.scratch_bytes();
  kernel.in_place = {{4, 0}};
  kernel.run = [=](const Run& run) {
    const auto *x = run.input<float>(0), *mean = run.input<float>(2), *rstd = run.input<float>(3),
               *g = run.input<float>(4);
    // The parameters' gradients first: dx may overwrite g.
    if (has_dw) sum_columns(run, chunks, WeightTerm{x, mean, rstd, g, width}, run.output<float>(1));
    if (has_db) sum_columns(run, chunks, BiasTerm{g, width}, run.output<float>(2));
    if (has_dx && rows != 0)
      launch(run, for_width(width, normalise_rows_vjp<WarpTeam>, normalise_rows_vjp<BlockTeam>), row_grid(rows, width),
             Backward{x, run.input<float>(1), mean, rstd, g, run.output<float>(0), rows, width});
  };
  return kernel;
}

}  // namespace

void register_layer_norm(KernelTable& table) {
  table["layer_norm"] = compile_layer_norm;
  table["layer_norm_vjp"] = compile_layer_norm_vjp;
}

}  // namespace heddle::cuda
