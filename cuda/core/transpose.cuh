// Batches of matrices turned by way of shared memory, so that reads and writes both run along rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/core/launch.cuh"
#include "cuda/core/shared.cuh"

namespace heddle::cuda {

inline constexpr unsigned kTurnTile = 32;
inline constexpr unsigned kTurnRows = 8;

/// y [count, columns, rows] from x [count, rows, columns]; blocks of kTurnTile x kTurnRows threads.
template <class T>
__global__ void turn_matrices(const T* x, T* y, int64_t count, int64_t rows, int64_t columns) {
  __shared__ Shared<T, kTurnTile*(kTurnTile + 1)> tile;
  const int64_t row_tiles = ceil_div(rows, kTurnTile), column_tiles = ceil_div(columns, kTurnTile);
  for (int64_t unit = blockIdx.x; unit < count * row_tiles * column_tiles; unit += gridDim.x) {
    const int64_t column = unit % column_tiles * kTurnTile, row = unit / column_tiles % row_tiles * kTurnTile;
    const int64_t start = unit / column_tiles / row_tiles * rows * columns;
    for (unsigned i = threadIdx.y; i < kTurnTile; i += kTurnRows)
      if (row + i < rows && column + threadIdx.x < columns)
        tile[i * (kTurnTile + 1) + threadIdx.x] = x[start + (row + i) * columns + column + threadIdx.x];
    __syncthreads();
    for (unsigned i = threadIdx.y; i < kTurnTile; i += kTurnRows)
      if (column + i < columns && row + threadIdx.x < rows)
        y[start + (column + i) * rows + row + threadIdx.x] = tile[threadIdx.x * (kTurnTile + 1) + i];
    __syncthreads();
  }
}

/// Starts turn_matrices(); matrices without elements start nothing.
template <class T>
void turn(const Run& run, const T* x, T* y, int64_t count, int64_t rows, int64_t columns) {
  if (count * rows * columns == 0) return;
  const int64_t tiles = count * ceil_div(rows, kTurnTile) * ceil_div(columns, kTurnTile);
  launch(run, turn_matrices<T>, {blocks_for(tiles), dim3(kTurnTile, kTurnRows)}, x, y, count, rows, columns);
}

}  // namespace heddle::cuda
