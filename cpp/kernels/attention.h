// What the forms of attention share: the problem as their inner code (attention-inl.h) sees it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "program/kernel.h"

namespace heddle {

constexpr size_t kRows = 64;
constexpr size_t kKeys = 64;
// Up to so many rows go through code of their own.
constexpr size_t kFewRows = 8;
// Output rows of one register tile; divides kRows and kKeys.
constexpr size_t kStep = 4;
// Row counts and head dimensions are padded to this, a multiple of every vector length in use.
constexpr size_t kPad = 16;
constexpr size_t kMaxDim = 1024;

constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

enum class Visibility { kAll, kCausal, kFromPosition };

/// Keys and values in pages, and the tokens of a step packed one sequence behind the other.
struct PagedRows {
  // [batch, table_width]: key j of sequence b lies in row j % page of page tables[b, j / page].
  const int32_t* tables = nullptr;
  size_t table_width = 0, page = 0;
  // [batch + 1]: the tokens of sequence b are starts[b] .. starts[b + 1].
  const int32_t* starts = nullptr;
};

struct AttentionProblem {
  size_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, group = 0, dim = 0, padded_dim = 0;
  Visibility visibility = Visibility::kAll;
  // A row sees at most this many keys, the latest ones.
  size_t window = std::numeric_limits<size_t>::max();
  float scale = 1.0F;
  // Scores are bent to softcap * tanh(score / softcap); 0 leaves them as they are.
  float softcap = 0.0F;
  bool bf16_keys = false;
  // Where page is 0, keys are [batch, keys, kv_heads, dim] and every sequence has `queries` queries.
  PagedRows paged;

  const float* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const int32_t* segments = nullptr;
  const int32_t* position = nullptr;
  float* o = nullptr;
  float* lse = nullptr;
  // Backward only: the forward pass's results, the cotangent of o, and the gradients wanted.
  const float* saved_o = nullptr;
  const float* saved_lse = nullptr;
  const float* g = nullptr;
  float* dq = nullptr;
  float* dk = nullptr;
  float* dv = nullptr;

  size_t rows(size_t b) const {
    return (paged.page == 0 ? queries : static_cast<size_t>(paged.starts[b + 1] - paged.starts[b])) * group;
  }
  size_t row_blocks(size_t b) const { return (rows(b) + kRows - 1) / kRows; }
  size_t key_blocks() const { return (keys + kKeys - 1) / kKeys; }
  size_t row_offset(size_t b, size_t kv_head, size_t row) const {
    const size_t first = paged.page == 0 ? b * queries : static_cast<size_t>(paged.starts[b]);
    return ((first + row / group) * heads + kv_head * group + row % group) * dim;
  }
  size_t key_offset(size_t b, size_t kv_head, size_t key) const {
    return (key_slot(b, key) * kv_heads + kv_head) * dim;
  }
  size_t key_slot(size_t b, size_t key) const {
    if (paged.page == 0) return b * keys + key;
    const int32_t page = paged.tables[b * paged.table_width + key / paged.page];
    return static_cast<size_t>(page) * paged.page + key % paged.page;
  }
  /// Keys from `key` on that lie one behind the other.
  size_t keys_together(size_t key) const {
    return paged.page == 0 ? std::numeric_limits<size_t>::max() : paged.page - key % paged.page;
  }
  size_t statistic_offset(size_t b, size_t kv_head, size_t row) const {
    return (b * heads + kv_head * group + row % group) * queries + row / group;
  }
};

/// What a kv head of a few rows keeps.
inline size_t few_rows_floats(const AttentionProblem& p) { return 2 * kFewRows * (1 + p.padded_dim); }

/// For tiles of at most `kv_heads` kv heads.
inline size_t forward_scratch_floats(const AttentionProblem& p, size_t kv_heads = 1) {
  const size_t many = kRows * p.dim + kKeys * kRows + 3 * kKeys * p.padded_dim;
  const size_t few = kKeys * kFewRows + kFewRows * p.padded_dim + kv_heads * few_rows_floats(p);
  return std::max(many, few);
}

/// Heads and head dimension from the last two dimensions of q and k, and the attributes scale, softcap and window.
void read_heads_and_scores(const KernelRequest& request, AttentionProblem& problem);

}  // namespace heddle
