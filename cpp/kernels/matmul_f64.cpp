// f64 products: tiles of y, each summed over blocks of k from packed copies of its rows of a and columns of b. Tiles
// and blocks have fixed sizes, so the order of every sum depends on the shapes alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/matmul_f64.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_KERNELS_MATMUL_F64_ONCE
#define HEDDLE_KERNELS_MATMUL_F64_ONCE

#include <algorithm>

#include "kernels/matmul_f64.h"

namespace heddle {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 64;
constexpr int64_t kDepth = 256;

/// Dense working memory of one thread: a [kTileRows, kDepth], b [kDepth, kTileColumns], y [kTileRows, kTileColumns].
struct TileScratch {
  double a[kTileRows * kDepth];
  double b[kDepth * kTileColumns];
  double y[kTileRows * kTileColumns];
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_MATMUL_F64_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// y += a @ b over `rows` rows and `depth` steps of k.
void multiply_block(TileScratch& tile, int64_t rows, int64_t depth) {
  const hn::CappedTag<double, 8> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t row = 0; row < rows; ++row) {
    const double* a = tile.a + row * kDepth;
    for (int64_t column = 0; column < kTileColumns; column += 2 * lanes) {
      double* y = tile.y + row * kTileColumns + column;
      auto left = hn::LoadU(d, y);
      auto right = hn::LoadU(d, y + lanes);
      for (int64_t k = 0; k < depth; ++k) {
        const double* b = tile.b + k * kTileColumns + column;
        const auto factor = hn::Set(d, a[k]);
        left = hn::MulAdd(factor, hn::LoadU(d, b), left);
        right = hn::MulAdd(factor, hn::LoadU(d, b + lanes), right);
      }
      hn::StoreU(left, d, y);
      hn::StoreU(right, d, y + lanes);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(multiply_block);

/// Rows [row, row + rows) and columns [column, column + columns) of op(x), stored [height, width] (or transposed), into
/// `target` with rows `stride` apart; what is missing to `stride` becomes zero.
struct Window {
  int64_t row, column, rows, columns;
};
void pack(const double* x, int64_t height, int64_t width, bool transposed, const Window& window, double* target,
          int64_t stride) {
  const int64_t down = transposed ? 1 : width;
  const int64_t across = transposed ? height : 1;
  for (int64_t r = 0; r < window.rows; ++r) {
    const double* from = x + (window.row + r) * down + window.column * across;
    double* to = target + r * stride;
    for (int64_t c = 0; c < window.columns; ++c) to[c] = from[c * across];
    std::fill(to + window.columns, to + stride, 0.0);
  }
}

void run_tile(const Problem& problem, const RunArguments& arguments, int64_t index, TileScratch& tile) {
  const int64_t row_tiles = ceil_div(problem.m, kTileRows);
  const int64_t column_tiles = ceil_div(problem.n, kTileColumns);
  const int64_t item = index / (row_tiles * column_tiles);
  const int64_t row = index / column_tiles % row_tiles * kTileRows;
  const int64_t column = index % column_tiles * kTileColumns;
  const int64_t rows = std::min(kTileRows, problem.m - row);
  const int64_t columns = std::min(kTileColumns, problem.n - column);
  const double* a = arguments.input<double>(0) + item * problem.m * problem.k;
  const double* b = arguments.input<double>(1) + (problem.share_b ? 0 : item * problem.k * problem.n);
  std::fill_n(tile.y, kTileRows * kTileColumns, 0.0);
  for (int64_t k = 0; k < problem.k; k += kDepth) {
    const int64_t depth = std::min(kDepth, problem.k - k);
    pack(a, problem.m, problem.k, problem.transpose_a, {row, k, rows, depth}, tile.a, kDepth);
    pack(b, problem.k, problem.n, problem.transpose_b, {k, column, depth, columns}, tile.b, kTileColumns);
    HWY_DYNAMIC_DISPATCH(multiply_block)(tile, rows, depth);
  }
  double* y = arguments.output<double>(0) + item * problem.m * problem.n;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t at = (row + r) * problem.n + column + c;
      double sum = problem.exact_alpha * tile.y[r * kTileColumns + c];
      if (problem.addend == Addend::kFull) sum += arguments.input<double>(2)[item * problem.m * problem.n + at];
      if (problem.addend == Addend::kBias) sum += arguments.input<double>(2)[column + c];
      y[at] = sum;
    }
}

}  // namespace

CompiledKernel compile_matmul_f64(const Problem& problem) {
  CompiledKernel kernel;
  kernel.scratch_per_thread = sizeof(TileScratch);
  if (problem.addend == Addend::kFull) kernel.in_place = {{2, 0}};
  const auto tiles = checked_mul(
      checked_mul(static_cast<size_t>(problem.batch), static_cast<size_t>(ceil_div(problem.m, kTileRows)), "matmul"),
      static_cast<size_t>(ceil_div(problem.n, kTileColumns)), "matmul");
  kernel.run = [problem, tiles](const RunArguments& arguments) {
    if (tiles == 0) return;
    arguments.pool.run(tiles, [&](size_t tile, size_t thread) {
      run_tile(problem, arguments, static_cast<int64_t>(tile), *arguments.thread_scratch<TileScratch>(thread));
    });
  };
  return kernel;
}

}  // namespace heddle

#endif  // HWY_ONCE
