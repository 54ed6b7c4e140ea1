// Attention of a step that holds tokens of many sequences, whose keys and values lie in pages of one pool (Kwon et al.
// 2023, "PagedAttention"), and the writing of those pages. A token's result depends on its own query and the keys that
// it sees: not on its neighbours in the step, nor on where the pages lie, nor on the number of threads.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/kernel_table.h"
#include "kernels/rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/paged_attention.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/attention_few-inl.h"
#include "kernels/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {

void paged_rows(const AttentionProblem& p, size_t b, size_t kv_begin, size_t kv_end, size_t block, float* scratch) {
  attention_forward(p, b, kv_begin, kv_end, block, scratch);
}

void narrow_row(const float* HWY_RESTRICT from, size_t count, uint16_t* HWY_RESTRICT to) {
  const F d;
  size_t i = 0;
  for (; i + lanes() <= count; i += lanes()) store_bf16(d, hn::LoadU(d, from + i), to + i);
  for (; i < count; ++i) to[i] = f32_to_bf16(from[i]);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(paged_rows);
HWY_EXPORT(narrow_row);

// Kv heads in one tile, and tiles that there must be for a thread before tiles are made as large.
constexpr size_t kHeadsTogether = 8;
constexpr size_t kTilesPerThread = 4;

enum Input : size_t { kQ, kKeyPages, kValuePages, kTables, kStarts, kPositions };

[[noreturn]] void refuse(const char* op, const std::string& expected, const std::string& got) {
  throw Error(ErrorCode::kArgument, op, expected, got);
}

/// Of keys or values: [pages, page, hk, d] in f32 or bf16, with a page of at least one row.
void check_pages(const KernelRequest& request, const Operand& pages) {
  request.check(pages.present && pages.shape.rank() == 4 && pages.shape[1] >= 1, "pages [pages, page, hk, d]",
                operand_text(pages));
  request.check(pages.dtype == DType::kF32 || pages.dtype == DType::kBF16, "pages of f32 or bf16",
                dtype_name(pages.dtype));
}

AttentionProblem read_paged(const KernelRequest& request) {
  const Operand& q = request.inputs[kQ];
  const Operand& keys = request.inputs[kKeyPages];
  const Operand& tables = request.inputs[kTables];
  request.check(q.present && q.dtype == DType::kF32 && q.shape.rank() == 3, "q f32 [n, h, d]", operand_text(q));
  check_pages(request, keys);
  check_operand(request, request.inputs[kValuePages], "values", keys.dtype, keys.shape);
  request.check(tables.present && tables.dtype == DType::kI32 && tables.shape.rank() == 2, "tables i32 [s, p]",
                operand_text(tables));
  const int64_t sequences = tables.shape[0];
  // Positions are compared as 32-bit integers.
  constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max() / 2;
  request.check(tables.shape[1] <= kMaxLength / keys.shape[1] && q.shape[0] <= kMaxLength && sequences <= kMaxLength,
                "sequences below 2^30", tables.shape.str() + " pages of " + std::to_string(keys.shape[1]));
  check_operand(request, request.inputs[kStarts], "starts", DType::kI32, Shape{sequences + 1});
  check_operand(request, request.inputs[kPositions], "positions", DType::kI32, Shape{sequences});
  check_operand(request, request.outputs[0], "o", DType::kF32, q.shape);

  AttentionProblem p;
  p.batch = static_cast<size_t>(sequences);
  p.queries = static_cast<size_t>(q.shape[0]);
  p.keys = static_cast<size_t>(tables.shape[1] * keys.shape[1]);
  p.visibility = Visibility::kFromPosition;
  p.bf16_keys = keys.dtype == DType::kBF16;
  p.paged.table_width = static_cast<size_t>(tables.shape[1]);
  p.paged.page = static_cast<size_t>(keys.shape[1]);
  read_heads_and_scores(request, p);
  return p;
}

/// Throws unless the packed sequences lie one behind the other and every page that a token sees is one of `pages`.
void check_step(const AttentionProblem& p, size_t pages) {
  constexpr auto kOp = "paged_attention";
  const auto& [tables, table_width, page, starts] = p.paged;
  if (starts[0] != 0) refuse(kOp, "starts from 0 on", std::to_string(starts[0]));
  for (size_t b = 0; b < p.batch; ++b) {
    if (starts[b + 1] < starts[b] || static_cast<size_t>(starts[b + 1]) > p.queries)
      refuse(kOp, "starts that rise to at most " + std::to_string(p.queries),
             std::to_string(starts[b]) + " and then " + std::to_string(starts[b + 1]));
    if (starts[b + 1] == starts[b]) continue;
    const int64_t position = p.position[b];
    const int64_t end = position + (starts[b + 1] - starts[b]);
    if (position < 0 || end > static_cast<int64_t>(p.keys))
      refuse(kOp, "positions within the " + std::to_string(p.keys) + " rows of a page table",
             std::to_string(position) + " to " + std::to_string(end - 1));
    const auto first = static_cast<size_t>(position) + 1;
    for (size_t i = (first - std::min(first, p.window)) / page; i * page < static_cast<size_t>(end); ++i) {
      const int32_t at = tables[b * table_width + i];
      if (at < 0 || static_cast<size_t>(at) >= pages)
        refuse(kOp, "pages in [0, " + std::to_string(pages) + ")", std::to_string(at));
    }
  }
}

/// The rows of one tile: block `block` of sequence b.
struct RowTile {
  size_t b, block, keys;
};

/// All tiles of one kv head, those with the most keys first: the small ones fill the gaps at the end.
std::vector<RowTile> row_tiles(const AttentionProblem& p) {
  std::vector<RowTile> tiles;
  for (size_t b = 0; b < p.batch; ++b) {
    const size_t rows = p.rows(b);
    for (size_t block = 0; block * kRows < rows; ++block) {
      const size_t last = (std::min(rows, (block + 1) * kRows) - 1) / p.group;
      const size_t end = static_cast<size_t>(p.position[b]) + last + 1;
      tiles.push_back({b, block, std::min(end, p.window)});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(), [](const RowTile& x, const RowTile& y) { return x.keys > y.keys; });
  return tiles;
}

void run_paged(const AttentionProblem& p, const RunArguments& arguments) {
  const size_t row = p.heads * p.dim;
  const auto tokens = static_cast<size_t>(p.paged.starts[p.batch]);
  std::fill_n(p.o + tokens * row, (p.queries - tokens) * row, 0.0F);
  const std::vector<RowTile> tiles = row_tiles(p);
  // Kv heads lie side by side: together they are one pass over memory, but there must be tiles for all threads.
  const size_t together = tiles.size() >= kTilesPerThread * arguments.pool.threads() ? kHeadsTogether : 1;
  const size_t parts = (p.kv_heads + together - 1) / together;
  arguments.pool.run(tiles.size() * parts, [&](size_t tile, size_t thread) {
    const RowTile& rows = tiles[tile / parts];
    const size_t head = tile % parts * together;
    HWY_DYNAMIC_DISPATCH(paged_rows)
    (p, rows.b, head, std::min(p.kv_heads, head + together), rows.block, arguments.thread_scratch<float>(thread));
  });
}

CompiledKernel compile_paged_attention(const KernelRequest& request) {
  request.expect_counts(6, 1);
  const AttentionProblem p = read_paged(request);
  const auto pages = static_cast<size_t>(request.inputs[kKeyPages].shape[0]);
  CompiledKernel kernel;
  kernel.scratch_per_thread = forward_scratch_floats(p, std::min(p.kv_heads, kHeadsTogether)) * sizeof(float);
  kernel.run = [p, pages](const RunArguments& arguments) {
    AttentionProblem bound = p;
    bound.q = arguments.input<float>(kQ);
    bound.k = arguments.in[kKeyPages];
    bound.v = arguments.in[kValuePages];
    bound.paged.tables = arguments.input<int32_t>(kTables);
    bound.paged.starts = arguments.input<int32_t>(kStarts);
    bound.position = arguments.input<int32_t>(kPositions);
    bound.o = arguments.output<float>(0);
    check_step(bound, pages);
    run_paged(bound, arguments);
  };
  return kernel;
}

struct UpdatePlan {
  size_t rows, slots, width;
  bool bf16;
};

/// Throws unless each slot is within the cache, and written once, or is -1.
void check_slots(const int32_t* slots, const UpdatePlan& plan) {
  constexpr auto kOp = "paged_cache_update";
  std::vector<int32_t> written;
  for (size_t i = 0; i < plan.rows; ++i) {
    const int32_t slot = slots[i];
    if (slot < -1 || (slot >= 0 && static_cast<size_t>(slot) >= plan.slots))
      refuse(kOp, "slots in [0, " + std::to_string(plan.slots) + "), or -1", std::to_string(slot));
    if (slot >= 0) written.push_back(slot);
  }
  if (!std::is_sorted(written.begin(), written.end())) std::sort(written.begin(), written.end());
  const auto twice = std::adjacent_find(written.begin(), written.end());
  if (twice != written.end()) refuse(kOp, "slots that differ", std::to_string(*twice) + " twice");
}

void run_update(const UpdatePlan& plan, const RunArguments& arguments) {
  const auto* fresh = arguments.input<float>(1);
  const auto* slots = arguments.input<int32_t>(2);
  // All slots are checked before the first is written, so that a failure leaves the cache as it was.
  check_slots(slots, plan);
  for_row_ranges(arguments.pool, plan.rows, rows_per_tile(plan.width), [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      if (slots[row] < 0) continue;
      const float* from = fresh + row * plan.width;
      const size_t to = static_cast<size_t>(slots[row]) * plan.width;
      if (plan.bf16)
        HWY_DYNAMIC_DISPATCH(narrow_row)(from, plan.width, arguments.output<uint16_t>(0) + to);
      else
        std::copy_n(from, plan.width, arguments.output<float>(0) + to);
    }
  });
}

CompiledKernel compile_paged_cache_update(const KernelRequest& request) {
  request.expect_counts(3, 1);
  const Operand& cache = request.inputs[0];
  const Operand& y = request.outputs[0];
  check_pages(request, cache);
  const Operand& rows = request.inputs[1];
  request.check(rows.present && rows.shape.rank() == 3, "rows [n, hk, d]", operand_text(rows));
  check_operand(request, rows, "rows", DType::kF32, Shape{rows.shape[0], cache.shape[2], cache.shape[3]});
  check_operand(request, request.inputs[2], "slots", DType::kI32, Shape{rows.shape[0]});
  check_operand(request, y, "cache", cache.dtype, cache.shape);
  request.check(y.buffer == cache.buffer, "the cache itself as output", "another tensor");
  const UpdatePlan plan{static_cast<size_t>(rows.shape[0]), cache.shape.count(0, 2), cache.shape.count(2, 4),
                        cache.dtype == DType::kBF16};
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [plan](const RunArguments& arguments) { run_update(plan, arguments); };
  return kernel;
}

}  // namespace

void register_paged_attention(KernelTable& table) {
  table["paged_attention"] = compile_paged_attention;
  table["paged_cache_update"] = compile_paged_cache_update;
}

}  // namespace heddle

#endif  // HWY_ONCE
