// y + scale_i (x_i A_i^T) B_i, where every token has low-rank factors of its own: rows of two pools. Consecutive tokens
// with the same factors share one pass over them. Sums run in an order that depends on nothing but the token's own
// operands, so that its result is the same with any neighbours and any number of threads.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "core/fetch_ahead.h"
#include "core/resting_memory.h"
#include "kernels/kernel_table.h"
#include "kernels/rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/grouped_low_rank.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/bf16-inl.h"

#ifndef HEDDLE_KERNELS_GROUPED_LOW_RANK_ONCE
#define HEDDLE_KERNELS_GROUPED_LOW_RANK_ONCE

namespace heddle {
namespace {

/// A run of tokens with the same factors: x or y rows [tokens, width], rows of a pool [rank, width], and what connects
/// them, z [tokens, rank].
struct FactorTile {
  size_t tokens, rank;
  /// Distance between rows of x or y, and of the pool.
  size_t width;
  float* z;
  size_t z_stride;
};

/// So many columns of y's rows, and the factor of each row's update.
struct UpRows {
  size_t columns;
  const float* scales;
  float* y;
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_GROUPED_LOW_RANK_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using VF = hn::Vec<F>;

// Sums of four tokens in registers: 16 where there are 32 registers, else 8.
constexpr size_t kSums = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM ? 4 : 2;

HWY_INLINE VF load(const float* at) { return hn::LoadU(F(), at); }
HWY_INLINE VF load(const uint16_t* at) { return load_bf16(F(), at); }
HWY_INLINE float element(float x) { return x; }
HWY_INLINE float element(uint16_t x) { return bf16_to_f32(x); }

/// z [kTokens, kRows] = x rows times pool rows.
template <size_t kTokens, size_t kRows, class Element>
HWY_INLINE void dots(const FactorTile& t, const float* x, const Element* pool, float* z, Fetcher& ahead) {
  const F d;
  const size_t n = hn::Lanes(d);
  VF sum[kTokens][kRows];
#pragma GCC unroll 16
  for (size_t i = 0; i < kTokens; ++i)
#pragma GCC unroll 16
    for (size_t j = 0; j < kRows; ++j) sum[i][j] = hn::Zero(d);
  size_t k = 0;
  for (; k + n <= t.width; k += n) {
    ahead.step();
    VF row[kRows];
#pragma GCC unroll 16
    for (size_t j = 0; j < kRows; ++j) row[j] = load(pool + j * t.width + k);
#pragma GCC unroll 16
    for (size_t i = 0; i < kTokens; ++i) {
      const VF value = hn::LoadU(d, x + i * t.width + k);
#pragma GCC unroll 16
      for (size_t j = 0; j < kRows; ++j) sum[i][j] = hn::MulAdd(value, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kTokens; ++i)
#pragma GCC unroll 16
    for (size_t j = 0; j < kRows; ++j) {
      float total = hn::GetLane(hn::SumOfLanes(d, sum[i][j]));
      for (size_t rest = k; rest < t.width; ++rest) total += x[i * t.width + rest] * element(pool[j * t.width + rest]);
      z[i * t.z_stride + j] = total;
    }
}

template <size_t kTokens, class Element>
HWY_INLINE void dots_of_tokens(const FactorTile& t, size_t token, const float* x, const Element* pool, Fetcher& ahead) {
  float* z = t.z + token * t.z_stride;
  x += token * t.width;
  size_t j = 0;
  // As many sums at once as registers hold.
  constexpr size_t kRows = kTokens == 1 ? 8 : kSums;
  for (; j + kRows <= t.rank; j += kRows) dots<kTokens, kRows>(t, x, pool + j * t.width, z + j, ahead);
  for (; j < t.rank; ++j) dots<kTokens, 1>(t, x, pool + j * t.width, z + j, ahead);
}

template <class Element>
void down_tile(const FactorTile& t, const float* x, const Element* pool, FetchRegion next) {
  Fetcher ahead({&next, 1}, 0, next.lines(), t.rank * t.width / (8 * hn::Lanes(F())));
  size_t token = 0;
  for (; token + 4 <= t.tokens; token += 4) dots_of_tokens<4>(t, token, x, pool, ahead);
  for (; token < t.tokens; ++token) dots_of_tokens<1>(t, token, x, pool, ahead);
}

/// y [kTokens, kVectors] += scales times (z times pool rows)
template <size_t kTokens, size_t kVectors, class Element>
HWY_INLINE void combine(const FactorTile& t, const float* z, const float* scales, const Element* pool, float* y,
                        Fetcher& ahead) {
  const F d;
  const size_t n = hn::Lanes(d);
  VF sum[kTokens][kVectors];
#pragma GCC unroll 16
  for (size_t i = 0; i < kTokens; ++i)
#pragma GCC unroll 16
    for (size_t c = 0; c < kVectors; ++c) sum[i][c] = hn::Zero(d);
  for (size_t j = 0; j < t.rank; ++j, pool += t.width) {
    ahead.step();
    VF row[kVectors];
#pragma GCC unroll 16
    for (size_t c = 0; c < kVectors; ++c) row[c] = load(pool + c * n);
#pragma GCC unroll 16
    for (size_t i = 0; i < kTokens; ++i) {
      const VF factor = hn::Set(d, z[i * t.z_stride + j]);
#pragma GCC unroll 16
      for (size_t c = 0; c < kVectors; ++c) sum[i][c] = hn::MulAdd(factor, row[c], sum[i][c]);
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kTokens; ++i) {
    const VF scale = hn::Set(d, scales[i]);
    float* to = y + i * t.width;
#pragma GCC unroll 16
    for (size_t c = 0; c < kVectors; ++c)
      hn::StoreU(hn::MulAdd(scale, sum[i][c], hn::LoadU(d, to + c * n)), d, to + c * n);
  }
}

template <size_t kTokens, class Element>
HWY_INLINE void combine_tokens(const FactorTile& t, size_t token, size_t columns, const float* scales,
                               const Element* pool, float* y, Fetcher& ahead) {
  const size_t n = hn::Lanes(F());
  const float* z = t.z + token * t.z_stride;
  scales += token;
  y += token * t.width;
  size_t column = 0;
  constexpr size_t kVectors = kTokens == 1 ? 8 : kSums;
  for (; column + kVectors * n <= columns; column += kVectors * n)
    combine<kTokens, kVectors>(t, z, scales, pool + column, y + column, ahead);
  for (; column + n <= columns; column += n) combine<kTokens, 1>(t, z, scales, pool + column, y + column, ahead);
  for (; column < columns; ++column)
    for (size_t i = 0; i < kTokens; ++i) {
      float sum = 0.0F;
      for (size_t j = 0; j < t.rank; ++j) sum += z[i * t.z_stride + j] * element(pool[j * t.width + column]);
      y[i * t.width + column] += scales[i] * sum;
    }
}

template <class Element>
void up_tile(const FactorTile& t, const UpRows& rows, const Element* pool, FetchRegion next) {
  Fetcher ahead({&next, 1}, 0, next.lines(), t.rank * rows.columns / (8 * hn::Lanes(F())));
  size_t token = 0;
  for (; token + 4 <= t.tokens; token += 4) combine_tokens<4>(t, token, rows.columns, rows.scales, pool, rows.y, ahead);
  for (; token < t.tokens; ++token) combine_tokens<1>(t, token, rows.columns, rows.scales, pool, rows.y, ahead);
}

void down_f32(const FactorTile& t, const float* x, const float* pool, FetchRegion next) { down_tile(t, x, pool, next); }
void down_bf16(const FactorTile& t, const float* x, const uint16_t* pool, FetchRegion next) {
  down_tile(t, x, pool, next);
}
void up_f32(const FactorTile& t, const UpRows& rows, const float* pool, FetchRegion next) {
  up_tile(t, rows, pool, next);
}
void up_bf16(const FactorTile& t, const UpRows& rows, const uint16_t* pool, FetchRegion next) {
  up_tile(t, rows, pool, next);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(down_f32);
HWY_EXPORT(down_bf16);
HWY_EXPORT(up_f32);
HWY_EXPORT(up_bf16);

enum Input : size_t { kY, kX, kA, kB, kRanges, kScales };

// Tokens of one run: their rows of x and y stay in the cache while the factors pass by.
constexpr size_t kTokens = 16;
// Rows of A, and columns of B, in a part of a run.
constexpr size_t kRankBlock = 16;
constexpr size_t kColumnBlock = 1024;
// Numbers of the factors that a tile of parts goes through at least.
constexpr size_t kTileNumbers = 16384;

struct Plan {
  size_t tokens, in, out, pool_rows;
  DType dtype_a, dtype_b;

  bool holds(int64_t row, int64_t rank) const {
    return row >= 0 && rank >= 0 && row + rank <= static_cast<int64_t>(pool_rows);
  }
};

/// Tokens [first, first + count) with the factors [row, row + rank).
struct Run {
  size_t first, count, row, rank;
  /// Of z [count, rank] within all of them.
  size_t z;

  size_t work() const { return count * rank; }
};

/// Runs of tokens that follow each other; ranges that the pools do not hold go to `refuse`.
template <class Refuse>
std::vector<Run> read_runs(const Plan& plan, const int32_t* ranges, const Refuse& refuse) {
  std::vector<Run> runs;
  size_t z = 0;
  for (size_t i = 0; i < plan.tokens; ++i) {
    const int64_t row = ranges[2 * i];
    const int64_t rank = ranges[2 * i + 1];
    if (rank == 0) continue;
    if (!plan.holds(row, rank)) {
      refuse(row, rank);
      continue;
    }
    const Run run{i, 1, static_cast<size_t>(row), static_cast<size_t>(rank), z};
    z = checked_add(z, run.rank, "grouped_low_rank");
    if (!runs.empty()) {
      Run& last = runs.back();
      if (last.first + last.count == i && last.count < kTokens && last.row == run.row && last.rank == run.rank) {
        ++last.count;
        continue;
      }
    }
    runs.push_back(run);
  }
  return runs;
}

/// Those that take longest come first, so that threads that take one after the other end together.
void sort_by_work(std::vector<Run>& runs) { std::ranges::stable_sort(runs, std::ranges::greater(), &Run::work); }

/// What one instruction computes, run by run or in parts of runs.
struct Call {
  const Plan& plan;
  std::span<const void* const> in;
  float* z;
  float* y;

  template <class T>
  const T* input(Input i) const {
    return static_cast<const T*>(in[i]);
  }

  FetchRegion a(const Run& run) const {
    const size_t row = plan.in * dtype_size(plan.dtype_a);
    return {input<std::byte>(kA) + run.row * row, run.rank * row};
  }
  FetchRegion b(const Run& run) const {
    const size_t row = plan.out * dtype_size(plan.dtype_b);
    return {input<std::byte>(kB) + run.row * row, run.rank * row};
  }

  /// z of a run by rows [begin, end) of its A; `next` is read afterwards.
  void down(const Run& run, size_t begin, size_t end, FetchRegion next) const {
    const FactorTile tile{run.count, end - begin, plan.in, z + run.z + begin, run.rank};
    const float* x = input<float>(kX) + run.first * plan.in;
    const size_t from = (run.row + begin) * plan.in;
    if (plan.dtype_a == DType::kBF16)
      HWY_DYNAMIC_DISPATCH(down_bf16)(tile, x, input<uint16_t>(kA) + from, next);
    else
      HWY_DYNAMIC_DISPATCH(down_f32)(tile, x, input<float>(kA) + from, next);
  }

  /// Columns [begin, end) of a run's rows of y.
  void up(const Run& run, size_t begin, size_t end, FetchRegion next) const {
    const FactorTile tile{run.count, run.rank, plan.out, z + run.z, run.rank};
    const UpRows rows{end - begin, input<float>(kScales) + run.first, y + run.first * plan.out + begin};
    const size_t from = run.row * plan.out + begin;
    if (plan.dtype_b == DType::kBF16)
      HWY_DYNAMIC_DISPATCH(up_bf16)(tile, rows, input<uint16_t>(kB) + from, next);
    else
      HWY_DYNAMIC_DISPATCH(up_f32)(tile, rows, input<float>(kB) + from, next);
  }
};

/// A part of a run: rows of A, or columns of B, [begin, end).
struct Part {
  size_t run, begin, end;
};

/// Tiles of the parts of runs, of about kTileNumbers numbers each: [tile, tile + 1) of `ends` are the parts of one.
struct Tiles {
  std::vector<Part> parts;
  std::vector<size_t> ends;

  void add(const Part& part, size_t numbers) {
    parts.push_back(part);
    open_ += numbers;
    if (open_ >= kTileNumbers) close();
  }
  void close() {
    if (open_ > 0) ends.push_back(parts.size());
    open_ = 0;
  }
  size_t begin(size_t tile) const { return tile == 0 ? 0 : ends[tile - 1]; }

  template <class Body>
  void run(TilePool& pool, const Body& body) const {
    for_row_ranges(pool, ends.size(), 1, [&](size_t tile, size_t) {
      for (size_t i = begin(tile); i < ends[tile]; ++i) body(parts[i]);
    });
  }

 private:
  size_t open_ = 0;
};

/// Few runs, or one that is longer than the others together: first z of all of them, then y, part by part.
void run_in_parts(const Call& call, const std::vector<Run>& runs, TilePool& pool) {
  const auto& [in, out] = std::tie(call.plan.in, call.plan.out);
  Tiles down;
  Tiles up;
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[i];
    for (size_t begin = 0; begin < run.rank; begin += kRankBlock) {
      const size_t end = std::min(run.rank, begin + kRankBlock);
      down.add({i, begin, end}, (end - begin) * in * run.count);
    }
    for (size_t begin = 0; begin < out; begin += kColumnBlock) {
      const size_t end = std::min(out, begin + kColumnBlock);
      up.add({i, begin, end}, (end - begin) * run.work());
    }
  }
  down.close();
  up.close();
  down.run(pool, [&](const Part& part) { call.down(runs[part.run], part.begin, part.end, {}); });
  up.run(pool, [&](const Part& part) { call.up(runs[part.run], part.begin, part.end, {}); });
}

/// A run is one tile: its thread asks for B while it works with A, and then for what it probably gets next.
void run_one_by_one(const Call& call, const std::vector<Run>& runs, TilePool& pool) {
  pool.run(runs.size(), [&](size_t tile, size_t) {
    const size_t next = tile + pool.threads();
    call.down(runs[tile], 0, runs[tile].rank, call.b(runs[tile]));
    call.up(runs[tile], 0, call.plan.out, next < runs.size() ? call.a(runs[next]) : FetchRegion{});
  });
}

/// Whether threads that take whole runs, sorted by work, end at about the same time.
bool splits_evenly(const std::vector<Run>& runs, size_t threads) {
  size_t work = 0;
  for (const Run& run : runs) work += run.work();
  return 2 * threads * runs.front().work() <= work;
}

void run_grouped(const Plan& plan, const RunArguments& arguments) {
  std::vector<Run> runs = read_runs(plan, arguments.input<int32_t>(kRanges), [&](int64_t row, int64_t rank) {
    throw Error(ErrorCode::kArgument, "grouped_low_rank",
                "ranges within the " + std::to_string(plan.pool_rows) + " rows of the pools",
                "rows from " + std::to_string(row) + " on, " + std::to_string(rank) + " of them");
  });
  if (arguments.in[kY] != arguments.out[0])
    std::copy_n(arguments.input<float>(kY), plan.tokens * plan.out, arguments.output<float>(0));
  if (runs.empty()) return;
  const size_t z_count = runs.back().z + runs.back().work();
  const RunBuffer z(checked_mul(z_count, sizeof(float), "grouped_low_rank"));
  const Call call{plan, arguments.in, reinterpret_cast<float*>(z.data()), arguments.output<float>(0)};
  sort_by_work(runs);
  if (splits_evenly(runs, arguments.pool.threads()))
    run_one_by_one(call, runs, arguments.pool);
  else
    run_in_parts(call, runs, arguments.pool);
}

/// The factors of all runs, in the order in which run_one_by_one goes through them.
void read_factors(const Plan& plan, std::span<const void* const> in, std::vector<FetchRegion>& regions) {
  std::vector<Run> runs = read_runs(plan, static_cast<const int32_t*>(in[kRanges]), [](int64_t, int64_t) {});
  sort_by_work(runs);
  const Call call{plan, in, nullptr, nullptr};
  for (const Run& run : runs) {
    regions.push_back(call.a(run));
    regions.push_back(call.b(run));
  }
}

Plan read_plan(const KernelRequest& request) {
  const auto matrix = [&](Input input, const char* name) -> const Operand& {
    const Operand& operand = request.inputs[input];
    request.check(operand.present && operand.shape.rank() == 2, std::string(name) + ", a matrix",
                  operand_text(operand));
    return operand;
  };
  const Operand& y = matrix(kY, "y");
  const Operand& x = matrix(kX, "x");
  const Operand& a = matrix(kA, "a");
  const Operand& b = matrix(kB, "b");
  for (const Operand* pool : {&a, &b})
    request.check(pool->dtype == DType::kF32 || pool->dtype == DType::kBF16, "pools of f32 or bf16",
                  dtype_name(pool->dtype));
  const int64_t n = y.shape[0];
  check_operand(request, y, "y", DType::kF32, y.shape);
  check_operand(request, x, "x", DType::kF32, Shape{n, x.shape[1]});
  check_operand(request, a, "a", a.dtype, Shape{a.shape[0], x.shape[1]});
  check_operand(request, b, "b", b.dtype, Shape{a.shape[0], y.shape[1]});
  check_operand(request, request.inputs[kRanges], "ranges", DType::kI32, Shape{n, 2});
  check_operand(request, request.inputs[kScales], "scales", DType::kF32, Shape{n});
  check_operand(request, request.outputs[0], "y", DType::kF32, y.shape);
  return {static_cast<size_t>(n),
          static_cast<size_t>(x.shape[1]),
          static_cast<size_t>(y.shape[1]),
          static_cast<size_t>(a.shape[0]),
          a.dtype,
          b.dtype};
}

CompiledKernel compile_grouped_low_rank(const KernelRequest& request) {
  request.expect_counts(6, 1);
  const Plan plan = read_plan(request);
  CompiledKernel kernel;
  kernel.in_place = {{kY, 0}};
  kernel.run = [plan](const RunArguments& arguments) { run_grouped(plan, arguments); };
  kernel.reads = [plan](std::span<const void* const> in, std::vector<FetchRegion>& regions) {
    read_factors(plan, in, regions);
  };
  return kernel;
}

}  // namespace

void register_grouped_low_rank(KernelTable& table) { table["grouped_low_rank"] = compile_grouped_low_rank; }

}  // namespace heddle

#endif  // HWY_ONCE
