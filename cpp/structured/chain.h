// How block-diagonal, Monarch and Kronecker matrices are chains of block-wise products: the geometry that the CPU's and
// the GPU's kernels share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "program/kernel.h"
#include "structured/feature_tile.h"

namespace heddle {

/// Features of block (term, pre, post), item j: term * .. + pre * .. + post * .. + j * item. In a tile they lie at
/// their places.
struct FeatureStrides {
  int64_t term = 0, pre = 0, post = 0, item = 0;
  FeaturePlaces places = {};

  /// The place of item 0.
  int64_t at(int64_t t, int64_t i, int64_t j) const { return places.of(t * term + i * pre + j * post); }
  /// From the place of one item, or of one term, to that of the next.
  int64_t item_step() const { return places.of(item); }
  int64_t term_step() const { return places.of(term); }
};

/// out[block, i] = sum_j w[block, i, j] in[block, j]. Terms that share their outputs (out.term = 0) are summed.
struct Stage {
  int64_t terms = 1, pre = 1, post = 1;
  /// Of one block of w.
  int64_t m = 0, k = 0;
  FeatureStrides in, out;
  int64_t in_features = 0, out_features = 0;
  /// Strides of the weight's elements; blocks along `post` share it.
  int64_t w_term = 0, w_pre = 0, w_m = 0, w_k = 0;

  /// Of a tile of inputs and of outputs, gaps included.
  int64_t in_places() const { return in.places.of(in_features); }
  int64_t out_places() const { return out.places.of(out_features); }
  bool sums_terms() const { return out.term == 0; }
  int64_t weight_blocks() const { return (w_term == 0 ? 1 : terms) * (w_pre == 0 ? 1 : pre); }
  int64_t weight_size() const { return weight_blocks() * m * k; }
  Stage transposed() const;
};

/// How an operator's weights make a chain; `weight_of` says which weight, counted from 0, each stage has.
struct Chain {
  std::vector<Stage> stages;
  std::vector<size_t> weight_of;
};

/// Weights [blocks, out, in]; see block_diagonal.cpp.
Chain read_block_diagonal(const KernelRequest& request, std::span<const Operand> weights);
/// Factors [terms, m, n] and attribute `order`; see kronecker.cpp.
Chain read_kronecker(const KernelRequest& request, std::span<const Operand> weights);
/// Weights [K, q, p] and [L, s, r]; see monarch.cpp.
Chain read_monarch(const KernelRequest& request, std::span<const Operand> weights);

}  // namespace heddle
