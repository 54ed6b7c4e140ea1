// y = alpha * a @ b + c over tiles of y. Three plans, chosen by shape alone, so that results do not depend on threads:
// a frozen b is packed once and shared; any other b [k, n] is used as it lies; and batches run item by item. With
// precision "stored" few rows are multiplied with the blocks of the file, and anything else in bf16.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "kernels/kernel_table.h"
#include "kernels/matmul_f64.h"
#include "kernels/matrix_plan.h"
#include "kernels/rows.h"
#include "kernels/thin_plan.h"
#include "quant/block_matrix.h"

namespace heddle {
namespace {

/// Checks the operands and flattens leading dimensions.
Problem read_problem(const KernelRequest& request) {
  request.check(request.inputs.size() == 2 || request.inputs.size() == 3, "2 or 3 inputs",
                std::to_string(request.inputs.size()));
  request.check(request.outputs.size() == 1 && request.outputs[0].present, "1 output",
                std::to_string(request.outputs.size()));
  const Operand& a = request.inputs[0];
  const Operand& b = request.inputs[1];
  const Operand& y = request.outputs[0];
  for (const Operand* operand : {&a, &b}) {
    request.check(operand->present, "a and b", "an absent operand");
    const bool known = y.dtype == DType::kF64 ? operand->dtype == DType::kF64
                                              : operand->dtype == DType::kF32 || operand->dtype == DType::kBF16;
    if (!known)
      throw Error(ErrorCode::kDtype, std::string(request.op), y.dtype == DType::kF64 ? "f64" : "f32 or bf16",
                  dtype_name(operand->dtype));
    request.check(operand->shape.rank() >= 2, "rank 2 at least", operand->shape.str());
  }
  if (y.dtype != DType::kF32 && y.dtype != DType::kF64)
    throw Error(ErrorCode::kDtype, std::string(request.op), "f32 or f64", dtype_name(y.dtype));

  Problem problem;
  problem.transpose_a = request.attributes.integer("transpose_a", 0) != 0;
  problem.transpose_b = request.attributes.integer("transpose_b", 0) != 0;
  problem.exact_alpha = request.attributes.number("alpha", 1.0);
  problem.alpha = static_cast<float>(problem.exact_alpha);
  // oneDNN gives some NaNs a meaning of their own.
  request.check(std::isfinite(problem.alpha), "a finite alpha", std::to_string(problem.alpha));
  problem.precision = request.attributes.has("precision")
                          ? precision_from_name(request.attributes.text("precision"), request.op)
                          : Precision::kF32;

  const size_t rank = a.shape.rank();
  problem.m = a.shape.back(problem.transpose_a ? 0 : 1);
  problem.k = a.shape.back(problem.transpose_a ? 1 : 0);
  problem.n = b.shape.back(problem.transpose_b ? 1 : 0);
  if (y.dtype == DType::kF64) {
    request.check(problem.precision == Precision::kF32, "full precision for f64", "bf16");
  } else {
    problem.form_a = OperandForm::of(a.dtype, problem.precision);
    problem.form_b = OperandForm::of(b.dtype, problem.precision);
  }
  const int64_t inner = b.shape.back(problem.transpose_b ? 0 : 1);
  request.check(inner == problem.k, "k = " + std::to_string(problem.k) + " in b", b.shape.str());
  problem.share_b = b.shape.rank() == 2;
  problem.batch = static_cast<int64_t>(a.shape.count(0, rank - 2));
  if (!problem.share_b) {
    const auto leading = a.shape.dims().first(rank - 2);
    const bool same = b.shape.rank() == rank && std::equal(leading.begin(), leading.end(), b.shape.dims().begin());
    request.check(same, "a matrix, or the leading dimensions of a " + a.shape.str(), b.shape.str());
  }

  std::array<int64_t, Shape::kMaxRank> dims{};
  std::copy_n(a.shape.dims().begin(), rank, dims.begin());
  dims[rank - 2] = problem.m;
  dims[rank - 1] = problem.n;
  const Shape expected(std::span<const int64_t>(dims.data(), rank));
  request.check(y.shape == expected, "output " + expected.str(), y.shape.str());

  if (request.inputs.size() == 3 && request.inputs[2].present) {
    const Operand& c = request.inputs[2];
    if (c.dtype != y.dtype)
      throw Error(ErrorCode::kDtype, std::string(request.op), dtype_name(y.dtype), dtype_name(c.dtype));
    problem.addend = c.shape == expected ? Addend::kFull : Addend::kBias;
    request.check(c.shape == expected || c.shape == Shape{problem.n}, "c " + expected.str() + " or [n]", c.shape.str());
  }
  if (problem.share_b && !problem.transpose_a) {
    problem.m *= problem.batch;
    problem.batch = 1;
  }
  if (problem.batch == 1) problem.share_b = false;
  return problem;
}

/// k = 0: the product is zero. c is null when nothing is added.
void run_empty_sum(const Problem& problem, const float* c, float* y) {
  const int64_t rows = problem.batch * problem.m;
  if (c == nullptr)
    std::memset(y, 0, rows * problem.n * sizeof(float));
  else
    place_addend(problem, c, y, 0, rows, 0, problem.n);
}

/// Independent products: several items per call where they are small, tiles of rows where they are large.
class BatchPlan {
 public:
  explicit BatchPlan(const Problem& problem);

  size_t scratch_per_thread() const { return shared_.scratch_bytes() + aligned(workspace_bytes_); }
  void run(const RunArguments& args) const;

 private:
  Problem problem_;
  int64_t tile_items_ = 1;
  int64_t tile_rows_ = 0;
  int64_t item_tiles_ = 0;
  int64_t row_tiles_ = 0;
  SharedCopies shared_;
  size_t shared_a_ = 0;
  size_t shared_b_ = 0;
  size_t workspace_bytes_ = 0;
  /// By whether the tile is the last one along the batch, and the last one down.
  std::array<std::array<std::shared_ptr<const Product>, 2>, 2> products_;
};

BatchPlan::BatchPlan(const Problem& problem) : problem_(problem) {
  const double flops =
      2.0 * static_cast<double>(problem.m) * static_cast<double>(problem.n) * static_cast<double>(problem.k);
  tile_rows_ = problem.transpose_a ? problem.m : std::min<int64_t>(problem.m, 128);
  row_tiles_ = ceil_div(problem.m, tile_rows_);
  if (row_tiles_ == 1) {
    const double items = std::clamp(static_cast<double>(kCallFlops) / flops, 1.0, 1.0e6);
    tile_items_ = std::min({static_cast<int64_t>(items), problem.batch, ceil_div(problem.batch, kWantedTiles)});
    tile_items_ = std::max<int64_t>(1, tile_items_);
  }
  item_tiles_ = ceil_div(problem.batch, tile_items_);
  const size_t batch = problem.batch;
  const size_t b_items = problem.share_b ? 1 : batch;
  if (problem.form_a.converts())
    shared_a_ = shared_.add(0, problem.form_a, checked_mul(batch, problem.m * problem.k, "matmul"));
  if (problem.form_b.converts())
    shared_b_ = shared_.add(1, problem.form_b, checked_mul(b_items, problem.k * problem.n, "matmul"));
  for (const int last_item : {0, 1}) {
    for (const int last_row : {0, 1}) {
      const ProductShape shape{
          .dtype = problem.form_a.to,
          .batch = last_item ? problem.batch - (item_tiles_ - 1) * tile_items_ : tile_items_,
          .m = last_row ? problem.m - (row_tiles_ - 1) * tile_rows_ : tile_rows_,
          .n = problem.n,
          .k = problem.k,
          .transpose_a = problem.transpose_a,
          .transpose_b = problem.transpose_b,
          .share_b = problem.share_b,
          .accumulate = problem.addend != Addend::kNone,
          .alpha = problem.alpha,
      };
      products_[last_item][last_row] = Product::get(shape);
      workspace_bytes_ = std::max(workspace_bytes_, products_[last_item][last_row]->workspace_bytes());
    }
  }
}

void BatchPlan::run(const RunArguments& args) const {
  RunBuffer spill;
  const std::byte* copies = shared_.fill(args, spill);
  const size_t size = dtype_size(problem_.form_a.to);
  const auto* a = problem_.form_a.converts() ? copies + shared_a_ : args.input<std::byte>(0);
  const auto* b = problem_.form_b.converts() ? copies + shared_b_ : args.input<std::byte>(1);
  const float* c = problem_.addend == Addend::kNone ? nullptr : args.input<float>(2);
  float* y = args.output<float>(0);
  args.pool.run(item_tiles_ * row_tiles_, [&](size_t tile, size_t thread) {
    const int64_t item_tile = static_cast<int64_t>(tile) / row_tiles_;
    const int64_t row_tile = static_cast<int64_t>(tile) % row_tiles_;
    const int64_t item = item_tile * tile_items_;
    const int64_t items = std::min(tile_items_, problem_.batch - item);
    const int64_t row0 = item * problem_.m + row_tile * tile_rows_;
    const int64_t rows =
        row_tiles_ == 1 ? items * problem_.m : std::min(tile_rows_, problem_.m - row_tile * tile_rows_);
    if (c != nullptr) place_addend(problem_, c, y, row0, rows, 0, problem_.n);
    const int64_t b_offset = problem_.share_b ? 0 : item * problem_.k * problem_.n;
    products_[item_tile + 1 == item_tiles_][row_tile + 1 == row_tiles_]->run(
        a + row0 * problem_.k * size, b + b_offset * size, nullptr, y + row0 * problem_.n,
        args.thread_scratch<std::byte>(thread) + shared_.scratch_bytes());
  });
}

/// Few rows times a frozen matrix in quantised blocks.
class BlockPlan {
 public:
  // Up to so many rows the blocks are read and unpacked for less than bf16 panels, of four times their size.
  static constexpr int64_t kMaxRows = 32;

  static bool fits(const Problem& problem, const KernelRequest& request) {
    const Operand& b = request.inputs[1];
    return request.attributes.has("precision") && request.attributes.text("precision") == "stored" && b.frozen &&
           problem.batch == 1 && problem.m <= kMaxRows && problem.transpose_b && !problem.transpose_a &&
           problem.form_a.from == DType::kF32 && BlockMatrix::fits(*b.frozen, problem.n, problem.k);
  }

  BlockPlan(const Problem& problem, std::shared_ptr<const BlockMatrix> matrix)
      : problem_(problem),
        matrix_(std::move(matrix)),
        panels_per_tile_(2 * std::max<size_t>(1, kTileCodes / (2 * kBlockPanelRows * matrix_->panels().k))) {}

  size_t scratch_per_thread() const { return BlockRows16::bytes(problem_.m, problem_.k); }

  void run(const RunArguments& args) const {
    const auto rows = static_cast<size_t>(problem_.m);
    const BlockPanels& w = matrix_->panels();
    const float* c = problem_.addend == Addend::kNone ? nullptr : args.input<float>(2);
    float* y = args.output<float>(0);
    const BlockRows16 x = BlockRows16::at(args.scratch, rows, w.k);
    for_row_ranges(args.pool, rows, rows_per_tile(w.k), [&](size_t first, size_t last) {
      round_rows_to_16_bits(args.input<float>(0) + first * w.k, last - first, w.k, x.from(first, w.k));
    });
    const size_t tiles = ceil_div(w.panels(), panels_per_tile_);
    const size_t lines = count_lines(args.ahead);
    args.pool.run(tiles, [&](size_t tile, size_t) {
      const size_t first = tile * panels_per_tile_;
      const size_t last = std::min(first + panels_per_tile_, w.panels());
      multiply_panels(w, {first, last, args.ahead, lines * tile / tiles, lines * (tile + 1) / tiles},
                      {x, rows, problem_.alpha, c, problem_.addend == Addend::kFull}, y);
    });
  }

 private:
  // Weights of one tile: a few microseconds of work.
  static constexpr size_t kTileCodes = size_t{1} << 16;

  Problem problem_;
  std::shared_ptr<const BlockMatrix> matrix_;
  size_t panels_per_tile_;
};

template <class Plan>
CompiledKernel compiled(std::shared_ptr<const Plan> plan, const Problem& problem) {
  CompiledKernel kernel;
  kernel.scratch_per_thread = plan->scratch_per_thread();
  kernel.run = [plan = std::move(plan)](const RunArguments& args) { plan->run(args); };
  if (problem.addend == Addend::kFull) kernel.in_place = {{2, 0}};
  return kernel;
}

CompiledKernel compile_matmul(const KernelRequest& request) {
  const Problem problem = read_problem(request);
  const bool has_addend = problem.addend != Addend::kNone;
  if (request.outputs[0].dtype == DType::kF64) return compile_matmul_f64(problem);
  if (problem.batch == 0 || problem.m == 0 || problem.n == 0) return {.run = [](const RunArguments&) {}};
  if (problem.k == 0) {
    CompiledKernel kernel;
    kernel.run = [problem, has_addend](const RunArguments& args) {
      run_empty_sum(problem, has_addend ? args.input<float>(2) : nullptr, args.output<float>(0));
    };
    if (problem.addend == Addend::kFull) kernel.in_place = {{2, 0}};
    return kernel;
  }
  if (problem.batch > 1) return compiled(std::make_shared<const BatchPlan>(problem), problem);
  if (ThinPlan::fits(problem)) return compiled(std::make_shared<const ThinPlan>(problem), problem);
  const Operand& b = request.inputs[1];
  if (BlockPlan::fits(problem, request)) {
    auto blocks = BlockMatrix::of_frozen(b.frozen, problem.n, problem.k);
    CompiledKernel kernel = compiled(std::make_shared<const BlockPlan>(problem, std::move(blocks)), problem);
    kernel.consumed_inputs = {1};
    return kernel;
  }
  if (!b.frozen) return compiled(std::make_shared<const MatrixPlan>(problem, nullptr), problem);
  const MatrixSource source{.dtype = b.dtype, .k = problem.k, .n = problem.n, .transposed = problem.transpose_b};
  auto packed =
      PackedMatrix::of_frozen(b.frozen, source, problem.precision, problem.k, PackedMatrix::column_block(problem.n),
                              packing_for(problem.m, problem.k, problem.n));
  CompiledKernel kernel = compiled(std::make_shared<const MatrixPlan>(problem, std::move(packed)), problem);
  kernel.consumed_inputs = {1};
  return kernel;
}

}  // namespace

void register_matmul(KernelTable& table) { table.emplace("matmul", compile_matmul); }

}  // namespace heddle
