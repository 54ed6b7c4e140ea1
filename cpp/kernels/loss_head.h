// The linear head of a loss: its matrix packed in the two forms that the products take, chunk by chunk of the
// vocabulary.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/storage.h"
#include "core/tile_pool.h"
#include "kernels/gemm.h"

namespace heddle {

/// x [n, d] times w [v, d].
struct LossProblem {
  int64_t n = 0;
  int64_t d = 0;
  int64_t v = 0;
  /// Width of a chunk of the vocabulary.
  int64_t width = 0;
  int64_t chunks = 0;
  Precision precision = Precision::kF32;
  OperandForm form;
  size_t element = 0;

  int64_t chunk_width(int64_t chunk) const { return std::min(width, v - chunk * width); }
};

/// The head's matrix in its two forms: logits = x @ w^T by columns, dx = p @ w by rows of w.
struct PackedHead {
  std::shared_ptr<const PackedMatrix> logits;
  std::shared_ptr<const PackedMatrix> gradient;

  static PackedHead of_frozen(const LossProblem& problem, const std::shared_ptr<Storage>& w, bool with_gradient,
                              Packing packing) {
    PackedHead head;
    head.logits = PackedMatrix::of_frozen(w, logits_source(problem, nullptr), problem.precision, problem.d,
                                          PackedMatrix::column_block(problem.v), packing);
    if (with_gradient)
      head.gradient = PackedMatrix::of_frozen(w, gradient_source(problem, nullptr), problem.precision, problem.width,
                                              problem.d, packing);
    return head;
  }

  /// A trainable w is packed anew in every run: each row tile reads all of it.
  static PackedHead of_values(const LossProblem& problem, const void* w, bool with_gradient) {
    PackedHead head;
    head.logits = std::make_shared<const PackedMatrix>(logits_source(problem, w), problem.precision, problem.d,
                                                       PackedMatrix::column_block(problem.v));
    if (with_gradient)
      head.gradient = std::make_shared<const PackedMatrix>(gradient_source(problem, w), problem.precision,
                                                           problem.width, problem.d);
    return head;
  }

 private:
  static MatrixSource logits_source(const LossProblem& problem, const void* w) {
    return {.data = w, .dtype = DType::kF32, .k = problem.d, .n = problem.v, .transposed = true};
  }
  static MatrixSource gradient_source(const LossProblem& problem, const void* w) {
    return {.data = w, .dtype = DType::kF32, .k = problem.v, .n = problem.d, .transposed = false};
  }
};

/// The head's blocks for a group of chunks at a time; a compact head is spread out a group at a time.
class HeadGroups {
 public:
  HeadGroups(const PackedHead& head, int64_t chunks)
      : head_(head),
        chunks_(chunks),
        block_bytes_(
            std::max(head.logits->spread_block_bytes(), head.gradient ? head.gradient->spread_block_bytes() : 0)),
        size_(block_bytes_ == 0 ? chunks : std::min(chunks, kGroupChunks)),
        spread_(block_bytes_ * 2 * size_),
        blocks_(2 * size_) {}

  int64_t size() const { return size_; }

  /// Makes the blocks of chunks [first, first + size()) available.
  void load(TilePool& pool, int64_t first) {
    const int64_t count = std::min(size_, chunks_ - first);
    pool.run(2 * count, [&](size_t index, size_t) {
      const int64_t chunk = first + static_cast<int64_t>(index) / 2;
      std::byte* const target = spread_.data() + index * block_bytes_;
      if (index % 2 == 0)
        blocks_[index] = head_.logits->spread_block(0, chunk, target);
      else if (head_.gradient)
        blocks_[index] = head_.gradient->spread_block(chunk, 0, target);
    });
  }

  const dnnl::memory& logits(int64_t chunk) const { return blocks_[2 * (chunk % size_)]; }
  const dnnl::memory& gradient(int64_t chunk) const { return blocks_[2 * (chunk % size_) + 1]; }

 private:
  // Chunks between two meetings of all threads.
  static constexpr int64_t kGroupChunks = 4;

  const PackedHead& head_;
  int64_t chunks_;
  size_t block_bytes_;
  int64_t size_;
  AlignedBuffer spread_;
  std::vector<dnnl::memory> blocks_;
};

}  // namespace heddle
