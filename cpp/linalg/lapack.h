// LAPACK's routines under one name for f32 and f64. All take column-major matrices. Row-major bytes are those of the
// transpose, so that most kernels call the routine of the transposed problem and copy nothing around.
#pragma once

#include <lapacke.h>

#include <string>

#include "core/status.h"

extern "C" {
void sgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k,
            const float* alpha, const float* a, const int* lda, const float* b, const int* ldb, const float* beta,
            float* c, const int* ldc);
void dgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k,
            const double* alpha, const double* a, const int* lda, const double* b, const int* ldb, const double* beta,
            double* c, const int* ldc);
}

namespace heddle::lapack {

/// c [m, n] = alpha op(a) [m, k] op(b) [k, n] + beta c, with BLAS's letters for op.
inline void gemm(char op_a, char op_b, int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c,
                 int ldc, float alpha = 1, float beta = 0) {
  sgemm_(&op_a, &op_b, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}
inline void gemm(char op_a, char op_b, int m, int n, int k, const double* a, int lda, const double* b, int ldb,
                 double* c, int ldc, double alpha = 1, double beta = 0) {
  dgemm_(&op_a, &op_b, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

inline lapack_int gebrd(int m, int n, float* a, float* diagonal, float* beside, float* left_taus, float* right_taus) {
  return LAPACKE_sgebrd(LAPACK_COL_MAJOR, m, n, a, m, diagonal, beside, left_taus, right_taus);
}
inline lapack_int bdsdc(char triangle, int n, float* diagonal, float* beside, float* u, int ldu, float* vt, int ldvt) {
  return LAPACKE_sbdsdc(LAPACK_COL_MAJOR, triangle, 'I', n, diagonal, beside, u, ldu, vt, ldvt, nullptr, nullptr);
}
inline lapack_int larft(int n, int k, const float* v, const float* tau, float* t) {
  return LAPACKE_slarft(LAPACK_COL_MAJOR, 'F', 'C', n, k, v, n, tau, t, k);
}
inline lapack_int gebrd(int m, int n, double* a, double* diagonal, double* beside, double* left_taus,
                        double* right_taus) {
  return LAPACKE_dgebrd(LAPACK_COL_MAJOR, m, n, a, m, diagonal, beside, left_taus, right_taus);
}
inline lapack_int bdsdc(char triangle, int n, double* diagonal, double* beside, double* u, int ldu, double* vt,
                        int ldvt) {
  return LAPACKE_dbdsdc(LAPACK_COL_MAJOR, triangle, 'I', n, diagonal, beside, u, ldu, vt, ldvt, nullptr, nullptr);
}
inline lapack_int larft(int n, int k, const double* v, const double* tau, double* t) {
  return LAPACKE_dlarft(LAPACK_COL_MAJOR, 'F', 'C', n, k, v, n, tau, t, k);
}
inline lapack_int gesdd(char job, int m, int n, float* a, float* s, float* u, int ldu, float* vt, int ldvt) {
  return LAPACKE_sgesdd(LAPACK_COL_MAJOR, job, m, n, a, m, s, u, ldu, vt, ldvt);
}
inline lapack_int gesdd(char job, int m, int n, double* a, double* s, double* u, int ldu, double* vt, int ldvt) {
  return LAPACKE_dgesdd(LAPACK_COL_MAJOR, job, m, n, a, m, s, u, ldu, vt, ldvt);
}
inline lapack_int geqrf(int m, int n, float* a, float* tau) {
  return LAPACKE_sgeqrf(LAPACK_COL_MAJOR, m, n, a, m, tau);
}
inline lapack_int geqrf(int m, int n, double* a, double* tau) {
  return LAPACKE_dgeqrf(LAPACK_COL_MAJOR, m, n, a, m, tau);
}
inline lapack_int geqp3(int m, int n, float* a, lapack_int* places, float* tau) {
  return LAPACKE_sgeqp3(LAPACK_COL_MAJOR, m, n, a, m, places, tau);
}
inline lapack_int geqp3(int m, int n, double* a, lapack_int* places, double* tau) {
  return LAPACKE_dgeqp3(LAPACK_COL_MAJOR, m, n, a, m, places, tau);
}
inline lapack_int orgqr(int m, int n, int k, float* a, const float* tau) {
  return LAPACKE_sorgqr(LAPACK_COL_MAJOR, m, n, k, a, m, tau);
}
inline lapack_int orgqr(int m, int n, int k, double* a, const double* tau) {
  return LAPACKE_dorgqr(LAPACK_COL_MAJOR, m, n, k, a, m, tau);
}
inline lapack_int syevd(int n, float* a, float* w) { return LAPACKE_ssyevd(LAPACK_COL_MAJOR, 'V', 'U', n, a, n, w); }
inline lapack_int syevd(int n, double* a, double* w) { return LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', n, a, n, w); }
inline lapack_int potrf(int n, float* a) { return LAPACKE_spotrf(LAPACK_COL_MAJOR, 'U', n, a, n); }
inline lapack_int potrf(int n, double* a) { return LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'U', n, a, n); }
inline lapack_int getrf(int m, int n, float* a, lapack_int* swaps) {
  return LAPACKE_sgetrf(LAPACK_COL_MAJOR, m, n, a, m, swaps);
}
inline lapack_int getrf(int m, int n, double* a, lapack_int* swaps) {
  return LAPACKE_dgetrf(LAPACK_COL_MAJOR, m, n, a, m, swaps);
}
inline lapack_int getrs(int n, int columns, const float* lu, const lapack_int* swaps, float* b) {
  return LAPACKE_sgetrs(LAPACK_COL_MAJOR, 'N', n, columns, lu, n, swaps, b, n);
}
inline lapack_int getrs(int n, int columns, const double* lu, const lapack_int* swaps, double* b) {
  return LAPACKE_dgetrs(LAPACK_COL_MAJOR, 'N', n, columns, lu, n, swaps, b, n);
}

/// Throws on what LAPACK reports, but for `info` > 0, whose meaning is the routine's own.
inline void check_call(const char* op, lapack_int info) {
  if (info == LAPACK_WORK_MEMORY_ERROR || info == LAPACK_TRANSPOSE_MEMORY_ERROR)
    throw Error(ErrorCode::kOutOfMemory, op, "memory for LAPACK's work", "none");
  if (info < 0) throw Error(ErrorCode::kInternal, op, "valid arguments", "argument " + std::to_string(-info));
}

inline void check_converged(const char* op, lapack_int info) {
  check_call(op, info);
  if (info > 0) throw Error(ErrorCode::kInternal, op, "an iteration that converges", "one that does not");
}

}  // namespace heddle::lapack
