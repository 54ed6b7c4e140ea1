// Sums over the rows of a matrix, for each column: gradients of what is shared by all rows. Rows are cut into chunks, a
// thread each per column; then the chunks' sums are added in their order.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/core/launch.cuh"

namespace heddle::cuda {

struct ColumnChunks {
  int64_t rows = 0, columns = 0;
  int64_t chunk = 1, chunks = 1;

  ColumnChunks(int64_t row_count, int64_t column_count) : rows(row_count), columns(column_count) {
    constexpr int64_t kWantedThreads = 1 << 16;
    constexpr int64_t kSmallest = 16;
    const int64_t wanted = std::max<int64_t>(1, kWantedThreads / std::max<int64_t>(1, columns));
    chunk = std::max({kSmallest, ceil_div(rows, wanted), int64_t{1}});
    chunks = std::max<int64_t>(1, ceil_div(rows, chunk));
  }

  size_t scratch_bytes() const { return static_cast<size_t>(chunks * columns) * sizeof(float); }
  Grid grid() const { return grid_of(chunks * columns); }
};

/// parts[chunk, column] = Σ over the chunk's rows of term(row, column). Terms are small structs of pointers.
template <class Term>
__global__ void sum_chunks(ColumnChunks chunks, Term term, float* parts) {
  for (int64_t unit = first_unit(); unit < chunks.chunks * chunks.columns; unit += unit_step()) {
    const int64_t column = unit % chunks.columns;
    const int64_t begin = unit / chunks.columns * chunks.chunk;
    const int64_t end = begin + chunks.chunk < chunks.rows ? begin + chunks.chunk : chunks.rows;
    float total = 0.0F;
    for (int64_t row = begin; row < end; ++row) total += term(row, column);
    parts[unit] = total;
  }
}

/// y [columns] = Σ of the chunks.
static __global__ void join_column_chunks(const float* parts, float* y, int64_t columns, int64_t chunks) {
  for (int64_t column = first_unit(); column < columns; column += unit_step()) {
    float total = 0.0F;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += parts[chunk * columns + column];
    y[column] = total;
  }
}

/// y [columns] = Σ over rows of term(row, column), by way of scratch_bytes() of scratch.
template <class Term>
void sum_columns(const Run& run, const ColumnChunks& chunks, const Term& term, float* y) {
  auto* const parts = run.scratch_at<float>(0);
  launch(run, sum_chunks<Term>, chunks.grid(), chunks, term, parts);
  launch(run, join_column_chunks, grid_of(chunks.columns), parts, y, chunks.columns, chunks.chunks);
}

}  // namespace heddle::cuda
