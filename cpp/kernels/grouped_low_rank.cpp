// y + scale_i (x_i A_i^T) B_i, where every token has low-rank factors of its own: rows of two pools. Consecutive tokens
// with the same factors share one pass over them. Sums run in an order that depends on nothing but the token's own
// operands, so that its result is the same with any neighbours and any number of threads.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

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
HWY_INLINE void dots(const FactorTile& t, const float* x, const Element* pool, float* z) {
  const F d;
  const size_t n = hn::Lanes(d);
  VF sum[kTokens][kRows];
#pragma GCC unroll 16
  for (size_t i = 0; i < kTokens; ++i)
#pragma GCC unroll 16
    for (size_t j = 0; j < kRows; ++j) sum[i][j] = hn::Zero(d);
  size_t k = 0;
  for (; k + n <= t.width; k += n) {
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
HWY_INLINE void dots_of_tokens(const FactorTile& t, size_t token, const float* x, const Element* pool) {
  float* z = t.z + token * t.z_stride;
  x += token * t.width;
  size_t j = 0;
  // As many sums at once as registers hold.
  constexpr size_t kRows = kTokens == 1 ? 8 : kSums;
  for (; j + kRows <= t.rank; j += kRows) dots<kTokens, kRows>(t, x, pool + j * t.width, z + j);
  for (; j < t.rank; ++j) dots<kTokens, 1>(t, x, pool + j * t.width, z + j);
}

template <class Element>
void down_tile(const FactorTile& t, const float* x, const Element* pool) {
  size_t token = 0;
  for (; token + 4 <= t.tokens; token += 4) dots_of_tokens<4>(t, token, x, pool);
  for (; token < t.tokens; ++token) dots_of_tokens<1>(t, token, x, pool);
}

/// y [kTokens, kVectors] += scales times (z times pool rows)
template <size_t kTokens, size_t kVectors, class Element>
HWY_INLINE void combine(const FactorTile& t, const float* z, const float* scales, const Element* pool, float* y) {
  const F d;
  const size_t n = hn::Lanes(d);
  VF sum[kTokens][kVectors];
#pragma GCC unroll 16
  for (size_t i = 0; i < kTokens; ++i)
#pragma GCC unroll 16
    for (size_t c = 0; c < kVectors; ++c) sum[i][c] = hn::Zero(d);
  for (size_t j = 0; j < t.rank; ++j, pool += t.width) {
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
                               const Element* pool, float* y) {
  const size_t n = hn::Lanes(F());
  const float* z = t.z + token * t.z_stride;
  scales += token;
  y += token * t.width;
  size_t column = 0;
  constexpr size_t kVectors = kTokens == 1 ? 8 : kSums;
  for (; column + kVectors * n <= columns; column += kVectors * n)
    combine<kTokens, kVectors>(t, z, scales, pool + column, y + column);
  for (; column + n <= columns; column += n) combine<kTokens, 1>(t, z, scales, pool + column, y + column);
  for (; column < columns; ++column)
    for (size_t i = 0; i < kTokens; ++i) {
      float sum = 0.0F;
      for (size_t j = 0; j < t.rank; ++j) sum += z[i * t.z_stride + j] * element(pool[j * t.width + column]);
      y[i * t.width + column] += scales[i] * sum;
    }
}

template <class Element>
void up_tile(const FactorTile& t, size_t columns, const float* scales, const Element* pool, float* y) {
  size_t token = 0;
  for (; token + 4 <= t.tokens; token += 4) combine_tokens<4>(t, token, columns, scales, pool, y);
  for (; token < t.tokens; ++token) combine_tokens<1>(t, token, columns, scales, pool, y);
}

void down_f32(const FactorTile& t, const float* x, const float* pool) { down_tile(t, x, pool); }
void down_bf16(const FactorTile& t, const float* x, const uint16_t* pool) { down_tile(t, x, pool); }
void up_f32(const FactorTile& t, size_t columns, const float* scales, const float* pool, float* y) {
  up_tile(t, columns, scales, pool, y);
}
void up_bf16(const FactorTile& t, size_t columns, const float* scales, const uint16_t* pool, float* y) {
  up_tile(t, columns, scales, pool, y);
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

// Tokens of one run in a tile: their rows of x and y stay in the cache while the factors pass by.
constexpr size_t kTokens = 16;
// Rows of A, and columns of B, in a tile.
constexpr size_t kRankBlock = 16;
constexpr size_t kColumnBlock = 1024;
// Numbers of the factors that a tile goes through at least, where runs are short.
constexpr size_t kTileNumbers = 16384;

struct Plan {
  size_t tokens, in, out, pool_rows;
  DType dtype_a, dtype_b;
};

/// Tokens [first, first + count) with the factors [row, row + rank).
struct Run {
  size_t first, count, row, rank;
  /// Of z [count, rank] within all of them.
  size_t z;
};

std::vector<Run> read_runs(const Plan& plan, const int32_t* ranges) {
  std::vector<Run> runs;
  size_t z = 0;
  for (size_t i = 0; i < plan.tokens; ++i) {
    const int64_t row = ranges[2 * i];
    const int64_t rank = ranges[2 * i + 1];
    if (rank == 0) continue;
    if (row < 0 || rank < 0 || row + rank > static_cast<int64_t>(plan.pool_rows))
      throw Error(ErrorCode::kArgument, "grouped_low_rank",
                  "ranges within the " + std::to_string(plan.pool_rows) + " rows of the pools",
                  "rows from " + std::to_string(row) + " on, " + std::to_string(rank) + " of them");
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

/// z of every run, part by part.
void run_down(const Plan& plan, const std::vector<Run>& runs, float* z, const RunArguments& arguments) {
  Tiles tiles;
  for (size_t i = 0; i < runs.size(); ++i)
    for (size_t begin = 0; begin < runs[i].rank; begin += kRankBlock) {
      const size_t end = std::min(runs[i].rank, begin + kRankBlock);
      tiles.add({i, begin, end}, (end - begin) * plan.in * runs[i].count);
    }
  tiles.close();
  tiles.run(arguments.pool, [&](const Part& part) {
    const Run& run = runs[part.run];
    const FactorTile tile{run.count, part.end - part.begin, plan.in, z + run.z + part.begin, run.rank};
    const float* x = arguments.input<float>(kX) + run.first * plan.in;
    const size_t from = (run.row + part.begin) * plan.in;
    if (plan.dtype_a == DType::kBF16)
      HWY_DYNAMIC_DISPATCH(down_bf16)(tile, x, arguments.input<uint16_t>(kA) + from);
    else
      HWY_DYNAMIC_DISPATCH(down_f32)(tile, x, arguments.input<float>(kA) + from);
  });
}

void run_up(const Plan& plan, const std::vector<Run>& runs, float* z, const RunArguments& arguments) {
  Tiles tiles;
  for (size_t i = 0; i < runs.size(); ++i)
    for (size_t begin = 0; begin < plan.out; begin += kColumnBlock) {
      const size_t end = std::min(plan.out, begin + kColumnBlock);
      tiles.add({i, begin, end}, (end - begin) * runs[i].rank * runs[i].count);
    }
  tiles.close();
  tiles.run(arguments.pool, [&](const Part& part) {
    const Run& run = runs[part.run];
    const FactorTile tile{run.count, run.rank, plan.out, z + run.z, run.rank};
    const float* scales = arguments.input<float>(kScales) + run.first;
    float* y = arguments.output<float>(0) + run.first * plan.out + part.begin;
    const size_t from = run.row * plan.out + part.begin;
    if (plan.dtype_b == DType::kBF16) HWY_DYNAMIC_DISPATCH(up_bf16)
    (tile, part.end - part.begin, scales, arguments.input<uint16_t>(kB) + from, y);
    else HWY_DYNAMIC_DISPATCH(up_f32)(tile, part.end - part.begin, scales, arguments.input<float>(kB) + from, y);
  });
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
  kernel.run = [plan](const RunArguments& arguments) {
    const std::vector<Run> runs = read_runs(plan, arguments.input<int32_t>(kRanges));
    if (arguments.in[kY] != arguments.out[0])
      std::copy_n(arguments.input<float>(kY), plan.tokens * plan.out, arguments.output<float>(0));
    if (runs.empty()) return;
    const size_t z_count = runs.back().z + runs.back().count * runs.back().rank;
    const RunBuffer z(checked_mul(z_count, sizeof(float), "grouped_low_rank"));
    auto* const values = reinterpret_cast<float*>(z.data());
    run_down(plan, runs, values, arguments);
    run_up(plan, runs, values, arguments);
  };
  return kernel;
}

}  // namespace

void register_grouped_low_rank(KernelTable& table) { table["grouped_low_rank"] = compile_grouped_low_rank; }

}  // namespace heddle

#endif  // HWY_ONCE
