// QR of batches of small matrices by Householder's reflections.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linalg/lanes_qr.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "linalg/reflections-inl.h"

#ifndef HEDDLE_LINALG_LANES_QR_ONCE
#define HEDDLE_LINALG_LANES_QR_ONCE

#include "linalg/lanes_kernels.h"

namespace heddle {

template <class T>
struct QrLanes {
  /// Vectors of at most kNarrowBytes.
  bool narrow;
  /// [rows, columns] of which `height` rows are the matrix's; becomes r.
  T* w;
  size_t rows, height, columns;
  /// [min(height, columns), rows]
  T* vectors;
  T* taus;
  /// [rows, inner]; null if nobody asks.
  T* q;
  size_t inner;
  /// 2 max(columns, inner) + rows vectors, zero.
  T* work;
};

}  // namespace heddle

#endif  // HEDDLE_LINALG_LANES_QR_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class T = hn::TFromD<D>>
void factor(D d, const QrLanes<T>& qr) {
  const size_t lanes = hn::Lanes(d);
  const size_t steps = std::min(qr.height, qr.columns);
  T* right = qr.work;
  T* sums = right + qr.columns * lanes;
  const T* left = sums + qr.columns * lanes;
  for (size_t k = 0; k < steps; ++k) {
    T* const v = qr.vectors + k * qr.rows * lanes;
    const auto r = hn::Load(d, right + k * lanes);
    if (k > 0) {
      T* const above = qr.w + ((k - 1) * qr.columns + k) * lanes;
      hn::Store(hn::Sub(hn::Load(d, above), r), d, above);
    }
    for (size_t i = k; i < qr.height; ++i) {
      const auto x = hn::Load(d, qr.w + (i * qr.columns + k) * lanes);
      hn::Store(hn::NegMulAdd(hn::Load(d, left + i * lanes), r, x), d, v + i * lanes);
    }
    const auto made = make_reflection(d, v, k, qr.height);
    hn::Store(made.beta, d, qr.w + (k * qr.columns + k) * lanes);
    hn::Store(made.tau, d, qr.taus + k * lanes);
    std::fill(sums + (k + 1) * lanes, sums + qr.columns * lanes, T{0});
    update_and_sum(d, qr.w, qr.rows, qr.columns, k == 0 ? 0 : k - 1, k + 1, left, right, v, sums);
    scale_lanes(d, sums, k + 1, qr.columns, made.tau);
    left = v;
    std::swap(right, sums);
  }
  if (qr.q == nullptr) return;
  const size_t used = (2 * std::max(qr.columns, qr.inner) + qr.rows) * lanes;
  std::fill_n(qr.work, used, T{0});
  multiply_reflections(d, Reflections<T>{qr.vectors, qr.taus, steps, qr.rows, 0}, qr.q, qr.inner, qr.work);
}

void factor_f32(const QrLanes<float>& qr) {
  return at_width<float>(qr.narrow, [&](auto d) { return factor(d, qr); });
}
void factor_f64(const QrLanes<double>& qr) {
  return at_width<double>(qr.narrow, [&](auto d) { return factor(d, qr); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(factor_f32);
HWY_EXPORT(factor_f64);

void factor_lanes(const QrLanes<float>& qr) { HWY_DYNAMIC_DISPATCH(factor_f32)(qr); }
void factor_lanes(const QrLanes<double>& qr) { HWY_DYNAMIC_DISPATCH(factor_f64)(qr); }

size_t inner_of(const Matrices& a, bool full) { return full ? a.rows : a.rank(); }

/// Columns are scaled one by one, which q does not notice: small ones keep their digits, as with LAPACK.
template <class T>
void load(const QrProblem<T>& problem, const T* first, size_t count, size_t lanes, T* w, T* scales) {
  const auto [m, n] = std::pair(problem.a.rows, problem.a.columns);
  for (size_t lane = 0; lane < count; ++lane) {
    const T* const a = first + lane * problem.a.size();
    check_finite("qr", a, problem.a.size());
    for (size_t j = 0; j < n; ++j) scales[lane * n + j] = scale_for(largest_of(a + j, m, n));
  }
  std::vector<T> inverses(count * n);
  for (size_t i = 0; i < inverses.size(); ++i) inverses[i] = T{1} / scales[i];
  fill_lanes(w, lanes, count, m, n, [&, n = n](size_t lane, size_t i, size_t j) {
    return first[(lane * problem.a.rows + i) * n + j] * inverses[lane * n + j];
  });
}

template <class T>
void qr_group(const QrProblem<T>& problem, size_t first, size_t count, T* memory) {
  const size_t lanes = lane_count<T>(problem.a);
  const auto [m, n] = std::pair(problem.a.rows, problem.a.columns);
  const size_t inner = inner_of(problem.a, problem.full);
  const size_t rows = padded(m);
  LaneScratch<T> scratch(memory, lanes);
  T* const w = scratch.take(rows * n);
  T* const vectors = scratch.take(problem.a.rank() * rows);
  T* const taus = scratch.take(problem.a.rank());
  T* const q = problem.q == nullptr ? nullptr : scratch.take(rows * inner);
  T* const work = scratch.take(2 * std::max(n, inner) + rows);
  std::vector<T> scales(count * n);
  load(problem, problem.values + first * problem.a.size(), count, lanes, w, scales.data());
  factor_lanes(QrLanes<T>{narrow_lanes(problem.a), w, rows, m, n, vectors, taus, q, inner, work});
  if (q != nullptr)
    drain_lanes(q, lanes, count, m, inner, [&](size_t lane, size_t i, const auto& row) {
      T* const out = problem.q + ((first + lane) * problem.a.rows + i) * inner;
      for (size_t j = 0; j < inner; ++j) out[j] = row(j);
    });
  if (problem.r == nullptr) return;
  drain_lanes(w, lanes, count, inner, n, [&](size_t lane, size_t i, const auto& row) {
    const size_t width = problem.a.columns;
    T* const out = problem.r + ((first + lane) * inner + i) * width;
    std::fill_n(out, std::min(i, width), T{0});
    for (size_t j = i; j < width; ++j) out[j] = row(j) * scales[lane * width + j];
  });
}

}  // namespace

size_t lanes_qr_scratch(const Matrices& a, bool full) {
  const size_t inner = inner_of(a, full), rows = padded(a.rows);
  const size_t vectors = rows * (a.columns + a.rank() + inner + 1) + a.rank() + 2 * std::max(a.columns, inner);
  return lane_count<float>(a) * sizeof(float) * vectors;
}

template <class T>
void lanes_qr(const QrProblem<T>& problem, const RunArguments& arguments) {
  for_lane_groups(arguments, problem.a, lane_count<T>(problem.a), [&](size_t first, size_t count, size_t thread) {
    qr_group(problem, first, count, arguments.thread_scratch<T>(thread));
  });
}

template void lanes_qr<float>(const QrProblem<float>&, const RunArguments&);
template void lanes_qr<double>(const QrProblem<double>&, const RunArguments&);

}  // namespace heddle

#endif  // HWY_ONCE
