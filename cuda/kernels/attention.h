// What the forms of attention share: the problem as their kernels see it.
//
// A "row" is one (query, head) pair of the kv head at hand: row r is query r / group under head r % group, so that all
// heads of a group share one pass over their keys.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cuda/core/kernel.h"

namespace heddle::cuda {

inline constexpr int64_t kKeys = 64;
/// Keys of one part of a row, where rows are split; a multiple of kKeys.
inline constexpr int64_t kPartKeys = 512;

struct AttentionProblem {
  int64_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, group = 0, dim = 0;
  /// Query i sees keys up to position + i, of which there is one for each sequence, or 0.
  bool causal = false;
  /// A row sees at most this many keys, the latest ones.
  int64_t window = std::numeric_limits<int64_t>::max();
  float scale = 1.0F;
  /// Scores are bent to softcap * tanh(score / softcap); 0 leaves them as they are.
  float softcap = 0.0F;
  /// Where it is not 0, key j of sequence b lies in row j % page of page tables[b, j / page], `queries` is the tokens
  /// of all sequences, and those of sequence b are starts[b] .. starts[b + 1].
  int64_t page = 0, table_width = 0;
  /// Parts that a row's keys are split into, 1 for one pass.
  int64_t parts = 1;

  const float* q = nullptr;
  const void *k = nullptr, *v = nullptr;
  const int32_t *segments = nullptr, *position = nullptr, *tables = nullptr, *starts = nullptr;
  /// Null, or where the device finds 0 if it must not do anything.
  const int32_t* valid = nullptr;
  float *o = nullptr, *lse = nullptr;
  /// Sums of the parts [parts, rows, dim], and behind them maxima and sums of weights [parts, rows].
  float* partial = nullptr;

  /// Rows over all sequences and heads.
  __host__ __device__ int64_t all_rows() const { return (page == 0 ? batch : 1) * queries * heads; }
  __device__ int64_t first_token(int64_t b) const { return page == 0 ? b * queries : starts[b]; }
  __device__ int64_t tokens(int64_t b) const { return page == 0 ? queries : starts[b + 1] - starts[b]; }
  /// Of q and o; divided by dim, the number of the row among all of them.
  __device__ int64_t row_offset(int64_t b, int64_t kv_head, int64_t row) const {
    return ((first_token(b) + row / group) * heads + kv_head * group + row % group) * dim;
  }
  __device__ int64_t key_offset(int64_t b, int64_t kv_head, int64_t key) const {
    const int64_t slot = page == 0 ? b * keys + key : tables[b * table_width + key / page] * page + key % page;
    return (slot * kv_heads + kv_head) * dim;
  }
  __device__ int64_t statistic_offset(int64_t b, int64_t kv_head, int64_t row) const {
    return (b * heads + kv_head * group + row % group) * queries + row / group;
  }
};

/// Heads, head dimension, and the attributes scale, softcap and window; q [.., h, d], k [.., hk, d].
AttentionProblem read_attention(const KernelRequest& request);

/// Splits the keys of rows into parts, where there are many keys and the parts fit into memory: a step of decoding has
/// few rows, and its parts run side by side. Returns the bytes of `partial`.
size_t split_keys(AttentionProblem& problem);

/// Starts the forward pass. `few` says that sequences have few rows.
void start_attention(const Run& run, const AttentionProblem& problem, DType key_dtype, bool few);

}  // namespace heddle::cuda
