// Chains of block-wise products: what block-diagonal, Monarch and Kronecker matrices are. A stage multiplies blocks of
// features with small matrices; where its features stand is given by strides, so that the permutations between stages
// cost nothing. A tile of rows of the batch goes through the whole chain while it is in the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/resting_memory.h"
#include "kernels/gemm.h"
#include "program/kernel.h"
#include "structured/chain.h"
#include "structured/feature_tile.h"

namespace heddle {

/// y [rows, out] = chain(x [rows, in]); features that x or y do not have are zero or left out.
struct ChainShape {
  int64_t rows = 0, in = 0, out = 0;
  std::vector<Stage> stages;
  Precision precision = Precision::kF32;

  /// The chain of transposed stages, which gives dx from dy.
  ChainShape transposed() const;
  /// Throws where sizes do not fit into 64 bits or stages not onto each other.
  void check(const KernelRequest& request) const;
  /// Leaves gaps between features if all stages can do with them.
  void spread();
  FeaturePlaces places() const { return stages.front().in.places; }
};

/// Weights of a chain's stages, rounded where asked for, in panels of kChainPanelRows rows.
class PackedStages {
 public:
  PackedStages(const ChainShape& shape, std::span<const float* const> weights, TilePool& pool);
  /// Panels of the block (term, pre) of a stage.
  const float* block(size_t stage, int64_t term, int64_t pre) const;

 private:
  struct Part {
    size_t offset;
    int64_t block_size;
    int64_t term_stride, pre_stride;
  };
  std::vector<Part> parts_;
  RunBuffer bytes_;
};

class ChainProduct {
 public:
  explicit ChainProduct(ChainShape shape);

  size_t scratch_per_thread() const { return scratch_; }
  void run(const float* x, std::span<const float* const> weights, float* y, const RunArguments& args) const;

 private:
  void run_tile(const PackedStages& packed, const float* x, float* y, int64_t tile, float* scratch) const;
  void run_stages_apart(const PackedStages& packed, const float* x, float* y, const RunArguments& args) const;

  ChainShape shape_;
  int64_t lanes_;
  int64_t tiles_;
  /// Floats of one of the two buffers that stages work between.
  size_t buffer_ = 0;
  /// Too few tiles for all threads: stages one after the other, each cut into blocks.
  bool apart_;
  size_t scratch_;
};

/// dx and dw of a chain, from x and dy, in one pass; the intermediates are computed again.
class ChainGradient {
 public:
  /// `wanted`: dx first, then dw of each stage.
  ChainGradient(ChainShape shape, std::vector<bool> wanted);

  size_t scratch_per_thread() const { return scratch_; }
  /// `results` as `wanted`; null where it is not.
  void run(const float* x, std::span<const float* const> weights, const float* dy, std::span<float* const> results,
           const RunArguments& args) const;

 private:
  struct Buffers;
  void run_tile(const PackedStages& packed, const PackedStages& turned, const float* x, const float* dy, float* dx,
                float* sums, int64_t tile, float* scratch) const;
  void add_weight_gradient(size_t stage, const float* in, const float* dout, float* sums, float* columns) const;
  void reduce(const float* sums, std::span<float* const> results, TilePool& pool) const;

  ChainShape shape_;
  ChainShape turned_;
  std::vector<bool> wanted_;
  int64_t lanes_;
  int64_t tiles_;
  /// Ranges of tiles whose sums are kept apart, so that they do not depend on threads.
  int64_t ranges_ = 1, range_tiles_ = 1;
  /// Where a stage's padded gradient begins within a range's sums, and their size.
  std::vector<size_t> sum_offsets_;
  size_t sum_size_ = 0;
  /// Floats of the buffers, and where each stage's input lies.
  std::vector<size_t> input_offsets_;
  size_t gradient_offset_[2] = {0, 0};
  size_t columns_offset_ = 0;
  size_t scratch_;
};

}  // namespace heddle
