#include "linalg/tall_qr.h"

#include "linalg/lapack.h"

namespace heddle {
namespace {

size_t block_rows(size_t n) { return std::max<size_t>(512, 4 * n); }

/// r [n, n] and, if asked, q as n columns in place of a block's copy [rows, n].
template <class T>
void reflect_block(const T* a, size_t rows, size_t n, T* columns, T* r, bool with_q) {
  transpose_matrix(a, rows, n, columns);
  std::vector<T> tau(n);
  const int height = static_cast<int>(rows), width = static_cast<int>(n);
  lapack::check_call("qr", lapack::geqrf(height, width, columns, tau.data()));
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) r[i * n + j] = j < i ? T{0} : columns[j * rows + i];
  if (with_q) lapack::check_call("qr", lapack::orgqr(height, width, width, columns, tau.data()));
}

template <class T>
void factor_tree(TilePool& pool, const T* a, size_t m, size_t n, T* q, T* r) {
  const size_t blocks = std::max<size_t>(1, m / block_rows(n));
  std::vector<T> columns(m * n);
  if (blocks == 1) {
    reflect_block(a, m, n, columns.data(), r, q != nullptr);
    if (q != nullptr) transpose_matrix(columns.data(), n, m, q);
    return;
  }
  const auto start = [&](size_t block) { return block * m / blocks; };
  std::vector<T> triangles(blocks * n * n), turns(q == nullptr ? 0 : blocks * n * n);
  pool.run(blocks, [&](size_t block, size_t) {
    const size_t first = start(block);
    reflect_block(a + first * n, start(block + 1) - first, n, &columns[first * n], &triangles[block * n * n],
                  q != nullptr);
  });
  factor_tree(pool, triangles.data(), blocks * n, n, q == nullptr ? nullptr : turns.data(), r);
  if (q == nullptr) return;
  pool.run(blocks, [&](size_t block, size_t) {
    const size_t first = start(block), rows = start(block + 1) - first;
    // q^T = turn^T block^T, all of them as LAPACK sees them.
    lapack::gemm('N', 'T', static_cast<int>(n), static_cast<int>(rows), static_cast<int>(n), &turns[block * n * n],
                 static_cast<int>(n), &columns[first * n], static_cast<int>(rows), q + first * n, static_cast<int>(n));
  });
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
