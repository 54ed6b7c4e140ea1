// Cross-entropy of a linear head, nll[i] = logsumexp(x[i] @ w^T) - (x[i] @ w^T)[target[i]], without ever holding the
// logits [n, v]: a tile of rows at a time, whose logits the library's product makes and whose gradient replaces them.
// Rows whose target is -100 count nothing.
#include <algorithm>
#include <memory>

#include "cuda/core/elements.cuh"
#include "cuda/core/rows.cuh"
#include "cuda/kernels/kernel_table.h"
#include "cuda/library/products.h"
#include "cuda/quant/weight.cuh"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int32_t kIgnored = -100;
/// Logits of a tile of rows, unless the vocabulary is so large that a tile of kLeastRows has more.
constexpr int64_t kTileLogits = 1 << 24;
constexpr int64_t kLeastRows = 64;
constexpr const char* kTargets = "targets of -100, or of 0 up to the size of the vocabulary";

__device__ inline void store(float value, float& to) { to = value; }
__device__ inline void store(float value, Bf16& to) { to = to_bf16(value); }

/// Of a tile of rows: logits [rows, v] and targets, and what the rows' gradients are put into, which may be the logits.
template <class T>
struct Tile {
  const float* logits;
  const int32_t* target;
  T* terms;
  int64_t rows, v;
};

/// 1 / Σ exp(logit - maximum) and exp(logit - lse) of a row's target.
struct RowShares {
  float inverse, target;
};

/// nll and, unless they are null, lse and shares of the tile's rows; then terms = exp(logit - maximum), but 0 for the
/// target: its share of the gradient is added in the end, unrounded. A block for a row.
template <class T>
__global__ void take_rows(Tile<T> tile, float* nll, float* lse, RowShares* shares, Report report) {
  __shared__ Shared<float, kWarpSize> partial;
  for (int64_t row = blockIdx.x; row < tile.rows; row += gridDim.x) {
    const float* const logits = tile.logits + row * tile.v;
    const int32_t target = tile.target[row];
    // One thread tells of a wrong target; the others leave it out as well.
    if (threadIdx.x == 0 && target != kIgnored) within(report, target, 0, tile.v);
    const bool counts = target >= 0 && target < tile.v;
    float top = -INFINITY;
    for (int64_t i = threadIdx.x; i < tile.v; i += kThreads) top = Maximum()(logits[i], top);
    top = block_reduce(top, -INFINITY, Maximum(), partial);
    const float target_logit = counts ? logits[target] : 0.0F;
    // Terms may take the place of the logits: the target's has been read by all before.
    __syncthreads();
    float sum = 0.0F;
    for (int64_t i = threadIdx.x; i < tile.v; i += kThreads) {
      const float term = expf(logits[i] - top);
      sum += term;
      if (tile.terms != nullptr) store(counts && i != target ? term : 0.0F, tile.terms[row * tile.v + i]);
    }
    sum = block_reduce(sum, 0.0F, Sum(), partial);
    if (threadIdx.x != 0) continue;
    const float log_sum = top + logf(sum);
    nll[row] = counts ? log_sum - target_logit : 0.0F;
    if (lse != nullptr) lse[row] = counts ? log_sum : 0.0F;
    if (shares != nullptr) shares[row] = {1.0F / sum, expf(target_logit - log_sum)};
  }
}

__device__ inline float element(const float* at) { return *at; }
__device__ inline float element(const Bf16* at) { return to_float(*at); }

/// dx [rows, d] = dx / sum + (share of the target - 1) w[target].
template <class T>
__global__ void finish_rows(const int32_t* target, const RowShares* shares, const T* w, float* dx, int64_t rows,
                            int64_t d, int64_t v) {
  for (int64_t at = first_unit(); at < rows * d; at += unit_step()) {
    const int64_t row = at / d, place = target[row];
    const bool counts = place >= 0 && place < v;
    const RowShares share = shares[row];
    dx[at] = counts ? dx[at] * share.inverse + (share.target - 1.0F) * element(w + place * d + at % d) : 0.0F;
  }
}

/// terms = g (exp(logit - lse) - onehot).
template <class T>
__global__ void differentiate(Tile<T> tile, const float* lse, const float* g, Report report) {
  for (int64_t at = first_unit(); at < tile.rows * tile.v; at += unit_step()) {
    const int64_t row = at / tile.v, place = at % tile.v;
    const int32_t target = tile.target[row];
    const bool counts = target >= 0 && target < tile.v;
    if (place == 0 && target != kIgnored) within(report, target, 0, tile.v);
    const float share = counts ? g[row] * expf(tile.logits[at] - lse[row]) : 0.0F;
    store(counts && place == target ? share - g[row] : share, tile.terms[at]);
  }
}

/// Sizes, and where things lie in scratch memory.
struct Plan {
  int64_t n = 0, d = 0, v = 0, tile = 0;
  bool half = false;
  ScratchLayout scratch;
  ProductOperand x;
  WeightOperand w;
  size_t logits = 0, terms = 0, shares = 0, workspace = 0;

  int64_t tiles() const { return ceil_div(n, tile); }
  int64_t rows(int64_t index) const { return std::min(tile, n - index * tile); }
};

Plan read_plan(const KernelRequest& request) {
  Plan plan;
  plan.n = request.inputs[0].shape[0];
  plan.d = request.inputs[0].shape[1];
  plan.v = request.inputs[1].shape[0];
  plan.tile = std::max<int64_t>(1, std::min(plan.n, std::max(kLeastRows, kTileLogits / plan.v)));
  plan.half = request.attributes.has("precision") && request.attributes.text("precision") != "f32";
  plan.logits = plan.scratch.take(plan.tile * plan.v, sizeof(float));
  plan.terms = plan.half ? plan.scratch.take(plan.tile * plan.v, sizeof(Bf16)) : plan.logits;
  const DType element = plan.half ? DType::kBF16 : DType::kF32;
  plan.x = {request.inputs[0], element, plan.scratch};
  plan.w = {request.inputs[1], element, plan.scratch};
  return plan;
}

/// A product for tiles of full height and one for the last; those of a kind.
struct TileProducts {
  std::shared_ptr<const Product> full, last;

  template <class Make>
  TileProducts(Plan& plan, const Make& make, size_t& workspace_bytes) {
    full = Product::get(make(plan.tile));
    last = Product::get(make(plan.rows(plan.tiles() - 1)));
    workspace_bytes = std::max({workspace_bytes, full->scratch_bytes(), last->scratch_bytes()});
  }
  const Product& of(const Plan& plan, int64_t tile) const { return tile + 1 == plan.tiles() ? *last : *full; }
};

struct LossProducts {
  std::shared_ptr<const TileProducts> logits, dx, dw, more_dw;

  LossProducts(Plan& plan, bool wants_dx, bool wants_dw) {
    const DType element = plan.half ? DType::kBF16 : DType::kF32;
    const int64_t d = plan.d, v = plan.v;
    size_t bytes = 0;
    logits = std::make_shared<const TileProducts>(
        plan,
        [=](int64_t rows) { return ProductShape{.m = rows, .n = v, .k = d, .transpose_b = true, .element = element}; },
        bytes);
    if (wants_dx)
      dx = std::make_shared<const TileProducts>(
          plan, [=](int64_t rows) { return ProductShape{.m = rows, .n = d, .k = v, .element = element}; }, bytes);
    const auto weights = [=](double beta) {
      return [=](int64_t rows) {
        return ProductShape{.m = v, .n = d, .k = rows, .transpose_a = true, .element = element, .beta = beta};
      };
    };
    if (wants_dw) {
      dw = std::make_shared<const TileProducts>(plan, weights(0.0), bytes);
      more_dw = std::make_shared<const TileProducts>(plan, weights(1.0), bytes);
    }
    plan.workspace = plan.scratch.take(static_cast<int64_t>(bytes), 1);
  }
};

/// x and w as the products take them.
template <class T>
struct Operands {
  const T *x, *w;

  Operands(const Run& run, const Plan& plan)
      : x(static_cast<const T*>(plan.x.start(run, run.in[0]))),
        w(static_cast<const T*>(plan.w.start(run, run.in[1]))) {}
};

template <class T>
void run_forward(const Run& run, const Plan& plan, const LossProducts& products) {
  const Operands<T> operands(run, plan);
  auto* const logits = run.scratch_at<float>(plan.logits);
  auto* const workspace = run.scratch_at<void>(plan.workspace);
  float* const dx = run.output<float>(2);
  auto* const shares = dx == nullptr ? nullptr : run.scratch_at<RowShares>(plan.shares);
  auto* const terms = dx == nullptr ? nullptr : run.scratch_at<T>(plan.terms);
  float* const lse = run.output<float>(1);
  for (int64_t tile = 0; tile < plan.tiles(); ++tile) {
    const int64_t first = tile * plan.tile, rows = plan.rows(tile);
    const int32_t* const target = run.input<int32_t>(2) + first;
    products.logits->of(plan, tile).run(run.stream, operands.x + first * plan.d, operands.w, logits, logits, workspace);
    launch(run, take_rows<T>, {blocks_for(rows), kThreads}, Tile<T>{logits, target, terms, rows, plan.v},
           run.output<float>(0) + first, lse == nullptr ? nullptr : lse + first, shares, run.report.in_words(kTargets));
    if (dx == nullptr) continue;
    float* const to = dx + first * plan.d;
    products.dx->of(plan, tile).run(run.stream, terms, operands.w, to, to, workspace);
    launch(run, finish_rows<T>, grid_of(rows * plan.d), target, shares, operands.w, to, rows, plan.d, plan.v);
  }
}

Kernel compile_linear_cross_entropy(const KernelRequest& request) {
  Plan plan = read_plan(request);
  if (plan.n == 0) return nothing();
  const bool wants_dx = request.outputs[2].present;
  if (wants_dx) plan.shares = plan.scratch.take(plan.tile, sizeof(RowShares));
  const LossProducts products(plan, wants_dx, false);
  Kernel kernel;
  plan.w.claim(1, kernel);
  kernel.scratch_bytes = plan.scratch.bytes;
  kernel.run = [plan, products](const Run& run) {
    plan.half ? run_forward<Bf16>(run, plan, products) : run_forward<float>(run, plan, products);
  };
  return kernel;
}

template <class T>
void run_backward(const Run& run, const Plan& plan, const LossProducts& products) {
  const Operands<T> operands(run, plan);
  auto* const logits = run.scratch_at<float>(plan.logits);
  auto* const terms = run.scratch_at<T>(plan.terms);
  auto* const workspace = run.scratch_at<void>(plan.workspace);
  float *const dx = run.output<float>(0), *const dw = run.output<float>(1);
  for (int64_t tile = 0; tile < plan.tiles(); ++tile) {
    const int64_t first = tile * plan.tile, rows = plan.rows(tile);
    const T* const x = operands.x + first * plan.d;
    products.logits->of(plan, tile).run(run.stream, x, operands.w, logits, logits, workspace);
    launch(run, differentiate<T>, grid_of(rows * plan.v),
           Tile<T>{logits, run.input<int32_t>(2) + first, terms, rows, plan.v}, run.input<float>(3) + first,
           run.input<float>(4) + first, run.report.in_words(kTargets));
    if (dx != nullptr) {
      float* const to = dx + first * plan.d;
      products.dx->of(plan, tile).run(run.stream, terms, operands.w, to, to, workspace);
    }
    if (dw != nullptr)
      (tile == 0 ? products.dw : products.more_dw)->of(plan, tile).run(run.stream, terms, x, dw, dw, workspace);
  }
}

Kernel compile_linear_cross_entropy_vjp(const KernelRequest& request) {
  Plan plan = read_plan(request);
  const bool wants_dw = request.outputs[1].present;
  if (plan.n == 0) {
    if (!wants_dw) return nothing();
    const size_t bytes = request.inputs[1].shape.count() * sizeof(float);
    return {.run = [bytes](const Run& run) {
      check(cudaMemsetAsync(run.out[1], 0, bytes, run.stream), run.report.operation);
    }};
  }
  const LossProducts products(plan, request.outputs[0].present, wants_dw);
  Kernel kernel;
  plan.w.claim(1, kernel);
  kernel.scratch_bytes = plan.scratch.bytes;
  kernel.run = [plan, products](const Run& run) {
    plan.half ? run_backward<Bf16>(run, plan, products) : run_backward<float>(run, plan, products);
  };
  return kernel;
}

}  // namespace

void register_loss(KernelTable& table) {
  table["linear_cross_entropy"] = compile_linear_cross_entropy;
  table["linear_cross_entropy_vjp"] = compile_linear_cross_entropy_vjp;
}

}  // namespace heddle::cuda
