// The right operand of a product, in whichever form the device has it: elements, elements rounded to bf16 once, or the
// blocks of a file. With few rows blocks are multiplied as they lie; else a tile of them is decoded and multiplied by
// the library, and then the next one.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "cuda/core/elements.cuh"
#include "cuda/library/products.h"
#include "cuda/quant/blocks.h"

namespace heddle::cuda {

/// A matrix as a product of this element type takes it.
class WeightOperand {
 public:
  WeightOperand() = default;
  WeightOperand(const Operand& operand, DType element, ScratchLayout& scratch) : element_(element) {
    const bool half = element == DType::kBF16;
    const std::optional<BlockMatrix> blocks = BlockMatrix::of(operand);
    const bool dense_half = half && operand.encoding == "f16";
    if (blocks && blocks->form == HEDDLE_BLOCKS && !dense_half) {
      form_ = HEDDLE_BLOCKS;
      if (half && blocks->is_bf16()) return;
      decoded_ = blocks;
      offset_ = scratch.take(blocks->rows * blocks->columns, dtype_size(element));
    } else if (half && operand.frozen && operand.dtype == DType::kF32) {
      form_ = HEDDLE_BF16;
    } else {
      converted_ = {operand, element, scratch};
    }
  }

  /// Has run() get the input in the form that start() takes.
  void claim(size_t input, Kernel& kernel) const {
    if (form_ != HEDDLE_ELEMENTS) kernel.forms.emplace_back(input, form_);
  }

  /// Elements of the product's type; what must be made of them is made now.
  const void* start(const Run& run, const void* from) const {
    if (decoded_) {
      void* const to = run.scratch_at<void>(offset_);
      decode_rows(run, *decoded_, from, 0, decoded_->rows, element_, to);
      return to;
    }
    return form_ == HEDDLE_ELEMENTS ? converted_.start(run, from) : from;
  }

 private:
  DType element_ = DType::kF32;
  heddle_form form_ = HEDDLE_ELEMENTS;
  std::optional<BlockMatrix> decoded_;
  size_t offset_ = 0;
  ProductOperand converted_;
};

/// y = alpha op(a) op(b) + beta c, of which a has the product's element type.
class WeightProduct {
 public:
  WeightProduct() = default;
  WeightProduct(const ProductShape& shape, const Operand& b, ScratchLayout& scratch) : shape_(shape) {
    const std::optional<BlockMatrix> blocks = BlockMatrix::of(b);
    const bool as_it_is = shape.element == DType::kBF16 && blocks && blocks->is_bf16();
    const bool dense_half = shape.element == DType::kBF16 && b.encoding == "f16";
    if (blocks && shape.batch == 1 && !as_it_is && !dense_half) {
      blocks_ = *blocks;
      blocks_->rounds = blocks_->rounds || shape.element == DType::kBF16;
      few_ = is_few(shape);
      if (!few_) plan_tiles(scratch);
    } else {
      b_ = {b, shape.element, scratch};
      products_ = {Product::get(shape)};
    }
  }

  /// Whether blocks would be multiplied as they lie: exactly, in f32.
  static bool is_few(const ProductShape& shape) {
    return shape.m <= kFewRows && shape.transpose_b && !shape.transpose_a;
  }

  void claim(size_t input, Kernel& kernel) const {
    if (!blocks_)
      b_.claim(input, kernel);
    else if (blocks_->form != HEDDLE_ELEMENTS)
      kernel.forms.emplace_back(input, blocks_->form);
  }

  size_t scratch_bytes() const {
    size_t bytes = 0;
    for (const auto& product : products_) bytes = std::max(bytes, product->scratch_bytes());
    return bytes;
  }

  /// As Product::run().
  void run(const Run& run, const void* a, const void* b, const void* c, void* y, void* workspace) const {
    if (!blocks_) {
      products_[0]->run(run.stream, a, b_.start(run, b), c, y, workspace);
    } else if (few_) {
      const bool adds = shape_.bias || shape_.beta != 0.0;
      multiply_few(run, *blocks_, b,
                   {.x = a,
                    .half = shape_.element == DType::kBF16,
                    .rows = shape_.m,
                    .alpha = static_cast<float>(shape_.alpha),
                    .c = adds ? static_cast<const float*>(c) : nullptr,
                    .bias = shape_.bias,
                    .y = static_cast<float*>(y)});
    } else {
      run_tiles(run, a, b, c, y, workspace);
    }
  }

 private:
  /// Decoded, they are still in the second cache when they are multiplied.
  static constexpr int64_t kTileElements = int64_t{1} << 23;
  static constexpr int64_t kTileRows = 128;

  int64_t tiles() const { return ceil_div(blocks_->rows, tile_rows_); }
  int64_t rows_of(int64_t tile) const { return std::min(tile_rows_, blocks_->rows - tile * tile_rows_); }

  /// Rows of W are columns of y or, without a transpose, terms of its sums.
  void plan_tiles(ScratchLayout& scratch) {
    const int64_t fitting = kTileElements / blocks_->columns / kTileRows * kTileRows;
    tile_rows_ = std::min(blocks_->rows, std::max(kTileRows, fitting));
    offset_ = scratch.take(tile_rows_ * blocks_->columns, dtype_size(shape_.element));
    for (int64_t tile = 0; tile < tiles(); ++tile) {
      ProductShape part = shape_;
      if (shape_.transpose_b) {
        part.n = rows_of(tile);
        part.row_y = shape_.n;
      } else {
        part.k = rows_of(tile);
        part.row_a = shape_.transpose_a ? shape_.m : shape_.k;
        if (tile > 0) part.beta = 1.0;
        if (tile > 0) part.bias = false;
      }
      products_.push_back(Product::get(part));
    }
  }

  void run_tiles(const Run& run, const void* a, const void* b, const void* c, void* y, void* workspace) const {
    void* const decoded = run.scratch_at<void>(offset_);
    const auto* const from = static_cast<const std::byte*>(a);
    for (int64_t tile = 0; tile < tiles(); ++tile) {
      const int64_t row = tile * tile_rows_;
      decode_rows(run, *blocks_, b, row, rows_of(tile), shape_.element, decoded);
      const Product& product = *products_[static_cast<size_t>(tile)];
      if (shape_.transpose_b) {
        product.run(run.stream, a, decoded, static_cast<const float*>(c) + row, static_cast<float*>(y) + row,
                    workspace);
      } else {
        const int64_t skipped = shape_.transpose_a ? row * shape_.m : row;
        product.run(run.stream, from + static_cast<size_t>(skipped) * dtype_size(shape_.element), decoded,
                    tile == 0 ? c : y, y, workspace);
      }
    }
  }

  ProductShape shape_;
  WeightOperand b_;
  std::optional<BlockMatrix> blocks_;
  bool few_ = false;
  int64_t tile_rows_ = 0;
  size_t offset_ = 0;
  /// One, or one for each tile.
  std::vector<std::shared_ptr<const Product>> products_;
};

}  // namespace heddle::cuda
