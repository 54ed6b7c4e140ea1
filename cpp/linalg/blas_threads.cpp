#include <mutex>

#include "linalg/matrices.h"

#ifdef HEDDLE_OPENBLAS
extern "C" void openblas_set_num_threads(int threads);
#endif

namespace heddle {

namespace {

/// BLAS has one number for the process.
std::mutex blas_mutex;

void set_blas_threads([[maybe_unused]] size_t threads) {
#ifdef HEDDLE_OPENBLAS
  static size_t current = 0;
  if (current == threads) return;
  openblas_set_num_threads(static_cast<int>(threads));
  current = threads;
#endif
}

}  // namespace

BlasThreads::BlasThreads(size_t threads) {
  blas_mutex.lock();
  set_blas_threads(threads);
}

BlasThreads::~BlasThreads() { blas_mutex.unlock(); }

}  // namespace heddle
