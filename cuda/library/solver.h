// LAPACK's factorisations of one large matrix, by NVIDIA's cuSOLVER; in the emulation, by LAPACK.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace heddle::cuda {

/// What each routine gets beside its operands.
struct SolverCall {
  cudaStream_t stream;
  /// As much as the query of the routine said, 256-byte aligned.
  void* scratch;
  size_t scratch_bytes;
  /// On the device; becomes what LAPACK's routine of the name says: 0, or what it found wrong with the contents.
  int* info;
};

/// Routines under LAPACK's names. T is float or double, matrices are on the device, column-major, without gaps. They
/// may wait for the stream, and throw kDevice or kOutOfMemory. Results are the same at every run.
template <class T>
struct Solver {
  /// a [m, n] becomes r and, below it, the reflectors that `tau` belongs to.
  static size_t geqrf_scratch(int64_t m, int64_t n);
  static void geqrf(const SolverCall& call, int64_t m, int64_t n, T* a, T* tau);

  /// a [m, columns], with `count` reflectors in its first columns, becomes the first columns of their product.
  static size_t orgqr_scratch(int64_t m, int64_t columns, int64_t count);
  static void orgqr(const SolverCall& call, int64_t m, int64_t columns, int64_t count, T* a, const T* tau);

  /// a [n, n], of which the upper triangle counts, becomes its eigenvectors; w ascends. info > 0: it does not converge.
  static size_t syevd_scratch(int64_t n);
  static void syevd(const SolverCall& call, int64_t n, T* a, T* w);

  /// The upper triangle of a becomes u with a = uᵀ u. info > 0: the order of a leading minor that is not positive.
  static size_t potrf_scratch(int64_t n);
  static void potrf(const SolverCall& call, int64_t n, T* a);

  /// a [m, n] becomes l, without its diagonal, and u; row i changed places with row swaps[i] - 1. info > 0: a pivot
  /// that is zero.
  static size_t getrf_scratch(int64_t m, int64_t n);
  static void getrf(const SolverCall& call, int64_t m, int64_t n, T* a, int* swaps);

  /// b [n, columns] becomes the solution of a x = b, with what getrf() has made of a.
  static void getrs(const SolverCall& call, int64_t n, int64_t columns, const T* a, const int* swaps, T* b);

  /// a [m, n], which is overwritten, is u diag(s) vᵀ; s descends. u [m, k] and v [n, k] have all columns where `full`,
  /// as many as s where not, and are null where nobody asks for them. info > 0: it does not converge.
  static size_t gesvdj_scratch(int64_t m, int64_t n, bool vectors, bool full);
  static void gesvdj(const SolverCall& call, int64_t m, int64_t n, bool full, T* a, T* s, T* u, T* v);
};

extern template struct Solver<float>;
extern template struct Solver<double>;

}  // namespace heddle::cuda
