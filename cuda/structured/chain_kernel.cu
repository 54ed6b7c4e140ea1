// Block-diagonal, Monarch and Kronecker products and their gradients: chains of block-wise products, one launch a
// stage. Rows of the batch are taken in ranges, so that what stands between the stages fits into a fixed amount of
// memory.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cuda/kernels/kernel_table.h"
#include "cuda/structured/stages.cuh"
#include "structured/chain.h"

namespace heddle::cuda {
namespace {

/// Memory for what stands between the stages, and for partial sums of a weight's gradient.
constexpr int64_t kBetweenBytes = int64_t{256} << 20;
constexpr int64_t kPartsBytes = int64_t{64} << 20;
/// Blocks that keep every multiprocessor busy.
constexpr int64_t kWantedBlocks = 1024;
constexpr int64_t kSmallestPiece = 256;
/// Vectors of one launch; their numbers have 32 bits.
constexpr int64_t kMostVectors = int64_t{1} << 30;

using ReadChain = Chain (*)(const KernelRequest& request, std::span<const Operand> weights);

Features features_of(const FeatureStrides& strides, int64_t width) {
  return {width, strides.term, strides.pre, strides.post, strides.item};
}

unsigned narrow(const KernelRequest& request, int64_t size) {
  if (size > kMostVectors) unsupported(request, "blocks of at most 2^30 elements", std::to_string(size));
  return static_cast<unsigned>(size);
}

StageGeometry geometry_of(const KernelRequest& request, const Stage& stage, bool round) {
  StageGeometry made;
  made.in = features_of(stage.in, stage.in_features);
  made.out = features_of(stage.out, stage.out_features);
  narrow(request, std::max({stage.terms * stage.pre * stage.post, stage.terms * stage.k, stage.m}));
  made.terms = static_cast<unsigned>(stage.terms);
  made.pre = static_cast<unsigned>(stage.pre);
  made.post = static_cast<unsigned>(stage.post);
  made.shared_pre = stage.w_pre == 0 ? made.pre : 1;
  made.summed = stage.sums_terms() ? made.terms : 1;
  made.m = static_cast<unsigned>(stage.m);
  made.k = static_cast<unsigned>(stage.k);
  made.w_term = stage.w_term;
  made.w_pre = stage.w_pre;
  made.w_m = stage.w_m;
  made.w_k = stage.w_k;
  made.round = round;
  return made;
}

/// Stages from x [rows, in] to y [rows, out], the same as ones from dy to dx, and the weight of each.
struct ChainPlan {
  int64_t rows = 0, in = 0, out = 0;
  std::vector<StageGeometry> forward, backward;
  std::vector<size_t> weight_of;
  /// Rows of a range.
  int64_t range = 0;

  size_t stages() const { return forward.size(); }
  int64_t rows_from(int64_t first) const { return std::min(range, rows - first); }
  /// `floats` of scratch memory a row.
  void choose_range(int64_t floats) {
    int64_t vectors = 1;
    for (const StageGeometry& stage : forward) vectors = std::max<int64_t>(vectors, stage.per_row());
    const int64_t affordable = floats == 0 ? rows : kBetweenBytes / (floats * static_cast<int64_t>(sizeof(float)));
    range = std::clamp<int64_t>(std::min(affordable, kMostVectors / vectors), 1, std::max<int64_t>(rows, 1));
  }
};

/// x, the weights and y or dy, which the CPU's kernel has checked.
ChainPlan read_plan(const KernelRequest& request, std::span<const Operand> weights, const Operand& y, ReadChain read) {
  const Operand& x = request.inputs[0];
  const Chain chain = read(request, weights);
  const bool round = request.attributes.has("precision") && request.attributes.text("precision") != "f32";
  ChainPlan plan;
  plan.rows = static_cast<int64_t>(x.shape.count(0, x.shape.rank() - 1));
  plan.in = x.shape.back(0);
  plan.out = y.shape.back(0);
  plan.weight_of = chain.weight_of;
  for (const Stage& stage : chain.stages) {
    plan.forward.push_back(geometry_of(request, stage, round));
    plan.backward.push_back(geometry_of(request, stage.transposed(), round));
  }
  plan.forward.front().in.width = plan.backward.front().out.width = plan.in;
  plan.forward.back().out.width = plan.backward.back().in.width = plan.out;
  return plan;
}

void run_product(const Run& run, const StageGeometry& stage, int64_t rows, const float* in, const float* w,
                 float* out) {
  const auto start = [&](auto* kernel, int64_t tile_rows, int64_t tile_vectors) {
    const int64_t units =
        stage.matrices() / stage.summed * ceil_div(stage.m, tile_rows) * ceil_div(rows * stage.per_row(), tile_vectors);
    launch(run, kernel, {blocks_for(units), kStageThreads}, stage, static_cast<unsigned>(rows), in, w, out);
  };
  if (stage.m <= 8)
    start(multiply_stage<8, 256, 2, 4>, 8, 256);
  else if (stage.m <= 32)
    start(multiply_stage<32, 128, 4, 4>, 32, 128);
  else
    start(multiply_stage<64, 64, 4, 4>, 64, 64);
}

/// Matrices of no more rows or columns than this are differentiated in small tiles.
constexpr unsigned kSmallMatrix = 16;
constexpr unsigned kLargeTile = 64;

StagePieces pieces_of(const StageGeometry& stage, int64_t rows) {
  const unsigned tile = std::min(stage.m, stage.k) <= kSmallMatrix ? kSmallMatrix : kLargeTile;
  const int64_t vectors = rows * stage.per_row();
  const int64_t tiles = stage.matrices() * ceil_div(stage.m, tile) * ceil_div(stage.k, tile);
  const int64_t affordable = kPartsBytes / (stage.weight_size() * static_cast<int64_t>(sizeof(float)));
  const int64_t wanted = std::min(ceil_div(kWantedBlocks, tiles), std::max<int64_t>(1, affordable));
  const int64_t length = std::max(kSmallestPiece, ceil_div(vectors, wanted));
  return {ceil_div(vectors, length), static_cast<unsigned>(length)};
}

/// Of `rows` rows, in the pieces that a whole range of them has.
void run_gradient(const Run& run, const StageGeometry& stage, int64_t range, int64_t rows, const float* in,
                  const float* dout, float* parts, float* dw, bool accumulate) {
  StagePieces pieces = pieces_of(stage, range);
  pieces.count = ceil_div(rows * stage.per_row(), pieces.vectors);
  const bool direct = pieces.count == 1 && !accumulate;
  const auto start = [&](auto* kernel, int64_t tile) {
    const int64_t units = stage.matrices() * ceil_div(stage.m, tile) * ceil_div(stage.k, tile) * pieces.count;
    launch(run, kernel, {blocks_for(units), kStageThreads}, stage, static_cast<unsigned>(rows), pieces, in, dout,
           direct ? dw : parts);
  };
  if (std::min(stage.m, stage.k) <= kSmallMatrix)
    start(differentiate_stage<kSmallMatrix, kSmallMatrix, 1>, kSmallMatrix);
  else
    start(differentiate_stage<kLargeTile, kLargeTile, 4>, kLargeTile);
  if (!direct)
    launch(run, join_pieces, grid_of(stage.weight_size(), kStageThreads), parts, dw, stage.weight_size(), pieces.count,
           accumulate);
}

int64_t aligned_floats(int64_t count) { return ceil_div(count, 64) * 64; }

template <ReadChain kRead>
Kernel compile_chain(const KernelRequest& request) {
  ChainPlan plan = read_plan(request, request.inputs.subspan(1), request.outputs[0], kRead);
  if (plan.rows == 0 || plan.out == 0) return nothing();
  int64_t widest = 0;
  for (size_t i = 0; i + 1 < plan.stages(); ++i) widest = std::max(widest, plan.forward[i].out.width);
  plan.choose_range(2 * widest);
  const int64_t buffer = aligned_floats(plan.range * widest);
  Kernel kernel;
  kernel.scratch_bytes = static_cast<size_t>(2 * buffer) * sizeof(float);
  kernel.run = [plan, buffer](const Run& run) {
    auto* const between = run.scratch_at<float>(0);
    for (int64_t first = 0; first < plan.rows; first += plan.range) {
      const float* from = run.input<float>(0) + first * plan.in;
      for (size_t i = 0; i < plan.stages(); ++i) {
        float* const to = i + 1 == plan.stages() ? run.output<float>(0) + first * plan.out
                                                 : between + static_cast<int64_t>(i % 2) * buffer;
        run_product(run, plan.forward[i], plan.rows_from(first), from, run.input<float>(1 + plan.weight_of[i]), to);
        from = to;
      }
    }
  };
  return kernel;
}

/// Where a gradient keeps what it needs more than once, in floats of its scratch memory.
struct GradientPlan {
  ChainPlan chain;
  /// By stage: whether the weight's gradient is wanted, and where its input stands (not that of the first, which is x).
  std::vector<bool> wanted;
  std::vector<int64_t> inputs;
  bool wants_x = false;
  /// The first stage that any result needs the gradient of.
  size_t last = 0;
  int64_t gradients[2] = {};
  int64_t parts = 0, floats = 0;

  void lay_out() {
    const size_t stages = chain.stages();
    last = 0;
    while (!wants_x && last < stages && !wanted[last]) ++last;
    // Stages up to the last whose weight gradient is wanted have inputs that it is made of.
    inputs.assign(stages, 0);
    size_t kept = stages;
    while (kept > 0 && !wanted[kept - 1]) --kept;
    int64_t per_row = 0, widest = 0;
    for (size_t i = 1; i < kept; ++i) per_row += chain.forward[i].in.width;
    for (size_t i = 1; i < stages; ++i) widest = std::max(widest, chain.forward[i].in.width);
    chain.choose_range(per_row + 2 * widest);
    for (size_t i = 1; i < kept; ++i) inputs[i] = take(chain.range * chain.forward[i].in.width);
    for (int64_t& gradient : gradients) gradient = take(chain.range * widest);
    kept_ = kept;
    int64_t most = 0;
    for (size_t i = 0; i < stages; ++i)
      if (wanted[i]) most = std::max(most, part_floats(i));
    parts = take(most);
  }
  size_t kept() const { return kept_; }

 private:
  int64_t part_floats(size_t stage) const {
    const StageGeometry& shape = chain.forward[stage];
    return pieces_of(shape, chain.range).count * shape.weight_size();
  }
  int64_t take(int64_t count) {
    const int64_t at = floats;
    floats += aligned_floats(count);
    return at;
  }
  size_t kept_ = 0;
};

void run_chain_gradient(const Run& run, const GradientPlan& plan, size_t weights, int64_t first) {
  const ChainPlan& chain = plan.chain;
  const int64_t rows = chain.rows_from(first);
  auto* const scratch = run.scratch_at<float>(0);
  const auto weight = [&](size_t stage) { return run.input<float>(1 + chain.weight_of[stage]); };
  const auto input = [&](size_t stage) -> const float* {
    return stage == 0 ? run.input<float>(0) + first * chain.in : scratch + plan.inputs[stage];
  };
  for (size_t i = 0; i + 1 < plan.kept(); ++i)
    run_product(run, chain.forward[i], rows, input(i), weight(i), scratch + plan.inputs[i + 1]);
  const float* gradient = run.input<float>(1 + weights) + first * chain.out;
  for (size_t i = chain.stages(); i-- > plan.last;) {
    if (plan.wanted[i])
      run_gradient(run, chain.forward[i], chain.range, rows, input(i), gradient, scratch + plan.parts,
                   run.output<float>(1 + chain.weight_of[i]), first > 0);
    if (i == plan.last && !plan.wants_x) return;
    float* const to = i == 0 ? run.output<float>(0) + first * chain.in : scratch + plan.gradients[i % 2];
    run_product(run, chain.backward[i], rows, gradient, weight(i), to);
    gradient = to;
  }
}

/// Zeros in all outputs.
Kernel zeros(const KernelRequest& request) {
  std::vector<size_t> bytes;
  for (const Operand& output : request.outputs) bytes.push_back(output.present ? output.shape.bytes(output.dtype) : 0);
  return {.run = [bytes](const Run& run) {
    for (size_t i = 0; i < bytes.size(); ++i)
      if (bytes[i] > 0) check(cudaMemsetAsync(run.out[i], 0, bytes[i], run.stream), run.report.operation);
  }};
}

template <ReadChain kRead>
Kernel compile_chain_vjp(const KernelRequest& request) {
  const size_t weights = request.inputs.size() - 2;
  GradientPlan plan;
  plan.chain = read_plan(request, request.inputs.subspan(1, weights), request.inputs.back(), kRead);
  if (plan.chain.rows == 0 || plan.chain.in == 0 || plan.chain.out == 0) return zeros(request);
  plan.wants_x = request.outputs[0].present;
  for (const size_t weight : plan.chain.weight_of) plan.wanted.push_back(request.outputs[1 + weight].present);
  plan.lay_out();
  Kernel kernel;
  kernel.scratch_bytes = static_cast<size_t>(plan.floats) * sizeof(float);
  kernel.run = [plan, weights](const Run& run) {
    for (int64_t first = 0; first < plan.chain.rows; first += plan.chain.range)
      run_chain_gradient(run, plan, weights, first);
  };
  return kernel;
}

}  // namespace

void register_chains(KernelTable& table) {
  table["block_diagonal"] = compile_chain<read_block_diagonal>;
  table["block_diagonal_vjp"] = compile_chain_vjp<read_block_diagonal>;
  table["kronecker"] = compile_chain<read_kronecker>;
  table["kronecker_vjp"] = compile_chain_vjp<read_kronecker>;
  table["monarch"] = compile_chain<read_monarch>;
  table["monarch_vjp"] = compile_chain_vjp<read_monarch>;
}

}  // namespace heddle::cuda
