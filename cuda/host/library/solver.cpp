#include "cuda/library/solver.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/host/record.h"
#include "linalg/lapack.h"

namespace heddle::cuda {

namespace {

int size(int64_t value) { return static_cast<int>(value); }

/// Does a routine of LAPACK when the stream comes to it.
template <class Routine>
void start(const SolverCall& call, Routine routine) {
  if (host::recorded("cuSOLVER")) return;
  host::start(call.stream, [=, info = call.info] {
    *info = routine();
    if (host::convergence_fails()) *info = 1;
  });
}

}  // namespace

template <class T>
size_t Solver<T>::geqrf_scratch(int64_t, int64_t) {
  return 0;
}
template <class T>
void Solver<T>::geqrf(const SolverCall& call, int64_t m, int64_t n, T* a, T* tau) {
  start(call, [=] { return lapack::geqrf(size(m), size(n), a, tau); });
}

template <class T>
size_t Solver<T>::orgqr_scratch(int64_t, int64_t, int64_t) {
  return 0;
}
template <class T>
void Solver<T>::orgqr(const SolverCall& call, int64_t m, int64_t columns, int64_t count, T* a, const T* tau) {
  start(call, [=] {
    // Which the library does not read; LAPACKE would refuse what is not a number.
    std::fill(a + m * count, a + m * columns, T{0});
    return lapack::orgqr(size(m), size(columns), size(count), a, tau);
  });
}

template <class T>
size_t Solver<T>::syevd_scratch(int64_t) {
  return 0;
}
template <class T>
void Solver<T>::syevd(const SolverCall& call, int64_t n, T* a, T* w) {
  start(call, [=] { return lapack::syevd(size(n), a, w); });
}

template <class T>
size_t Solver<T>::potrf_scratch(int64_t) {
  return 0;
}
template <class T>
void Solver<T>::potrf(const SolverCall& call, int64_t n, T* a) {
  start(call, [=] { return lapack::potrf(size(n), a); });
}

template <class T>
size_t Solver<T>::getrf_scratch(int64_t, int64_t) {
  return 0;
}
template <class T>
void Solver<T>::getrf(const SolverCall& call, int64_t m, int64_t n, T* a, int* swaps) {
  start(call, [=] { return lapack::getrf(size(m), size(n), a, swaps); });
}

template <class T>
void Solver<T>::getrs(const SolverCall& call, int64_t n, int64_t columns, const T* a, const int* swaps, T* b) {
  start(call, [=] { return lapack::getrs(size(n), size(columns), a, swaps, b); });
}

/// As much as a copy of vᵀ, which is what LAPACK gives.
template <class T>
size_t Solver<T>::gesvdj_scratch(int64_t m, int64_t n, bool vectors, bool full) {
  return vectors ? static_cast<size_t>(n * (full ? n : std::min(m, n))) * sizeof(T) : 0;
}
template <class T>
void Solver<T>::gesvdj(const SolverCall& call, int64_t m, int64_t n, bool full, T* a, T* s, T* u, T* v) {
  start(call, [=, vt = static_cast<T*>(call.scratch)] {
    const char job = u == nullptr ? 'N' : full ? 'A' : 'S';
    const int64_t columns = full ? n : std::min(m, n);
    const int info = lapack::gesdd(job, size(m), size(n), a, s, u, size(m), vt, size(u == nullptr ? 1 : columns));
    for (int64_t i = 0; i < n * columns && v != nullptr; ++i) v[i] = vt[i % n * columns + i / n];
    return info;
  });
}

template struct Solver<float>;
template struct Solver<double>;

}  // namespace heddle::cuda
