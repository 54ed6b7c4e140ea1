// y = alpha * a @ b + c over tiles of y. Three plans, chosen by shape alone, so that results do not depend on threads:
// a frozen b is packed once and shared; any other b [k, n] is used as it lies; and batches run item by item.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "kernels/gemm.h"
#include "kernels/kernel_table.h"

namespace heddle {
namespace {

// Enough tiles that a core which a neighbour slows down costs its share only.
constexpr int64_t kWantedTiles = 16;
// Converted copies of whole operands up to this size lie in the program's scratch memory.
constexpr size_t kScratchLimit = size_t{4} << 20;
// Small products of a batch are joined until a call does about this much work.
constexpr int64_t kCallFlops = int64_t{1} << 21;

enum class Addend { kNone, kFull, kBias };

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t aligned(size_t bytes) { return checked_add(bytes, 63, "matmul") / 64 * 64; }

struct Problem {
  int64_t batch = 1;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  /// One b for the whole batch.
  bool share_b = false;
  Addend addend = Addend::kNone;
  float alpha = 1.0F;
  Precision precision = Precision::kF32;
  OperandForm form_a;
  OperandForm form_b;
};

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
    const bool known = operand->dtype == DType::kF32 || operand->dtype == DType::kBF16;
    if (!known) throw Error(ErrorCode::kDtype, std::string(request.op), "f32 or bf16", dtype_name(operand->dtype));
    request.check(operand->shape.rank() >= 2, "rank 2 at least", operand->shape.str());
  }
  if (y.dtype != DType::kF32) throw Error(ErrorCode::kDtype, std::string(request.op), "f32", dtype_name(y.dtype));

  Problem problem;
  problem.transpose_a = request.attributes.integer("transpose_a", 0) != 0;
  problem.transpose_b = request.attributes.integer("transpose_b", 0) != 0;
  problem.alpha = static_cast<float>(request.attributes.number("alpha", 1.0));
  // oneDNN gives some NaNs a meaning of their own.
  request.check(std::isfinite(problem.alpha), "a finite alpha", std::to_string(problem.alpha));
  problem.precision = request.attributes.has("precision")
                          ? precision_from_name(request.attributes.text("precision"), request.op)
                          : Precision::kF32;
  problem.form_a = OperandForm::of(a.dtype, problem.precision);
  problem.form_b = OperandForm::of(b.dtype, problem.precision);

  const size_t rank = a.shape.rank();
  problem.m = a.shape.back(problem.transpose_a ? 0 : 1);
  problem.k = a.shape.back(problem.transpose_a ? 1 : 0);
  problem.n = b.shape.back(problem.transpose_b ? 1 : 0);
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
    if (c.dtype != DType::kF32) throw Error(ErrorCode::kDtype, std::string(request.op), "f32", dtype_name(c.dtype));
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

/// Fills rows of y with what the product is added to, where that is not already there.
void place_addend(const Problem& problem, const float* c, float* y, int64_t row0, int64_t rows, int64_t col0,
                  int64_t cols) {
  if (c == y) return;
  for (int64_t row = row0; row < row0 + rows; ++row) {
    const float* from = problem.addend == Addend::kFull ? c + row * problem.n + col0 : c + col0;
    std::memcpy(y + row * problem.n + col0, from, cols * sizeof(float));
  }
}

/// k = 0: the product is zero. c is null when nothing is added.
void run_empty_sum(const Problem& problem, const float* c, float* y) {
  const int64_t rows = problem.batch * problem.m;
  if (c == nullptr)
    std::memset(y, 0, rows * problem.n * sizeof(float));
  else
    place_addend(problem, c, y, 0, rows, 0, problem.n);
}

/// Converted copies of whole operands, one behind the other.
class SharedCopies {
 public:
  /// Returns the offset of the copy.
  size_t add(size_t input, const OperandForm& form, size_t count) {
    copies_.push_back({input, form, count, bytes_});
    bytes_ = checked_add(bytes_, aligned(checked_mul(count, dtype_size(form.to), "matmul")), "matmul");
    return copies_.back().offset;
  }

  size_t scratch_bytes() const { return bytes_ <= kScratchLimit ? bytes_ : 0; }

  /// Makes the copies in scratch memory, or in `spill` if they are too large for it.
  std::byte* fill(const RunArguments& args, AlignedBuffer& spill) const {
    if (bytes_ == 0) return nullptr;
    if (bytes_ > kScratchLimit) spill = AlignedBuffer(bytes_);
    std::byte* base = spill.data() != nullptr ? spill.data() : args.scratch;
    for (const Copy& copy : copies_) {
      const auto* source = static_cast<const std::byte*>(args.in[copy.input]);
      args.pool.run((copy.count + kChunk - 1) / kChunk, [&](size_t tile, size_t) {
        const size_t begin = tile * kChunk;
        const size_t count = std::min(kChunk, copy.count - begin);
        convert_rows(copy.form, source + begin * dtype_size(copy.form.from), count, 1, count,
                     base + copy.offset + begin * dtype_size(copy.form.to));
      });
    }
    return base;
  }

 private:
  static constexpr size_t kChunk = size_t{1} << 16;
  struct Copy {
    size_t input;
    OperandForm form;
    size_t count;
    size_t offset;
  };
  std::vector<Copy> copies_;
  size_t bytes_ = 0;
};

/// One matrix product (batch 1) in tiles of rows and, where there are few rows, of columns.
class MatrixPlan {
 public:
  MatrixPlan(const Problem& problem, std::shared_ptr<const PackedMatrix> packed);

  size_t scratch_per_thread() const { return shared_.scratch_bytes() + private_bytes_; }
  void run(const RunArguments& args) const;

 private:
  struct Buffers {
    const void* a;
    const void* b;
    const float* c;
    float* y;
  };

  void choose_tiles();
  void choose_operands();
  void make_products();
  void run_tile(const Buffers& buffers, int64_t row_tile, int64_t col_tile, std::byte* scratch) const;
  const void* tile_of_a(const void* a, int64_t row0, int64_t rows, std::byte* scratch) const;
  const void* tile_of_b(const void* b, int64_t col0, int64_t cols, std::byte* scratch) const;
  void store(const Buffers& buffers, const float* tile, int64_t row0, int64_t rows, int64_t col0, int64_t cols) const;

  Problem problem_;
  std::shared_ptr<const PackedMatrix> packed_;
  int64_t tile_rows_ = 0;
  int64_t tile_cols_ = 0;
  int64_t row_tiles_ = 0;
  int64_t col_tiles_ = 0;
  /// The library writes (and adds) straight into y: its rows are contiguous there.
  bool direct_ = false;
  bool library_bias_ = false;
  /// Operands as tiles see them: already converted, if a shared copy was made.
  OperandForm tile_form_a_;
  OperandForm tile_form_b_;
  SharedCopies shared_;
  bool shares_a_ = false;
  bool shares_b_ = false;
  size_t shared_a_ = 0;
  size_t shared_b_ = 0;
  int64_t stride_a_ = 0;
  int64_t stride_b_ = 0;
  size_t a_bytes_ = 0;
  size_t b_bytes_ = 0;
  size_t y_bytes_ = 0;
  size_t private_bytes_ = 0;
  /// By whether the tile is the last one down, and the last one across.
  std::array<std::array<std::shared_ptr<const Product>, 2>, 2> products_;
};

MatrixPlan::MatrixPlan(const Problem& problem, std::shared_ptr<const PackedMatrix> packed)
    : problem_(problem), packed_(std::move(packed)) {
  choose_tiles();
  choose_operands();
  make_products();
}

void MatrixPlan::choose_tiles() {
  const int64_t m = problem_.m;
  const int64_t n = problem_.n;
  // A packed b costs nothing per row tile but its way through the caches; any other b is rearranged by the library
  // for every tile.
  if (packed_)
    tile_rows_ = m >= 2048 ? 128 : 64;
  else
    tile_rows_ = 128;
  tile_rows_ = std::min(tile_rows_, m);
  row_tiles_ = ceil_div(m, tile_rows_);
  if (packed_) {
    const bool whole_rows = packed_->n_blocks() == 1 || (row_tiles_ >= kWantedTiles && packed_->whole() != nullptr);
    tile_cols_ = whole_rows ? n : PackedMatrix::column_block(n);
  } else {
    const int64_t wanted = row_tiles_ * 2 >= kWantedTiles ? 1 : ceil_div(kWantedTiles, row_tiles_);
    tile_cols_ = std::min(n, std::max<int64_t>(64, ceil_div(ceil_div(n, wanted), 16) * 16));
  }
  col_tiles_ = ceil_div(n, tile_cols_);
  direct_ = col_tiles_ == 1 || tile_rows_ == 1;
  library_bias_ = direct_ && problem_.addend == Addend::kBias && problem_.alpha == 1.0F;
}

void MatrixPlan::choose_operands() {
  tile_form_a_ = problem_.form_a;
  tile_form_b_ = problem_.form_b;
  const auto already = [](const OperandForm& form) { return OperandForm{form.to, form.to, false}; };
  shares_a_ = problem_.form_a.converts() && col_tiles_ > 1 && tile_rows_ > 4;
  if (shares_a_) {
    shared_a_ = shared_.add(0, problem_.form_a, checked_mul(problem_.m, problem_.k, "matmul"));
    tile_form_a_ = already(problem_.form_a);
  }
  shares_b_ = !packed_ && problem_.form_b.converts() && row_tiles_ > 1;
  if (shares_b_) {
    shared_b_ = shared_.add(1, problem_.form_b, checked_mul(problem_.k, problem_.n, "matmul"));
    tile_form_b_ = already(problem_.form_b);
  }
  const bool slices_a = problem_.transpose_a && row_tiles_ > 1;
  const bool slices_b = !packed_ && !problem_.transpose_b && col_tiles_ > 1;
  // What the library reads well as it lies; anything else is made dense.
  const bool takes_slices = problem_.form_a.to == DType::kF32 && !packed_;
  const bool copies_a = tile_form_a_.converts() || (slices_a && !takes_slices);
  const bool copies_b = !packed_ && (tile_form_b_.converts() || (slices_b && !takes_slices));
  if (slices_a && !copies_a) stride_a_ = problem_.m;
  if (slices_b && !copies_b) stride_b_ = problem_.n;
  const size_t size = dtype_size(problem_.form_a.to);
  if (copies_a) a_bytes_ = aligned(tile_rows_ * problem_.k * size);
  if (copies_b) b_bytes_ = aligned(tile_cols_ * problem_.k * size);
  if (!direct_) y_bytes_ = aligned(tile_rows_ * tile_cols_ * sizeof(float));
}

void MatrixPlan::make_products() {
  size_t workspace = 0;
  for (const int last_row : {0, 1}) {
    for (const int last_col : {0, 1}) {
      const ProductShape shape{
          .dtype = problem_.form_a.to,
          .m = last_row ? problem_.m - (row_tiles_ - 1) * tile_rows_ : tile_rows_,
          .n = last_col ? problem_.n - (col_tiles_ - 1) * tile_cols_ : tile_cols_,
          .k = problem_.k,
          .transpose_a = problem_.transpose_a,
          .transpose_b = !packed_ && problem_.transpose_b,
          .stride_a = stride_a_,
          .stride_b = stride_b_,
          .packed_b = packed_ != nullptr,
          .accumulate = direct_ && problem_.addend != Addend::kNone && !library_bias_,
          .bias = library_bias_,
          .alpha = problem_.alpha,
      };
      products_[last_row][last_col] = Product::get(shape);
      workspace = std::max(workspace, products_[last_row][last_col]->workspace_bytes());
    }
  }
  private_bytes_ = a_bytes_ + b_bytes_ + y_bytes_ + aligned(workspace);
}

void MatrixPlan::run(const RunArguments& args) const {
  AlignedBuffer spill;
  const std::byte* copies = shared_.fill(args, spill);
  const Buffers buffers{.a = shares_a_ ? copies + shared_a_ : args.in[0],
                        .b = shares_b_ ? copies + shared_b_ : args.in[1],
                        .c = problem_.addend == Addend::kNone ? nullptr : args.input<float>(2),
                        .y = args.output<float>(0)};
  args.pool.run(row_tiles_ * col_tiles_, [&](size_t tile, size_t thread) {
    const auto index = static_cast<int64_t>(tile);
    run_tile(buffers, index / col_tiles_, index % col_tiles_,
             args.thread_scratch<std::byte>(thread) + shared_.scratch_bytes());
  });
}

void MatrixPlan::run_tile(const Buffers& buffers, int64_t row_tile, int64_t col_tile, std::byte* scratch) const {
  const int64_t row0 = row_tile * tile_rows_;
  const int64_t col0 = col_tile * tile_cols_;
  const int64_t rows = std::min(tile_rows_, problem_.m - row0);
  const int64_t cols = std::min(tile_cols_, problem_.n - col0);
  const void* a = tile_of_a(buffers.a, row0, rows, scratch);
  float* tile = reinterpret_cast<float*>(scratch + a_bytes_ + b_bytes_);
  if (direct_) {
    tile = buffers.y + row0 * problem_.n + col0;
    if (problem_.addend != Addend::kNone && !library_bias_)
      place_addend(problem_, buffers.c, buffers.y, row0, rows, col0, cols);
  }
  std::byte* workspace = scratch + a_bytes_ + b_bytes_ + y_bytes_;
  const float* bias = library_bias_ ? buffers.c + col0 : nullptr;
  const Product& product = *products_[row_tile + 1 == row_tiles_][col_tile + 1 == col_tiles_];
  if (packed_) {
    const dnnl::memory* const whole = col_tiles_ == 1 ? packed_->whole() : nullptr;
    const dnnl::memory& b = whole != nullptr ? *whole : packed_->block(0, col_tile);
    product.run(a, b, bias, tile, workspace);
  } else {
    product.run(a, tile_of_b(buffers.b, col0, cols, scratch + a_bytes_), bias, tile, workspace);
  }
  if (!direct_) store(buffers, tile, row0, rows, col0, cols);
}

const void* MatrixPlan::tile_of_a(const void* a, int64_t row0, int64_t rows, std::byte* scratch) const {
  const int64_t offset = problem_.transpose_a ? row0 : row0 * problem_.k;
  const std::byte* from = static_cast<const std::byte*>(a) + offset * dtype_size(tile_form_a_.from);
  if (a_bytes_ == 0) return from;
  if (problem_.transpose_a)
    convert_rows(tile_form_a_, from, problem_.m, problem_.k, rows, scratch);
  else
    convert_rows(tile_form_a_, from, problem_.k, rows, problem_.k, scratch);
  return scratch;
}

const void* MatrixPlan::tile_of_b(const void* b, int64_t col0, int64_t cols, std::byte* scratch) const {
  const int64_t offset = problem_.transpose_b ? col0 * problem_.k : col0;
  const std::byte* from = static_cast<const std::byte*>(b) + offset * dtype_size(tile_form_b_.from);
  if (b_bytes_ == 0) return from;
  if (problem_.transpose_b)
    convert_rows(tile_form_b_, from, problem_.k, cols, problem_.k, scratch);
  else
    convert_rows(tile_form_b_, from, problem_.n, problem_.k, cols, scratch);
  return scratch;
}

void MatrixPlan::store(const Buffers& buffers, const float* tile, int64_t row0, int64_t rows, int64_t col0,
                       int64_t cols) const {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (row0 + row) * problem_.n + col0;
    float* to = buffers.y + at;
    const float* from = tile + row * cols;
    if (problem_.addend == Addend::kNone) {
      std::memcpy(to, from, cols * sizeof(float));
      continue;
    }
    const float* add = problem_.addend == Addend::kFull ? buffers.c + at : buffers.c + col0;
    for (int64_t col = 0; col < cols; ++col) to[col] = from[col] + add[col];
  }
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
  AlignedBuffer spill;
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
  const Operand& b = request.inputs[1];
  if (!b.frozen) return compiled(std::make_shared<const MatrixPlan>(problem, nullptr), problem);
  const MatrixSource source{.dtype = b.dtype, .k = problem.k, .n = problem.n, .transposed = problem.transpose_b};
  auto packed =
      PackedMatrix::of_frozen(b.frozen, source, problem.precision, problem.k, PackedMatrix::column_block(problem.n));
  CompiledKernel kernel = compiled(std::make_shared<const MatrixPlan>(problem, std::move(packed)), problem);
  kernel.consumed_inputs = {1};
  return kernel;
}

}  // namespace

void register_matmul(KernelTable& table) { table.emplace("matmul", compile_matmul); }

}  // namespace heddle
