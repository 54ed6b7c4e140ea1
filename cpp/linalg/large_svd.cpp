#include "linalg/large_svd.h"

#include "linalg/lanes.h"
#include "linalg/lapack.h"

namespace heddle {
namespace {

/// Reflections multiplied at once.
constexpr size_t kBlock = 128;

/// Reflections in a matrix a [rows of it, ...] after gebrd, column-major: the k-th is in column k from row k + shift
/// on, or, across, in row k from column k + shift on.
template <class T>
struct StoredReflections {
  const T* a;
  size_t stride;
  bool across;
  size_t count, shift, size;
  const T* taus;
};

/// v [height, width] and t [width, width], column-major, with 1 - v t v^T the product of a block's reflections.
template <class T>
struct ReflectionBlock {
  size_t start;
  int height, width;
  std::vector<T> v, t;
};

template <class T>
ReflectionBlock<T> block_of(const StoredReflections<T>& all, size_t first) {
  const size_t width = std::min(kBlock, all.count - first), start = first + all.shift, height = all.size - start;
  ReflectionBlock<T> block{start, static_cast<int>(height), static_cast<int>(width), std::vector<T>(height * width),
                           std::vector<T>(width * width)};
  const size_t down = all.across ? all.stride : 1, right = all.across ? 1 : all.stride;
  for (size_t j = 0; j < width; ++j) {
    block.v[j * height + j] = 1;
    for (size_t i = j + 1; i < height; ++i) block.v[j * height + i] = all.a[(start + i) * down + (first + j) * right];
  }
  lapack::check_call("svd", lapack::larft(block.height, block.width, block.v.data(), all.taus + first, block.t.data()));
  return block;
}

/// Calls apply(block) from the last block to the first.
template <class T, class Apply>
void for_blocks_backwards(const StoredReflections<T>& all, const Apply& apply) {
  for (size_t block = (all.count + kBlock - 1) / kBlock; block-- > 0;) apply(block_of(all, block * kBlock));
}

/// c [size, columns] = product of all reflections times c; column-major.
template <class T>
void multiply_from_left(const StoredReflections<T>& all, T* c, size_t columns) {
  const int width = static_cast<int>(columns), stride = static_cast<int>(all.size);
  std::vector<T> along(kBlock * columns), turned(kBlock * columns);
  for_blocks_backwards(all, [&](const ReflectionBlock<T>& block) {
    const auto [start, h, k, v, t] = std::tie(block.start, block.height, block.width, block.v, block.t);
    lapack::gemm('T', 'N', k, width, h, v.data(), h, c + start, stride, along.data(), k);
    lapack::gemm('N', 'N', k, width, k, t.data(), k, along.data(), k, turned.data(), k);
    lapack::gemm('N', 'N', h, width, k, v.data(), h, turned.data(), k, c + start, stride, T{-1}, T{1});
  });
}

/// c [rows, size] = c times the transpose of that product.
template <class T>
void multiply_from_right(const StoredReflections<T>& all, T* c, size_t rows) {
  const int height = static_cast<int>(rows);
  std::vector<T> along(kBlock * rows), turned(kBlock * rows);
  for_blocks_backwards(all, [&](const ReflectionBlock<T>& block) {
    const auto [start, h, k, v, t] = std::tie(block.start, block.height, block.width, block.v, block.t);
    T* const part = c + start * rows;
    lapack::gemm('N', 'N', height, k, h, part, height, v.data(), h, along.data(), height);
    lapack::gemm('N', 'T', height, k, k, along.data(), height, t.data(), k, turned.data(), height);
    lapack::gemm('N', 'T', height, h, k, turned.data(), height, v.data(), h, part, height, T{-1}, T{1});
  });
}

}  // namespace

bool large_enough(size_t rows, size_t columns) {
  const size_t small = std::min(rows, columns), large = std::max(rows, columns);
  // Longer ones gesdd takes by their QR.
  return small >= kLargeMatrix && 6 * large < 11 * small;
}

template <class T>
void large_svd(const T* a, size_t m, size_t n, T* u, T* s, T* vh) {
  // What is a^T [n, m] to LAPACK has our vh, transposed, as left vectors.
  const size_t rank = std::min(m, n);
  const T scale = scale_for(largest_of(a, m * n));
  std::vector<T> work(m * n), beside(rank), left_taus(rank), right_taus(rank);
  for (size_t i = 0; i < m * n; ++i) work[i] = a[i] / scale;
  lapack::check_call("svd", lapack::gebrd(static_cast<int>(n), static_cast<int>(m), work.data(), s, beside.data(),
                                          left_taus.data(), right_taus.data()));
  const bool upper = n >= m;
  std::fill_n(vh, n * rank, T{0});
  std::fill_n(u, rank * m, T{0});
  lapack::check_converged("svd", lapack::bdsdc(upper ? 'U' : 'L', static_cast<int>(rank), s, beside.data(), vh,
                                               static_cast<int>(n), u, static_cast<int>(rank)));
  for (size_t i = 0; i < rank; ++i) s[i] *= scale;
  const size_t shorter = rank - 1;
  multiply_from_left<T>({work.data(), n, false, upper ? rank : shorter, upper ? 0U : 1U, n, left_taus.data()}, vh,
                        rank);
  multiply_from_right<T>({work.data(), n, true, upper ? shorter : rank, upper ? 1U : 0U, m, right_taus.data()}, u,
                         rank);
}

template void large_svd<float>(const float*, size_t, size_t, float*, float*, float*);
template void large_svd<double>(const double*, size_t, size_t, double*, double*, double*);

}  // namespace heddle
