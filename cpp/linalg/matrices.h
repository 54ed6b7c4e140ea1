// Batches of matrices as kernels of cpp/linalg see them, and how they are shared out to threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/abort.h"
#include "kernels/rows.h"

namespace heddle {

/// a [..., m, n], row-major.
struct Matrices {
  size_t count = 0, rows = 0, columns = 0;
  DType dtype = DType::kF32;
  /// [...]
  std::vector<int64_t> leading;

  size_t size() const noexcept { return rows * columns; }
  size_t rank() const noexcept { return std::min(rows, columns); }
  /// The leading dimensions and some more.
  Shape with(std::initializer_list<size_t> sizes) const {
    std::vector<int64_t> dims = leading;
    for (const size_t size : sizes) dims.push_back(static_cast<int64_t>(size));
    return Shape(dims);
  }
};

inline Matrices read_matrices(const KernelRequest& request, const Operand& a, const char* name) {
  check_float(request, a, name);
  request.check(a.shape.rank() >= 2, std::string(name) + " [..., m, n]", a.shape.str());
  const auto dims = a.shape.dims();
  Matrices matrices{a.shape.count(0, dims.size() - 2),
                    static_cast<size_t>(a.shape.back(1)),
                    static_cast<size_t>(a.shape.back(0)),
                    a.dtype,
                    {dims.begin(), dims.end() - 2}};
  request.check(std::max(matrices.rows, matrices.columns) <= std::numeric_limits<int32_t>::max(),
                "matrices of fewer than 2^31 rows and columns", a.shape.str());
  return matrices;
}

inline Matrices read_square(const KernelRequest& request, const Operand& a, const char* name) {
  Matrices matrices = read_matrices(request, a, name);
  request.check(matrices.rows == matrices.columns, std::string(name) + " [..., n, n]", a.shape.str());
  return matrices;
}

/// LAPACK and QR iterations may not come back from NaN.
template <class T>
void check_finite(const char* op, const T* values, size_t count) {
  if (!std::all_of(values, values + count, [](T value) { return std::isfinite(value); }))
    throw Error(ErrorCode::kArgument, op, "finite numbers", "NaN or infinity");
}

/// While it lives, BLAS works with so many threads; otherwise with the calling one alone, for the pool is the
/// parallelism.
class BlasThreads {
 public:
  explicit BlasThreads(size_t threads);
  ~BlasThreads();
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;
};

/// From here on one matrix is enough work for all threads.
inline constexpr size_t kLargeMatrix = 512;

/// Runs body(index) for each matrix of a batch: large ones one after the other with the threads inside of BLAS, others
/// side by side, `per_tile` to a tile. Asks before each whether the run should stop.
template <class Body>
void for_matrices(TilePool& pool, const Matrices& a, size_t per_tile, const Body& body) {
  const Aborted* const aborted = current_abort();
  if (a.count == 1 || a.rank() >= kLargeMatrix) {
    const BlasThreads threads(std::max(a.rows, a.columns) >= kLargeMatrix / 4 ? pool.threads() : 1);
    for (size_t i = 0; i < a.count; ++i) {
      check_aborted(aborted);
      body(i);
    }
    return;
  }
  const BlasThreads alone(1);
  for_row_ranges(pool, a.count, per_tile, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      check_aborted(aborted);
      body(i);
    }
  });
}

/// Runs body(index) for each matrix, one after the other, with BLAS on one thread: each makes tiles of its own.
template <class Body>
void for_tall_matrices(const Matrices& a, const Body& body) {
  const Aborted* const aborted = current_abort();
  const BlasThreads alone(1);
  for (size_t i = 0; i < a.count; ++i) {
    check_aborted(aborted);
    body(i);
  }
}

/// So many matrices make a tile worth a thread's while, with about n^3 operations each.
inline size_t matrices_per_tile(const Matrices& a) {
  const size_t cost = std::max<size_t>(1, a.size()) * std::max<size_t>(1, a.rank());
  return std::max<size_t>(1, (size_t{1} << 17) / cost);
}

template <class T>
void transpose_matrix(const T* from, size_t rows, size_t columns, T* to) {
  constexpr size_t kBlock = 16;
  for (size_t i0 = 0; i0 < rows; i0 += kBlock)
    for (size_t j0 = 0; j0 < columns; j0 += kBlock)
      for (size_t i = i0; i < std::min(i0 + kBlock, rows); ++i)
        for (size_t j = j0; j < std::min(j0 + kBlock, columns); ++j) to[j * rows + i] = from[i * columns + j];
}

}  // namespace heddle
