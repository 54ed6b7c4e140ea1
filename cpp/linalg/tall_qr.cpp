#include "linalg/tall_qr.h"

#include "linalg/lapack.h"

namespace heddle {
namespace {

size_t block_rows(size_t n) { return std::max<size_t>(512, 4 * n); }

/// A block of rows as r and 1 - v t v^T.
template <class T>
struct ReflectedBlock {
  size_t rows = 0, n = 0;
  /// [rows, n], column-major, with ones on its diagonal and zeros above.
  std::vector<T> v;
  /// [n, n], column-major.
  std::vector<T> t;
};

template <class T>
ReflectedBlock<T> reflect_block(const T* a, size_t rows, size_t n, T* r) {
  ReflectedBlock<T> block{rows, n, std::vector<T>(rows * n), std::vector<T>(n * n)};
  transpose_matrix(a, rows, n, block.v.data());
  lapack::check_call("qr", lapack::geqrt(static_cast<int>(rows), static_cast<int>(n), block.v.data(), block.t.data()));
  for (size_t j = 0; j < n; ++j) {
    T* const column = &block.v[j * rows];
    for (size_t i = 0; i < n; ++i) r[i * n + j] = i <= j ? column[i] : T{0};
    std::fill_n(column, j, T{0});
    column[j] = 1;
    std::fill_n(&block.t[j * n] + j + 1, n - j - 1, T{0});
  }
  return block;
}

/// q [rows, n] = the first n columns of 1 - v t v^T, times turn [n, n]; all row-major.
template <class T>
void multiply_block(const ReflectedBlock<T>& block, const T* turn, T* q) {
  const int rows = static_cast<int>(block.rows), n = static_cast<int>(block.n);
  std::vector<T> top(block.n * block.n), turned(block.n * block.n);
  lapack::gemm('N', 'T', n, n, n, block.t.data(), n, block.v.data(), rows, top.data(), n);
  lapack::gemm('N', 'T', n, n, n, top.data(), n, turn, n, turned.data(), n);
  lapack::gemm('T', 'T', n, rows, n, turned.data(), n, block.v.data(), rows, q, n, T{-1});
  for (size_t i = 0; i < block.n * block.n; ++i) q[i] += turn[i];
}

template <class T>
void factor_tree(TilePool& pool, const T* a, size_t m, size_t n, T* q, T* r) {
  const size_t count = std::max<size_t>(1, m / block_rows(n));
  const auto start = [&](size_t block) { return block * m / count; };
  std::vector<ReflectedBlock<T>> blocks(count);
  std::vector<T> triangles(count * n * n), turns(q == nullptr ? 0 : count * n * n);
  pool.run(count, [&](size_t block, size_t) {
    const size_t first = start(block);
    blocks[block] = reflect_block(a + first * n, start(block + 1) - first, n, &triangles[block * n * n]);
  });
  if (count == 1) {
    std::copy(triangles.begin(), triangles.end(), r);
    for (size_t i = 0; i < n && q != nullptr; ++i) turns[i * n + i] = 1;
  } else {
    factor_tree(pool, triangles.data(), count * n, n, q == nullptr ? nullptr : turns.data(), r);
  }
  if (q == nullptr) return;
  pool.run(count,
           [&](size_t block, size_t) { multiply_block(blocks[block], &turns[block * n * n], q + start(block) * n); });
}

/// The signs of r's diagonal that reflections of the whole matrix would have given, from the first n rows of q: they
/// take q to a diagonal of signs, each opposite to the element it replaces (Ballard et al. 2015, reconstruction).
template <class T>
std::vector<T> reflection_signs(const T* q, size_t n) {
  std::vector<T> work(q, q + n * n), signs(n);
  for (size_t k = 0; k < n; ++k) {
    const T* const row = &work[k * n];
    // A column with nothing below its diagonal is left as it is.
    const bool still = std::abs(row[k]) >= T{1};
    signs[k] = std::signbit(row[k]) == still ? T{-1} : T{1};
    if (still) continue;
    for (size_t i = k + 1; i < n; ++i) {
      const T factor = work[i * n + k] / (row[k] - signs[k]);
      for (size_t j = k + 1; j < n; ++j) work[i * n + j] -= factor * row[j];
    }
  }
  return signs;
}

}  // namespace

bool tall_enough(size_t rows, size_t columns) {
  constexpr size_t kWidest = 256;
  return columns != 0 && columns <= kWidest && rows >= 2 * block_rows(columns);
}

template <class T>
void tall_qr(TilePool& pool, const T* a, size_t m, size_t n, T* q, T* r) {
  factor_tree(pool, a, m, n, q, r);
  if (q == nullptr) return;
  const std::vector<T> signs = reflection_signs(q, n);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = i; j < n; ++j) r[i * n + j] *= signs[i];
  for_row_ranges(pool, m, rows_per_tile(n), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i)
      for (size_t j = 0; j < n; ++j) q[i * n + j] *= signs[j];
  });
}

template <class T>
void tall_product(TilePool& pool, const T* a, const T* b, size_t m, size_t k, size_t n, T* y) {
  constexpr size_t kRows = 256;
  for_row_ranges(pool, m, kRows, [&](size_t begin, size_t end) {
    lapack::gemm('N', 'N', static_cast<int>(n), static_cast<int>(end - begin), static_cast<int>(k), b,
                 static_cast<int>(n), a + begin * k, static_cast<int>(k), y + begin * n, static_cast<int>(n));
  });
}

template void tall_qr<float>(TilePool&, const float*, size_t, size_t, float*, float*);
template void tall_qr<double>(TilePool&, const double*, size_t, size_t, double*, double*);
template void tall_product<float>(TilePool&, const float*, const float*, size_t, size_t, size_t, float*);
template void tall_product<double>(TilePool&, const double*, const double*, size_t, size_t, size_t, double*);

}  // namespace heddle
