// Cross-entropy of a linear head, nll[i] = logsumexp(x[i] @ w^T) - (x[i] @ w^T)[target[i]], without ever holding the
// logits [n, v]: a tile of rows (or of the vocabulary) at a time. Rows whose target is -100 are left out of the work,
// not only of the result.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/kernel_table.h"
#include "kernels/loss_head.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using VF = hn::Vec<F>;

/// Takes `count` logits into a running maximum and sum of exp(logit - maximum), and leaves exp(logit - maximum), with
/// the new maximum, in their place.
void exp_and_sum(float* logits, size_t count, float* maximum, float* sum) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  VF top = hn::Set(f, *maximum);
  size_t at = 0;
  for (; at + lanes <= count; at += lanes) top = hn::Max(top, hn::LoadU(f, logits + at));
  float new_maximum = hn::GetLane(hn::MaxOfLanes(f, top));
  for (; at < count; ++at) new_maximum = std::max(new_maximum, logits[at]);

  const VF shift = hn::Set(f, new_maximum);
  VF total = hn::Zero(f);
  for (at = 0; at + lanes <= count; at += lanes) {
    const VF term = vector_exp(f, hn::Sub(hn::LoadU(f, logits + at), shift));
    total = hn::Add(total, term);
    hn::StoreU(term, f, logits + at);
  }
  float added = hn::GetLane(hn::SumOfLanes(f, total));
  for (; at < count; ++at) {
    logits[at] = std::exp(logits[at] - new_maximum);
    added += logits[at];
  }
  // The first chunk meets a maximum of minus infinity and a sum of zero.
  *sum = (*sum == 0.0F ? 0.0F : *sum * std::exp(*maximum - new_maximum)) + added;
  *maximum = new_maximum;
}

void scale_row(float* row, size_t count, float factor) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  const VF by = hn::Set(f, factor);
  size_t at = 0;
  for (; at + lanes <= count; at += lanes) hn::StoreU(hn::Mul(by, hn::LoadU(f, row + at)), f, row + at);
  for (; at < count; ++at) row[at] *= factor;
}

/// row[i] = scale * exp(row[i] - lse)
void softmax_row(float* row, size_t count, float lse, float scale) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  const VF shift = hn::Set(f, lse);
  const VF factor = hn::Set(f, scale);
  size_t at = 0;
  for (; at + lanes <= count; at += lanes)
    hn::StoreU(hn::Mul(factor, vector_exp(f, hn::Sub(hn::LoadU(f, row + at), shift))), f, row + at);
  for (; at < count; ++at) row[at] = scale * std::exp(row[at] - lse);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heddle {
namespace {

HWY_EXPORT(exp_and_sum);
HWY_EXPORT(scale_row);
HWY_EXPORT(softmax_row);

constexpr int32_t kIgnored = -100;
// Rows of a tile, where there are enough for tiles of so many: both forms of the head pass through the caches once a
// tile.
constexpr int64_t kTileRows = 64;
constexpr int64_t kLargeTileRows = 128;
// Spreading a compact head out anew costs less than a hundredth of the products of so many rows.
constexpr int64_t kCompactRows = 512;
// Rows that one product of dw sums over: enough that dw's own traffic does not count.
constexpr int64_t kSumRows = 256;

size_t aligned(size_t bytes) { return checked_add(bytes, 63, "linear_cross_entropy") / 64 * 64; }

void expect(const KernelRequest& request, const Operand& operand, DType dtype, const Shape& shape, const char* name) {
  request.check(operand.present, name, "an absent operand");
  if (operand.dtype != dtype)
    throw Error(ErrorCode::kDtype, std::string(request.op), std::string(name) + " " + dtype_name(dtype),
                dtype_name(operand.dtype));
  request.check(operand.shape == shape, std::string(name) + " " + shape.str(), operand.shape.str());
}

/// Checks x, w and targets, which both kernels start with.
LossProblem read_problem(const KernelRequest& request) {
  const Operand& x = request.inputs[0];
  const Operand& w = request.inputs[1];
  request.check(x.present && x.shape.rank() == 2, "x [n, d]", x.shape.str());
  request.check(w.present && w.shape.rank() == 2, "w [v, d]", w.shape.str());
  LossProblem problem;
  problem.n = x.shape[0];
  problem.d = x.shape[1];
  problem.v = w.shape[0];
  request.check(problem.d > 0 && problem.v > 0, "w [v, d] with v, d > 0", w.shape.str());
  expect(request, x, DType::kF32, x.shape, "x");
  expect(request, w, DType::kF32, Shape{problem.v, problem.d}, "w");
  expect(request, request.inputs[2], DType::kI32, Shape{problem.n}, "targets");
  problem.width = std::min(problem.v, PackedMatrix::column_block(problem.v));
  problem.chunks = (problem.v + problem.width - 1) / problem.width;
  problem.precision = request.attributes.has("precision")
                          ? precision_from_name(request.attributes.text("precision"), request.op)
                          : Precision::kF32;
  problem.form = OperandForm::of(DType::kF32, problem.precision);
  problem.element = dtype_size(problem.form.to);
  return problem;
}

/// Rows that count, in order. Throws kArgument on a target outside the vocabulary.
std::vector<int64_t> counted_rows(const LossProblem& problem, const int32_t* targets, const char* place) {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < problem.n; ++row) {
    if (targets[row] == kIgnored) continue;
    require(targets[row] >= 0 && targets[row] < problem.v, ErrorCode::kArgument, place,
            "targets of -100, or of 0 up to the size of the vocabulary",
            std::to_string(targets[row]) + " in row " + std::to_string(row));
    rows.push_back(row);
  }
  return rows;
}

/// Copies the given rows of x in the product's form; rows that are missing up to `padded` become zero.
void gather(const LossProblem& problem, const float* x, std::span<const int64_t> rows, int64_t padded,
            std::byte* target) {
  const size_t row_bytes = problem.d * problem.element;
  for (size_t i = 0; i < rows.size(); ++i)
    convert_rows(problem.form, x + rows[i] * problem.d, problem.d, 1, problem.d, target + i * row_bytes);
  std::memset(target + rows.size() * row_bytes, 0, (padded - rows.size()) * row_bytes);
}

/// What a row contributes: scale * (softmax - onehot).
struct RowTerm {
  float lse;
  float scale;
  int32_t target;
};

/// The first `count` rows of values [padded, width] in the product's form, at `converted` if that differs, and zeros
/// below them. Returns where they lie.
const std::byte* product_rows(const LossProblem& problem, int64_t width, size_t count, int64_t padded, float* values,
                              std::byte* converted) {
  const bool converts = problem.form.converts();
  if (converts) convert_rows(problem.form, values, width, count, width, converted);
  std::byte* result = converts ? converted : reinterpret_cast<std::byte*>(values);
  const size_t row_bytes = width * problem.element;
  std::memset(result + count * row_bytes, 0, (padded - count) * row_bytes);
  return result;
}

/// Turns a chunk's logits [padded, width], with lse known, into the gradient with respect to them.
void logit_gradient(const LossProblem& problem, int64_t chunk, std::span<const RowTerm> terms, float* values) {
  const int64_t width = problem.chunk_width(chunk);
  for (size_t i = 0; i < terms.size(); ++i) {
    float* row = values + i * width;
    HWY_DYNAMIC_DISPATCH(softmax_row)(row, width, terms[i].lse, terms[i].scale);
    const int64_t at = terms[i].target - chunk * problem.width;
    if (at >= 0 && at < width) row[at] -= terms[i].scale;
  }
}

/// A product for chunks of full width and one for the last chunk.
using ChunkProducts = std::array<std::shared_ptr<const Product>, 2>;

/// logits [rows, width] = x @ w^T
ChunkProducts logit_products(const LossProblem& problem, int64_t rows) {
  ChunkProducts products;
  for (const int last : {0, 1})
    products[last] = Product::get({.dtype = problem.form.to,
                                   .m = rows,
                                   .n = problem.chunk_width(last ? problem.chunks - 1 : 0),
                                   .k = problem.d,
                                   .packed_b = true});
  return products;
}

/// dx [rows, d] (+)= p @ w
ChunkProducts row_gradient_products(const LossProblem& problem, int64_t rows, bool accumulate) {
  ChunkProducts products;
  for (const int last : {0, 1})
    products[last] = Product::get({.dtype = problem.form.to,
                                   .m = rows,
                                   .n = problem.d,
                                   .k = problem.chunk_width(last ? problem.chunks - 1 : 0),
                                   .packed_b = true,
                                   .accumulate = accumulate});
  return products;
}

/// dw [width, d] (+)= p^T @ x
ChunkProducts weight_gradient_products(const LossProblem& problem, int64_t rows, bool accumulate) {
  ChunkProducts products;
  for (const int last : {0, 1})
    products[last] = Product::get({.dtype = problem.form.to,
                                   .m = problem.chunk_width(last ? problem.chunks - 1 : 0),
                                   .n = problem.d,
                                   .k = rows,
                                   .transpose_a = true,
                                   .accumulate = accumulate});
  return products;
}

size_t workspace_of(std::initializer_list<const ChunkProducts*> all) {
  size_t bytes = 0;
  for (const ChunkProducts* products : all)
    for (const auto& product : *products) bytes = std::max(bytes, product->workspace_bytes());
  return aligned(bytes);
}

/// Everything that happens to one tile of rows: logits chunk by chunk, and dx from what becomes of them.
class RowTiles {
 public:
  RowTiles(const LossProblem& problem, bool with_gradient)
      : problem_(problem),
        rows_(std::clamp<int64_t>(problem.n, 1, problem.n >= 8 * kLargeTileRows ? kLargeTileRows : kTileRows)) {
    logits_ = logit_products(problem, rows_);
    workspace_bytes_ = workspace_of({&logits_});
    x_bytes_ = aligned(rows_ * problem.d * problem.element);
    value_bytes_ = aligned(checked_mul(checked_mul(rows_, problem.width, "logits"), sizeof(float), "logits"));
    if (!with_gradient) return;
    first_ = row_gradient_products(problem, rows_, false);
    next_ = row_gradient_products(problem, rows_, true);
    workspace_bytes_ = std::max(workspace_bytes_, workspace_of({&first_, &next_}));
    p_bytes_ = problem.form.converts() ? aligned(rows_ * problem.width * problem.element) : 0;
    dx_bytes_ = aligned(rows_ * problem.d * sizeof(float));
  }

  size_t scratch_bytes() const {
    return checked_add(x_bytes_ + p_bytes_ + dx_bytes_ + workspace_bytes_, value_bytes_, "logits");
  }
  int64_t rows() const { return rows_; }
  size_t count(size_t rows) const { return (rows + rows_ - 1) / rows_; }

  void gather_tile(const float* x, std::span<const int64_t> rows, std::byte* scratch) const {
    gather(problem_, x, rows, rows_, scratch);
  }

  /// Values = x @ w^T for one chunk's block of w^T.
  void compute_logits(const dnnl::memory& block, int64_t chunk, std::byte* scratch) const {
    logits_[chunk + 1 == problem_.chunks]->run(scratch, block, nullptr, values(scratch), workspace(scratch));
  }

  /// dx [rows, d] (+)= values @ w, over the first `count` rows of the chunk's values (which it may overwrite).
  void add_gradient(const dnnl::memory& block, int64_t chunk, size_t count, float* dx, std::byte* scratch) const {
    const std::byte* p =
        product_rows(problem_, problem_.chunk_width(chunk), count, rows_, values(scratch), scratch + x_bytes_);
    const ChunkProducts& products = chunk == 0 ? first_ : next_;
    products[chunk + 1 == problem_.chunks]->run(p, block, nullptr, dx, workspace(scratch));
  }

  /// A chunk's logits [rows, width], then what becomes of them.
  float* values(std::byte* scratch) const { return reinterpret_cast<float*>(workspace(scratch) + workspace_bytes_); }
  /// Room for a tile's dx [rows, d].
  float* dx(std::byte* scratch) const { return reinterpret_cast<float*>(scratch + x_bytes_ + p_bytes_); }

 private:
  std::byte* workspace(std::byte* scratch) const { return scratch + x_bytes_ + p_bytes_ + dx_bytes_; }

  LossProblem problem_;
  int64_t rows_;
  ChunkProducts logits_;
  ChunkProducts first_;
  ChunkProducts next_;
  size_t x_bytes_ = 0;
  size_t p_bytes_ = 0;
  size_t dx_bytes_ = 0;
  size_t workspace_bytes_ = 0;
  size_t value_bytes_ = 0;
};

std::span<const int64_t> tile_rows(const std::vector<int64_t>& rows, size_t tile, int64_t height) {
  return std::span(rows).subspan(tile * height, std::min<size_t>(height, rows.size() - tile * height));
}

/// The softmax of a tile's rows as far as chunks have come in.
struct RunningSoftmax {
  std::array<float, kLargeTileRows> maximum;
  std::array<float, kLargeTileRows> sum{};
  std::array<float, kLargeTileRows> target_logit{};

  RunningSoftmax() { maximum.fill(-std::numeric_limits<float>::infinity()); }
  float lse(size_t i) const { return maximum[i] + std::log(sum[i]); }
};

/// Takes a chunk's logits in and leaves exp(logit - maximum) in their place, but 0 for targets: their share of dx is
/// added in the end, unrounded. `dx` [rows, d], so far relative to the old maximum (null if not wanted), follows.
void take_chunk(const LossProblem& problem, int64_t chunk, std::span<const int32_t> targets, float* values, float* dx,
                RunningSoftmax& state) {
  const int64_t width = problem.chunk_width(chunk);
  for (size_t i = 0; i < targets.size(); ++i) {
    float* row = values + i * width;
    const int64_t at = targets[i] - chunk * problem.width;
    const bool has_target = at >= 0 && at < width;
    if (has_target) state.target_logit[i] = row[at];
    const float before = state.maximum[i];
    HWY_DYNAMIC_DISPATCH(exp_and_sum)(row, width, &state.maximum[i], &state.sum[i]);
    if (has_target) row[at] = 0.0F;
    if (dx != nullptr && chunk > 0 && state.maximum[i] != before)
      HWY_DYNAMIC_DISPATCH(scale_row)(dx + i * problem.d, problem.d, std::exp(before - state.maximum[i]));
  }
}

/// d nll / dx of one row, from its sum over the vocabulary without the target: sum / norm + (p - 1) * w[target].
void finish_gradient(std::span<const float> sum, float norm, float p, std::span<const float> target, float* dx) {
  for (size_t j = 0; j < sum.size(); ++j) dx[j] = sum[j] / norm + (p - 1.0F) * target[j];
}

/// One run of linear_cross_entropy. The gradient is summed along with the softmax (Milakov & Gimelshein 2018, Dao et
/// al. 2022), so that no logits have to be kept.
class ForwardRun {
 public:
  ForwardRun(const LossProblem& problem, const RowTiles& tiles, const PackedHead& head, std::span<const int64_t> rows,
             const RunArguments& args)
      : problem_(problem),
        tiles_(tiles),
        head_(head),
        rows_(rows),
        args_(args),
        count_(tiles.count(rows.size())),
        groups_(head, problem.chunks),
        states_(count_),
        sums_(args.out[2] == nullptr ? 0 : checked_mul(count_, tiles.rows() * problem.d * sizeof(float), "dx")) {}

  void run() {
    for (int64_t first = 0; first < problem_.chunks; first += groups_.size()) {
      groups_.load(args_.pool, first);
      const int64_t end = std::min(problem_.chunks, first + groups_.size());
      args_.pool.run(count_, [&](size_t tile, size_t thread) {
        run_chunks(tile, first, end, args_.thread_scratch<std::byte>(thread));
        if (end == problem_.chunks) finish(tile);
      });
    }
  }

 private:
  std::span<const int64_t> rows_of(size_t tile) const {
    const size_t first = tile * tiles_.rows();
    return rows_.subspan(first, std::min<size_t>(tiles_.rows(), rows_.size() - first));
  }

  float* sums_of(size_t tile) const {
    return sums_.size() == 0 ? nullptr : reinterpret_cast<float*>(sums_.data()) + tile * tiles_.rows() * problem_.d;
  }

  int32_t target(int64_t row) const { return args_.input<int32_t>(2)[row]; }

  void run_chunks(size_t tile, int64_t first, int64_t end, std::byte* scratch) {
    const std::span<const int64_t> rows = rows_of(tile);
    std::array<int32_t, kLargeTileRows> targets{};
    std::transform(rows.begin(), rows.end(), targets.begin(), [&](int64_t row) { return target(row); });
    tiles_.gather_tile(args_.input<float>(0), rows, scratch);
    for (int64_t chunk = first; chunk < end; ++chunk) {
      tiles_.compute_logits(groups_.logits(chunk), chunk, scratch);
      take_chunk(problem_, chunk, std::span(targets).first(rows.size()), tiles_.values(scratch), sums_of(tile),
                 states_[tile]);
      if (sums_.size() != 0) tiles_.add_gradient(groups_.gradient(chunk), chunk, rows.size(), sums_of(tile), scratch);
    }
  }

  void finish(size_t tile) {
    const RunningSoftmax& state = states_[tile];
    const std::span<const int64_t> rows = rows_of(tile);
    std::vector<float> w_target(sums_.size() == 0 ? 0 : problem_.d);
    for (size_t i = 0; i < rows.size(); ++i) {
      const float lse = state.lse(i);
      args_.output<float>(0)[rows[i]] = lse - state.target_logit[i];
      if (args_.out[1] != nullptr) args_.output<float>(1)[rows[i]] = lse;
      if (w_target.empty()) continue;
      head_.gradient->copy_row(target(rows[i]), w_target);
      finish_gradient({sums_of(tile) + i * problem_.d, w_target.size()}, state.sum[i],
                      std::exp(state.target_logit[i] - lse), w_target, args_.output<float>(2) + rows[i] * problem_.d);
    }
  }

  const LossProblem& problem_;
  const RowTiles& tiles_;
  const PackedHead& head_;
  std::span<const int64_t> rows_;
  const RunArguments& args_;
  size_t count_;
  HeadGroups groups_;
  std::vector<RunningSoftmax> states_;
  /// dx of every tile as far as chunks have come in.
  AlignedBuffer sums_;
};

CompiledKernel compile_linear_cross_entropy(const KernelRequest& request) {
  request.expect_counts(3, 3);
  const LossProblem problem = read_problem(request);
  expect(request, request.outputs[0], DType::kF32, Shape{problem.n}, "nll");
  if (request.outputs[1].present) expect(request, request.outputs[1], DType::kF32, Shape{problem.n}, "lse");
  const bool wants_dx = request.outputs[2].present;
  if (wants_dx) expect(request, request.outputs[2], DType::kF32, request.inputs[0].shape, "dx");

  const RowTiles tiles(problem, wants_dx);
  const std::shared_ptr<Storage>& frozen = request.inputs[1].frozen;
  CompiledKernel kernel;
  kernel.scratch_per_thread = tiles.scratch_bytes();
  if (frozen) kernel.consumed_inputs = {1};
  const Packing packing = problem.n >= kCompactRows ? Packing::kCompact : Packing::kPlain;
  const PackedHead packed = frozen ? PackedHead::of_frozen(problem, frozen, wants_dx, packing) : PackedHead{};
  kernel.run = [problem, tiles, packed](const RunArguments& args) {
    const auto rows = counted_rows(problem, args.input<int32_t>(2), "linear_cross_entropy");
    const size_t wanted = args.out[2] != nullptr ? problem.n * problem.d * sizeof(float) : 0;
    // Rows that do not count keep these zeros.
    std::memset(args.out[0], 0, problem.n * sizeof(float));
    if (args.out[1] != nullptr) std::memset(args.out[1], 0, problem.n * sizeof(float));
    if (wanted != 0) std::memset(args.out[2], 0, wanted);
    if (rows.empty()) return;
    const PackedHead head = packed.logits ? packed : PackedHead::of_values(problem, args.in[1], wanted != 0);
    ForwardRun(problem, tiles, head, rows, args).run();
  };
  return kernel;
}

/// dw by chunks of the vocabulary: with lse given, a chunk needs nothing from the others.
class VocabularyTiles {
 public:
  explicit VocabularyTiles(const LossProblem& problem)
      : problem_(problem), rows_(std::clamp<int64_t>(problem.n, 1, kSumRows)) {
    logits_ = logit_products(problem, rows_);
    first_ = weight_gradient_products(problem, rows_, false);
    next_ = weight_gradient_products(problem, rows_, true);
    workspace_bytes_ = workspace_of({&logits_, &first_, &next_});
    logit_bytes_ = aligned(rows_ * problem.width * sizeof(float));
    p_bytes_ = problem.form.converts() ? aligned(rows_ * problem.width * problem.element) : 0;
  }

  size_t scratch_bytes() const { return logit_bytes_ + p_bytes_ + workspace_bytes_; }

  /// All counted rows of x in the product's form, padded to whole tiles.
  AlignedBuffer gather_rows(const float* x, const std::vector<int64_t>& rows, TilePool& pool) const {
    const size_t tiles = count(rows.size());
    const size_t tile_bytes = rows_ * problem_.d * problem_.element;
    AlignedBuffer gathered(checked_mul(tiles, tile_bytes, "linear_cross_entropy_vjp"));
    pool.run(tiles, [&](size_t tile, size_t) {
      gather(problem_, x, tile_rows(rows, tile, rows_), rows_, gathered.data() + tile * tile_bytes);
    });
    return gathered;
  }

  void run_chunk(const PackedHead& head, int64_t chunk, const AlignedBuffer& x, std::span<const RowTerm> terms,
                 float* dw, std::byte* scratch) const {
    const bool last = chunk + 1 == problem_.chunks;
    auto* logits = reinterpret_cast<float*>(scratch);
    std::byte* workspace = scratch + logit_bytes_ + p_bytes_;
    for (size_t tile = 0; tile < count(terms.size()); ++tile) {
      const std::byte* tile_x = x.data() + tile * rows_ * problem_.d * problem_.element;
      const size_t begin = tile * rows_;
      logits_[last]->run(tile_x, head.logits->block(0, chunk), nullptr, logits, workspace);
      const auto tile_terms = terms.subspan(begin, std::min<size_t>(rows_, terms.size() - begin));
      logit_gradient(problem_, chunk, tile_terms, logits);
      const std::byte* p =
          product_rows(problem_, problem_.chunk_width(chunk), tile_terms.size(), rows_, logits, scratch + logit_bytes_);
      (tile == 0 ? first_ : next_)[last]->run(p, tile_x, nullptr, dw + chunk * problem_.width * problem_.d, workspace);
    }
  }

 private:
  size_t count(size_t rows) const { return (rows + rows_ - 1) / rows_; }

  LossProblem problem_;
  int64_t rows_;
  ChunkProducts logits_;
  ChunkProducts first_;
  ChunkProducts next_;
  size_t logit_bytes_ = 0;
  size_t p_bytes_ = 0;
  size_t workspace_bytes_ = 0;
};

void run_dx(const LossProblem& problem, const RowTiles& tiles, const PackedHead& head, const std::vector<int64_t>& rows,
            const std::vector<RowTerm>& terms, const RunArguments& args, float* dx) {
  std::memset(dx, 0, problem.n * problem.d * sizeof(float));
  args.pool.run(tiles.count(rows.size()), [&](size_t tile, size_t thread) {
    auto* scratch = args.thread_scratch<std::byte>(thread);
    const auto mine = tile_rows(rows, tile, tiles.rows());
    const auto mine_terms = std::span(terms).subspan(tile * tiles.rows(), mine.size());
    tiles.gather_tile(args.input<float>(0), mine, scratch);
    for (int64_t chunk = 0; chunk < problem.chunks; ++chunk) {
      tiles.compute_logits(head.logits->block(0, chunk), chunk, scratch);
      logit_gradient(problem, chunk, mine_terms, tiles.values(scratch));
      tiles.add_gradient(head.gradient->block(chunk, 0), chunk, mine.size(), tiles.dx(scratch), scratch);
    }
    for (size_t i = 0; i < mine.size(); ++i)
      std::copy_n(tiles.dx(scratch) + i * problem.d, problem.d, dx + mine[i] * problem.d);
  });
}

void run_dw(const LossProblem& problem, const VocabularyTiles& tiles, const PackedHead& head,
            const std::vector<int64_t>& rows, const std::vector<RowTerm>& terms, const RunArguments& args, float* dw) {
  if (rows.empty()) {
    std::memset(dw, 0, problem.v * problem.d * sizeof(float));
    return;
  }
  const AlignedBuffer x = tiles.gather_rows(args.input<float>(0), rows, args.pool);
  args.pool.run(problem.chunks, [&](size_t chunk, size_t thread) {
    tiles.run_chunk(head, static_cast<int64_t>(chunk), x, terms, dw, args.thread_scratch<std::byte>(thread));
  });
}

CompiledKernel compile_linear_cross_entropy_vjp(const KernelRequest& request) {
  request.expect_counts(5, 2);
  const LossProblem problem = read_problem(request);
  expect(request, request.inputs[3], DType::kF32, Shape{problem.n}, "lse");
  expect(request, request.inputs[4], DType::kF32, Shape{problem.n}, "g");
  const bool wants_dx = request.outputs[0].present;
  const bool wants_dw = request.outputs[1].present;
  if (wants_dx) expect(request, request.outputs[0], DType::kF32, request.inputs[0].shape, "dx");
  if (wants_dw) expect(request, request.outputs[1], DType::kF32, request.inputs[1].shape, "dw");

  const auto row_tiles = wants_dx ? std::make_shared<const RowTiles>(problem, true) : nullptr;
  const auto vocabulary_tiles = wants_dw ? std::make_shared<const VocabularyTiles>(problem) : nullptr;
  const std::shared_ptr<Storage>& frozen = request.inputs[1].frozen;
  CompiledKernel kernel;
  kernel.scratch_per_thread =
      std::max(row_tiles ? row_tiles->scratch_bytes() : 0, vocabulary_tiles ? vocabulary_tiles->scratch_bytes() : 0);
  if (frozen) kernel.consumed_inputs = {1};
  const PackedHead packed = frozen ? PackedHead::of_frozen(problem, frozen, wants_dx, Packing::kPlain) : PackedHead{};
  kernel.run = [problem, row_tiles, vocabulary_tiles, packed](const RunArguments& args) {
    const int32_t* targets = args.input<int32_t>(2);
    const auto rows = counted_rows(problem, targets, "linear_cross_entropy_vjp");
    std::vector<RowTerm> terms;
    terms.reserve(rows.size());
    for (const int64_t row : rows)
      terms.push_back({args.input<float>(3)[row], args.input<float>(4)[row], targets[row]});
    const bool packs = !packed.logits && !rows.empty();
    const PackedHead head = packs ? PackedHead::of_values(problem, args.in[1], row_tiles != nullptr) : packed;
    if (row_tiles) run_dx(problem, *row_tiles, head, rows, terms, args, args.output<float>(0));
    if (vocabulary_tiles) run_dw(problem, *vocabulary_tiles, head, rows, terms, args, args.output<float>(1));
  };
  return kernel;
}

}  // namespace

void register_loss(KernelTable& table) {
  table.emplace("linear_cross_entropy", compile_linear_cross_entropy);
  table.emplace("linear_cross_entropy_vjp", compile_linear_cross_entropy_vjp);
}

}  // namespace heddle
#endif  // HWY_ONCE
