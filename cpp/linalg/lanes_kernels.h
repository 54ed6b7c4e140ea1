// Factorisations of batches of small matrices side by side in the lanes of vectors (lanes.h): results as LAPACK's, up
// to rounding, and the same whatever else is in the batch. Outputs that nobody asks for are null.
#pragma once

#include "linalg/matrices.h"

namespace heddle {

/// a [m, n] = q [m, inner] r [inner, n]; inner is m where `full`, else the rank.
template <class T>
struct QrProblem {
  const Matrices& a;
  bool full;
  const T* values;
  T* q;
  T* r;
};

/// a = v diag(w) v^T, w ascending; reads the lower triangle.
template <class T>
struct EighProblem {
  const Matrices& a;
  const T* values;
  T* w;
  T* v;
};

/// a = u diag(s) vh, s descending.
template <class T>
struct SvdProblem {
  const Matrices& a;
  bool full;
  const T* values;
  T* u;
  T* s;
  T* vh;
};

/// Bytes for each thread.
size_t lanes_qr_scratch(const Matrices& a, bool full);
size_t lanes_eigh_scratch(const Matrices& a);
size_t lanes_svd_scratch(const Matrices& a, bool full);

template <class T>
void lanes_qr(const QrProblem<T>& problem, const RunArguments& arguments);
template <class T>
void lanes_eigh(const EighProblem<T>& problem, const RunArguments& arguments);
template <class T>
void lanes_svd(const SvdProblem<T>& problem, const RunArguments& arguments);

}  // namespace heddle
