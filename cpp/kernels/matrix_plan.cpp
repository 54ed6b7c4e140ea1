#include "kernels/matrix_plan.h"

#include <cstring>

namespace heddle {

/// Fills rows of y with what the product is added to, where that is not already there.
void place_addend(const Problem& problem, const float* c, float* y, int64_t row0, int64_t rows, int64_t col0,
                  int64_t cols) {
  if (c == y) return;
  for (int64_t row = row0; row < row0 + rows; ++row) {
    const float* from = problem.addend == Addend::kFull ? c + row * problem.n + col0 : c + col0;
    std::memcpy(y + row * problem.n + col0, from, cols * sizeof(float));
  }
}

std::byte* SharedCopies::fill(const RunArguments& args, RunBuffer& spill) const {
  if (bytes_ == 0) return nullptr;
  if (bytes_ > kScratchLimit) spill = RunBuffer(bytes_);
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
    const bool whole_rows = packed_->n_blocks() == 1 || (row_tiles_ >= kWantedTiles && packed_->is_whole());
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
  if (packed_) spread_ = shared_.reserve(packed_->spread_bytes());
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
  RunBuffer spill;
  std::byte* const copies = shared_.fill(args, spill);
  const Buffers buffers{.a = shares_a_ ? copies + shared_a_ : args.in[0],
                        .b = shares_b_ ? copies + shared_b_ : args.in[1],
                        .c = problem_.addend == Addend::kNone ? nullptr : args.input<float>(2),
                        .y = args.output<float>(0),
                        .spread = copies + spread_};
  if (packed_) packed_->spread(args.pool, copies + spread_);
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
    const bool is_whole = col_tiles_ == 1 && packed_->is_whole();
    const dnnl::memory b = is_whole ? packed_->whole_in(buffers.spread) : packed_->block_in(buffers.spread, col_tile);
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

}  // namespace heddle
