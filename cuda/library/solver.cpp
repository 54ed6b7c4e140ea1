#include "cuda/library/solver.h"

#include <cusolverDn.h>

#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "core/status.h"
#include "cuda/core/device.h"

namespace heddle::cuda {

namespace {

void check_solver(cusolverStatus_t status, const char* routine) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  if (status == CUSOLVER_STATUS_ALLOC_FAILED)
    throw Error(ErrorCode::kOutOfMemory, routine, "memory for cuSOLVER", "none");
  throw Error(ErrorCode::kDevice, routine, "a factorisation that cuSOLVER does",
              "its status " + std::to_string(static_cast<int>(status)));
}

/// One for the process, for one thread at a time; sizes are asked for without a stream.
class Handle {
 public:
  explicit Handle(cudaStream_t stream = nullptr) : lock_(shared().mutex) {
    check_solver(cusolverDnSetStream(shared().handle, stream), "cuSOLVER");
  }
  operator cusolverDnHandle_t() const { return shared().handle; }

 private:
  struct Shared {
    std::mutex mutex;
    cusolverDnHandle_t handle = nullptr;

    Shared() {
      check_solver(cusolverDnCreate(&handle), "cuSOLVER");
      check_solver(cusolverDnSetDeterministicMode(handle, CUSOLVER_DETERMINISTIC_RESULTS), "cuSOLVER");
    }
  };
  static Shared& shared() {
    static Shared kShared;
    return kShared;
  }

  std::unique_lock<std::mutex> lock_;
};

/// gesvdj()'s rotations go on until products of columns vanish in T.
template <class T>
gesvdjInfo_t jacobi() {
  static const gesvdjInfo_t kInfo = [] {
    gesvdjInfo_t made = nullptr;
    check_solver(cusolverDnCreateGesvdjInfo(&made), "gesvdj");
    check_solver(cusolverDnXgesvdjSetTolerance(made, std::numeric_limits<T>::epsilon()), "gesvdj");
    check_solver(cusolverDnXgesvdjSetSortEig(made, 1), "gesvdj");
    return made;
  }();
  return kInfo;
}

cusolverEigMode_t mode_of(bool vectors) { return vectors ? CUSOLVER_EIG_MODE_VECTOR : CUSOLVER_EIG_MODE_NOVECTOR; }

/// The library counts in int.
int size(int64_t value) {
  if (!std::in_range<int>(value))
    throw Error(ErrorCode::kDevice, "cuSOLVER", "fewer than 2^31 rows and columns", std::to_string(value));
  return static_cast<int>(value);
}

template <class T>
int elements(const SolverCall& call) {
  return size(static_cast<int64_t>(call.scratch_bytes / sizeof(T)));
}

/// Asks for the scratch of a routine, in elements.
template <class T, class Query>
size_t scratch_of(const char* routine, Query query) {
  const Handle handle;
  int count = 0;
  check_solver(query(static_cast<cusolverDnHandle_t>(handle), &count), routine);
  return static_cast<size_t>(count) * sizeof(T);
}

/// cuSOLVER's names of a type's routines.
template <class T>
struct Names;

#define HEDDLE_SOLVER_NAMES(TYPE, LETTER)                                         \
  template <>                                                                     \
  struct Names<TYPE> {                                                            \
    static constexpr auto kGeqrfScratch = cusolverDn##LETTER##geqrf_bufferSize;   \
    static constexpr auto kGeqrf = cusolverDn##LETTER##geqrf;                     \
    static constexpr auto kOrgqrScratch = cusolverDn##LETTER##orgqr_bufferSize;   \
    static constexpr auto kOrgqr = cusolverDn##LETTER##orgqr;                     \
    static constexpr auto kSyevdScratch = cusolverDn##LETTER##syevd_bufferSize;   \
    static constexpr auto kSyevd = cusolverDn##LETTER##syevd;                     \
    static constexpr auto kPotrfScratch = cusolverDn##LETTER##potrf_bufferSize;   \
    static constexpr auto kPotrf = cusolverDn##LETTER##potrf;                     \
    static constexpr auto kGetrfScratch = cusolverDn##LETTER##getrf_bufferSize;   \
    static constexpr auto kGetrf = cusolverDn##LETTER##getrf;                     \
    static constexpr auto kGetrs = cusolverDn##LETTER##getrs;                     \
    static constexpr auto kGesvdjScratch = cusolverDn##LETTER##gesvdj_bufferSize; \
    static constexpr auto kGesvdj = cusolverDn##LETTER##gesvdj;                   \
  };
HEDDLE_SOLVER_NAMES(float, S)
HEDDLE_SOLVER_NAMES(double, D)
#undef HEDDLE_SOLVER_NAMES

/// Nobody looks at operands to say how much scratch they need.
template <class T>
T* const kNone = nullptr;

}  // namespace

template <class T>
size_t Solver<T>::geqrf_scratch(int64_t m, int64_t n) {
  return scratch_of<T>("geqrf", [&](cusolverDnHandle_t handle, int* count) {
    return Names<T>::kGeqrfScratch(handle, size(m), size(n), kNone<T>, size(m), count);
  });
}

template <class T>
void Solver<T>::geqrf(const SolverCall& call, int64_t m, int64_t n, T* a, T* tau) {
  check_solver(Names<T>::kGeqrf(Handle(call.stream), size(m), size(n), a, size(m), tau, static_cast<T*>(call.scratch),
                                elements<T>(call), call.info),
               "geqrf");
}

template <class T>
size_t Solver<T>::orgqr_scratch(int64_t m, int64_t columns, int64_t count) {
  return scratch_of<T>("orgqr", [&](cusolverDnHandle_t handle, int* elements) {
    return Names<T>::kOrgqrScratch(handle, size(m), size(columns), size(count), kNone<T>, size(m), kNone<T>, elements);
  });
}

template <class T>
void Solver<T>::orgqr(const SolverCall& call, int64_t m, int64_t columns, int64_t count, T* a, const T* tau) {
  check_solver(Names<T>::kOrgqr(Handle(call.stream), size(m), size(columns), size(count), a, size(m), tau,
                                static_cast<T*>(call.scratch), elements<T>(call), call.info),
               "orgqr");
}

template <class T>
size_t Solver<T>::syevd_scratch(int64_t n) {
  return scratch_of<T>("syevd", [&](cusolverDnHandle_t handle, int* count) {
    return Names<T>::kSyevdScratch(handle, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, size(n), kNone<T>, size(n),
                                   kNone<T>, count);
  });
}

template <class T>
void Solver<T>::syevd(const SolverCall& call, int64_t n, T* a, T* w) {
  check_solver(Names<T>::kSyevd(Handle(call.stream), CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, size(n), a,
                                size(n), w, static_cast<T*>(call.scratch), elements<T>(call), call.info),
               "syevd");
}

template <class T>
size_t Solver<T>::potrf_scratch(int64_t n) {
  return scratch_of<T>("potrf", [&](cusolverDnHandle_t handle, int* count) {
    return Names<T>::kPotrfScratch(handle, CUBLAS_FILL_MODE_UPPER, size(n), kNone<T>, size(n), count);
  });
}

template <class T>
void Solver<T>::potrf(const SolverCall& call, int64_t n, T* a) {
  check_solver(Names<T>::kPotrf(Handle(call.stream), CUBLAS_FILL_MODE_UPPER, size(n), a, size(n),
                                static_cast<T*>(call.scratch), elements<T>(call), call.info),
               "potrf");
}

template <class T>
size_t Solver<T>::getrf_scratch(int64_t m, int64_t n) {
  return scratch_of<T>("getrf", [&](cusolverDnHandle_t handle, int* count) {
    return Names<T>::kGetrfScratch(handle, size(m), size(n), kNone<T>, size(m), count);
  });
}

template <class T>
void Solver<T>::getrf(const SolverCall& call, int64_t m, int64_t n, T* a, int* swaps) {
  check_solver(Names<T>::kGetrf(Handle(call.stream), size(m), size(n), a, size(m), static_cast<T*>(call.scratch), swaps,
                                call.info),
               "getrf");
}

template <class T>
void Solver<T>::getrs(const SolverCall& call, int64_t n, int64_t columns, const T* a, const int* swaps, T* b) {
  check_solver(Names<T>::kGetrs(Handle(call.stream), CUBLAS_OP_N, size(n), size(columns), a, size(n), swaps, b, size(n),
                                call.info),
               "getrs");
}

template <class T>
size_t Solver<T>::gesvdj_scratch(int64_t m, int64_t n, bool vectors, bool full) {
  return scratch_of<T>("gesvdj", [&](cusolverDnHandle_t handle, int* count) {
    return Names<T>::kGesvdjScratch(handle, mode_of(vectors), full ? 0 : 1, size(m), size(n), kNone<T>, size(m),
                                    kNone<T>, kNone<T>, size(m), kNone<T>, size(n), count, jacobi<T>());
  });
}

template <class T>
void Solver<T>::gesvdj(const SolverCall& call, int64_t m, int64_t n, bool full, T* a, T* s, T* u, T* v) {
  check_solver(
      Names<T>::kGesvdj(Handle(call.stream), mode_of(u != nullptr), full ? 0 : 1, size(m), size(n), a, size(m), s, u,
                        size(m), v, size(n), static_cast<T*>(call.scratch), elements<T>(call), call.info, jacobi<T>()),
      "gesvdj");
}

template struct Solver<float>;
template struct Solver<double>;

}  // namespace heddle::cuda
