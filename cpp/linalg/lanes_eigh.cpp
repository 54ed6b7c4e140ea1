// Eigenvalues and eigenvectors of batches of small symmetric matrices: tridiagonal by Householder's reflections, then
// implicit QR iterations with Wilkinson's shifts (Golub and Van Loan, Matrix Computations, 8.3). Sweeps run over all
// lanes together; a lane has rotations where its last unreduced block is.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linalg/lanes_eigh.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "linalg/turns-inl.h"

#ifndef HEDDLE_LINALG_LANES_EIGH_ONCE
#define HEDDLE_LINALG_LANES_EIGH_ONCE

#include <numeric>

#include "linalg/lanes_kernels.h"

namespace heddle {

template <class T>
struct EighLanes {
  /// Vectors of at most kNarrowBytes.
  bool narrow;
  /// [rows, n] of which n rows are the matrix's; the whole matrix, not a triangle.
  T* a;
  size_t rows, n;
  /// [n, rows]
  T* vectors;
  /// [n]
  T* taus;
  /// [n] eigenvalues, not sorted.
  T* diagonal;
  /// [n], the last one 0.
  T* beside;
  /// [rows, n], zero; becomes the eigenvectors.
  T* q;
  T* turns;
  /// 2 n + rows vectors, zero, which also hold three of `rows`.
  T* work;
};

}  // namespace heddle

#endif  // HEDDLE_LINALG_LANES_EIGH_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

/// a becomes q t q^T; the reflections of q stay in `vectors`.
template <class D, class T = hn::TFromD<D>>
void tridiagonalise(D d, const EighLanes<T>& eigh) {
  const size_t lanes = hn::Lanes(d);
  const size_t n = eigh.n;
  // The last reflection's update a - v w^T - w v^T is still to be made.
  const T* v = eigh.work;
  T* w = eigh.work + eigh.rows * lanes;
  T* p = w + eigh.rows * lanes;
  for (size_t k = 0; k < n; ++k) {
    const T* const row = eigh.a + k * n * lanes;
    const auto vk = hn::Load(d, v + k * lanes);
    const auto wk = hn::Load(d, w + k * lanes);
    hn::Store(hn::NegMulAdd(hn::Add(vk, vk), wk, hn::Load(d, row + k * lanes)), d, eigh.diagonal + k * lanes);
    if (k + 1 == n) return;
    T* const x = eigh.vectors + k * eigh.rows * lanes;
    for (size_t j = (k + 1) * lanes; j < n * lanes; j += lanes) {
      const auto once = hn::NegMulAdd(vk, hn::Load(d, w + j), hn::Load(d, row + j));
      hn::Store(hn::NegMulAdd(wk, hn::Load(d, v + j), once), d, x + j);
    }
    const auto made = make_reflection(d, x, k + 1, n);
    hn::Store(made.beta, d, eigh.beside + k * lanes);
    hn::Store(made.tau, d, eigh.taus + k * lanes);
    update_and_dot<true>(d, eigh.a, eigh.rows, n, k + 1, k + 1, RankOne<T>{v, w}, RankOne<T>{w, v}, x, p);
    std::fill_n(p, (k + 1) * lanes, T{0});
    // w = tau a v - v tau (v^T tau a v) / 2
    auto along = hn::Zero(d);
    for (size_t j = (k + 1) * lanes; j < n * lanes; j += lanes)
      along = hn::MulAdd(hn::Load(d, p + j), hn::Load(d, x + j), along);
    const auto half = hn::Mul(hn::Mul(along, made.tau), hn::Set(d, T(0.5)));
    for (size_t j = (k + 1) * lanes; j < n * lanes; j += lanes) {
      const auto less = hn::NegMulAdd(half, hn::Load(d, x + j), hn::Load(d, p + j));
      hn::Store(hn::Mul(made.tau, less), d, p + j);
    }
    v = x;
    std::swap(w, p);
  }
}

/// The eigenvalue of the last two rows of a block that is nearer to the last element.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V wilkinson_shift(D d, const Block<D>& block) {
  const auto half = hn::Mul(hn::Sub(block.above, block.bottom), hn::Set(d, hn::TFromD<D>(0.5)));
  const auto square = hn::Mul(block.link, block.link);
  const auto root = hn::Sqrt(hn::MulAdd(half, half, square));
  return hn::Sub(block.bottom, hn::Div(square, hn::Add(half, hn::CopySign(root, half))));
}

/// One implicit QR sweep over each lane's block.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void sweep(D d, T* diagonal, T* beside, const Block<D>& block, TurnRecord<T>& record) {
  const size_t lanes = hn::Lanes(d);
  const auto shift = wilkinson_shift(d, block);
  auto f = hn::Zero(d), g = hn::Zero(d);
  auto here = hn::Load(d, diagonal + block.first * lanes);
  auto e = hn::Load(d, beside + block.first * lanes);
  for (size_t i = block.first; i < block.last; ++i) {
    const auto at = hn::Set(d, static_cast<T>(i));
    const auto active = hn::And(block.active, hn::And(hn::Le(block.lo, at), hn::Lt(at, block.hi)));
    const auto starts = hn::And(active, hn::Eq(block.lo, at));
    f = hn::IfThenElse(starts, hn::Sub(here, shift), f);
    g = hn::IfThenElse(starts, e, g);
    const auto turn = turn_of(d, f, g, active);
    record_turn(d, record, i, turn);
    if (i > block.first) {
      T* const before = beside + (i - 1) * lanes;
      hn::Store(hn::IfThenElse(hn::AndNot(starts, active), turn.length, hn::Load(d, before)), d, before);
    }
    const auto next = hn::Load(d, diagonal + (i + 1) * lanes);
    const auto upper = hn::MulAdd(turn.sin, e, hn::Mul(turn.cos, here));
    const auto upper_right = hn::MulAdd(turn.sin, next, hn::Mul(turn.cos, e));
    const auto lower = hn::NegMulAdd(turn.sin, here, hn::Mul(turn.cos, e));
    const auto lower_right = hn::NegMulAdd(turn.sin, e, hn::Mul(turn.cos, next));
    hn::Store(hn::MulAdd(turn.sin, upper_right, hn::Mul(turn.cos, upper)), d, diagonal + i * lanes);
    here = hn::NegMulAdd(turn.sin, lower, hn::Mul(turn.cos, lower_right));
    f = hn::NegMulAdd(turn.sin, upper, hn::Mul(turn.cos, upper_right));
    hn::Store(f, d, beside + i * lanes);
    // Below a block there is zero.
    const auto following = hn::Load(d, beside + (i + 1) * lanes);
    g = hn::Mul(turn.sin, following);
    e = hn::Mul(turn.cos, following);
    hn::Store(e, d, beside + (i + 1) * lanes);
  }
  hn::Store(here, d, diagonal + block.last * lanes);
  end_sweep(d, record, block.first, block.last);
}

/// False where iterations do not converge.
template <class D, class T = hn::TFromD<D>>
bool eigh_lanes(D d, const EighLanes<T>& eigh) {
  const size_t lanes = hn::Lanes(d);
  const size_t n = eigh.n;
  tridiagonalise(d, eigh);
  std::fill_n(eigh.work, (2 * n + eigh.rows) * lanes, T{0});
  multiply_reflections(d, Reflections<T>{eigh.vectors, eigh.taus, n - 1, eigh.rows, 1}, eigh.q, n, eigh.work);
  auto largest = hn::Zero(d);
  for (size_t i = 0; i < n * lanes; i += lanes)
    largest = hn::Max(largest, hn::Max(hn::Abs(hn::Load(d, eigh.diagonal + i)), hn::Abs(hn::Load(d, eigh.beside + i))));
  TurnRecord<T> record{eigh.q, eigh.rows, n, eigh.turns};
  for (size_t left = kMostSweepsPerRow * n; left > 0; --left) {
    const auto block = find_blocks<false>(d, eigh.diagonal, eigh.beside, n, largest);
    if (hn::AllFalse(d, block.active)) {
      apply_turns(d, record);
      return true;
    }
    sweep(d, eigh.diagonal, eigh.beside, block, record);
  }
  return false;
}

bool eigh_f32(const EighLanes<float>& eigh) {
  return at_width<float>(eigh.narrow, [&](auto d) { return eigh_lanes(d, eigh); });
}
bool eigh_f64(const EighLanes<double>& eigh) {
  return at_width<double>(eigh.narrow, [&](auto d) { return eigh_lanes(d, eigh); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(eigh_f32);
HWY_EXPORT(eigh_f64);

bool diagonalise(const EighLanes<float>& eigh) { return HWY_DYNAMIC_DISPATCH(eigh_f32)(eigh); }
bool diagonalise(const EighLanes<double>& eigh) { return HWY_DYNAMIC_DISPATCH(eigh_f64)(eigh); }

size_t work_vectors(size_t n) { return std::max(2 * n + padded(n), 3 * padded(n)); }

template <class T>
void eigh_group(const EighProblem<T>& problem, size_t first, size_t count, T* memory) {
  const size_t lanes = lane_count<T>(problem.a), n = problem.a.rows, rows = padded(n);
  LaneScratch<T> scratch(memory, lanes);
  T* const a = scratch.take(rows * n);
  T* const vectors = scratch.take(rows * n);
  T* const taus = scratch.take(n);
  T* const diagonal = scratch.take(n);
  T* const beside = scratch.take(n);
  T* const q = scratch.take(rows * n);
  T* const turns = scratch.take(TurnRecord<T>::vectors(n));
  T* const work = scratch.take(work_vectors(n));
  const T* const values = problem.values + first * n * n;
  std::vector<T> scales(count), inverses(count);
  for (size_t lane = 0; lane < count; ++lane) {
    check_finite("eigh", values + lane * n * n, n * n);
    T largest{0};
    for (size_t i = 0; i < n; ++i) largest = std::max(largest, largest_of(values + (lane * n + i) * n, i + 1));
    scales[lane] = scale_for(largest);
    inverses[lane] = T{1} / scales[lane];
  }
  fill_lanes(a, lanes, count, n, n, [&](size_t lane, size_t i, size_t j) {
    return values[lane * n * n + std::max(i, j) * n + std::min(i, j)] * inverses[lane];
  });
  if (!diagonalise(EighLanes<T>{narrow_lanes(problem.a), a, rows, n, vectors, taus, diagonal, beside, q, turns, work}))
    throw Error(ErrorCode::kInternal, "eigh", "an iteration that converges", "one that does not");
  std::vector<size_t> orders(count * n);
  for (size_t lane = 0; lane < count; ++lane) {
    size_t* const order = &orders[lane * n];
    std::iota(order, order + n, size_t{0});
    const auto value = [&](size_t i) { return diagonal[i * lanes + lane]; };
    std::stable_sort(order, order + n, [&](size_t x, size_t y) { return value(x) < value(y); });
    for (size_t i = 0; i < n; ++i) problem.w[(first + lane) * n + i] = value(order[i]) * scales[lane];
  }
  drain_lanes(q, lanes, count, n, n, [&](size_t lane, size_t i, const auto& row) {
    T* const out = problem.v + ((first + lane) * n + i) * n;
    for (size_t j = 0; j < n; ++j) out[j] = row(orders[lane * n + j]);
  });
}

}  // namespace

size_t lanes_eigh_scratch(const Matrices& a) {
  const size_t n = a.rows;
  return lane_count<float>(a) * sizeof(float) *
         (3 * padded(n) * n + 3 * n + TurnRecord<float>::vectors(n) + work_vectors(n));
}

template <class T>
void lanes_eigh(const EighProblem<T>& problem, const RunArguments& arguments) {
  for_lane_groups(arguments, problem.a, lane_count<T>(problem.a), [&](size_t first, size_t count, size_t thread) {
    eigh_group(problem, first, count, arguments.thread_scratch<T>(thread));
  });
}

template void lanes_eigh<float>(const EighProblem<float>&, const RunArguments&);
template void lanes_eigh<double>(const EighProblem<double>&, const RunArguments&);

}  // namespace heddle

#endif  // HWY_ONCE
