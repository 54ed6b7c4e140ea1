#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linalg/jacobi.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_LINALG_JACOBI_ONCE
#define HEDDLE_LINALG_JACOBI_ONCE

#include <cmath>
#include <limits>
#include <numeric>

#include "linalg/jacobi.h"

namespace heddle {

/// Columns and rows of a group are padded with zeros to this, so that sums need no rest.
inline constexpr size_t kUnroll = 4;
inline size_t padded(size_t size) { return (size + kUnroll - 1) / kUnroll * kUnroll; }

/// Vectors of w shorter than this (its elements are at most 2) are rounding: what they point to means nothing.
template <class T>
inline constexpr T kNegligible = std::numeric_limits<T>::epsilon();

/// Interleaved matrices: element (row, column) of all of them lies at (column * rows + row) * lanes.
template <class T>
struct JacobiGroup {
  T* w;
  size_t rows;
  size_t columns;
  /// [columns, vRows], orthonormal columns that turn with those of w; null if nobody asks.
  T* v;
  size_t v_rows;
  /// [columns] squared lengths of w's.
  T* squares;
};

}  // namespace heddle

#endif  // HEDDLE_LINALG_JACOBI_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> dot_of(D d, const T* x, const T* y, size_t rows) {
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  for (size_t i = 0; i < rows * lanes; i += kUnroll * lanes) {
    s0 = hn::MulAdd(hn::Load(d, x + i), hn::Load(d, y + i), s0);
    s1 = hn::MulAdd(hn::Load(d, x + i + lanes), hn::Load(d, y + i + lanes), s1);
    s2 = hn::MulAdd(hn::Load(d, x + i + 2 * lanes), hn::Load(d, y + i + 2 * lanes), s2);
    s3 = hn::MulAdd(hn::Load(d, x + i + 3 * lanes), hn::Load(d, y + i + 3 * lanes), s3);
  }
  return hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
}

/// x, y = cos x - sin y, sin x + cos y, with tangent tan(angle / 2): cos = 1 - sin tangent. Written with the cosine,
/// small angles would be rounded to longer vectors again and again.
template <class D, class T = hn::TFromD<D>, class V = hn::Vec<D>>
HWY_INLINE void rotate(D d, T* HWY_RESTRICT x, T* HWY_RESTRICT y, size_t rows, V sine, V tangent) {
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < rows * lanes; i += lanes) {
    const auto a = hn::Load(d, x + i);
    const auto b = hn::Load(d, y + i);
    hn::Store(hn::NegMulAdd(sine, hn::MulAdd(tangent, a, b), a), d, x + i);
    hn::Store(hn::MulAdd(sine, hn::NegMulAdd(tangent, b, a), b), d, y + i);
  }
}

/// True when all columns of all matrices are orthogonal to working precision.
template <class T>
HWY_INLINE bool orthogonalise_group(const JacobiGroup<T>& group) {
  const hn::ScalableTag<T> d;
  const size_t lanes = hn::Lanes(d);
  const auto [w, rows, columns, v, v_rows, squares] = group;
  const auto sharpness = hn::Set(d, T{1} / (std::numeric_limits<T>::epsilon() * std::sqrt(static_cast<T>(rows))));
  const auto negligible = hn::Set(d, kNegligible<T> * kNegligible<T>);
  const auto one = hn::Set(d, T{1});
  constexpr int kMostSweeps = 60;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    bool settled = true;
    for (size_t p = 0; p < columns; ++p) {
      const T* column = w + p * rows * lanes;
      hn::Store(dot_of(d, column, column, rows), d, squares + p * lanes);
    }
    for (size_t p = 0; p + 1 < columns; ++p) {
      T* const wp = w + p * rows * lanes;
      auto a = hn::Load(d, squares + p * lanes);
      for (size_t q = p + 1; q < columns; ++q) {
        T* const wq = w + q * rows * lanes;
        const auto c = dot_of(d, wp, wq, rows);
        const auto b = hn::Load(d, squares + q * lanes);
        const auto sharp = hn::Mul(c, sharpness);
        const auto needed = hn::And(hn::Gt(hn::Mul(sharp, sharp), hn::Mul(a, b)), hn::Gt(hn::Min(a, b), negligible));
        if (hn::AllFalse(d, needed)) continue;
        settled = false;
        // tan of the angle: the smaller root of t^2 + t (b - a) / c - 1.
        const auto difference = hn::Sub(b, a);
        const auto twice = hn::Add(c, c);
        const auto root = hn::Sqrt(hn::MulAdd(difference, difference, hn::Mul(twice, twice)));
        const auto size = hn::Div(twice, hn::Add(hn::Abs(difference), root));
        const auto t = hn::IfThenElseZero(needed, hn::IfThenElse(hn::Lt(difference, hn::Zero(d)), hn::Neg(size), size));
        const auto cosine = hn::Div(one, hn::Sqrt(hn::MulAdd(t, t, one)));
        const auto sine = hn::Mul(t, cosine);
        const auto tangent = hn::Div(sine, hn::Add(one, cosine));
        a = hn::NegMulAdd(t, c, a);
        hn::Store(hn::MulAdd(t, c, b), d, squares + q * lanes);
        rotate(d, wp, wq, rows, sine, tangent);
        if (v != nullptr) rotate(d, v + p * v_rows * lanes, v + q * v_rows * lanes, v_rows, sine, tangent);
      }
      hn::Store(a, d, squares + p * lanes);
    }
    if (settled) return true;
  }
  return false;
}

bool orthogonalise(const JacobiGroup<float>& group) { return orthogonalise_group(group); }
bool orthogonalise_f64(const JacobiGroup<double>& group) { return orthogonalise_group(group); }
size_t lanes_f32() { return hn::Lanes(hn::ScalableTag<float>()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(orthogonalise);
HWY_EXPORT(orthogonalise_f64);
HWY_EXPORT(lanes_f32);

bool orthogonalise_lanes(const JacobiGroup<float>& group) { return HWY_DYNAMIC_DISPATCH(orthogonalise)(group); }
bool orthogonalise_lanes(const JacobiGroup<double>& group) { return HWY_DYNAMIC_DISPATCH(orthogonalise_f64)(group); }

template <class T>
size_t lane_count() {
  return HWY_DYNAMIC_DISPATCH(lanes_f32)() * sizeof(float) / sizeof(T);
}

/// The problem with at least as many rows as columns: a wide matrix is taken as its transpose, whose left and right
/// vectors are swapped.
struct Turned {
  bool turned;
  size_t rows, columns;
  explicit Turned(const Matrices& a)
      : turned(a.columns > a.rows), rows(std::max(a.rows, a.columns)), columns(a.rank()) {}
};

/// Unit vectors for the places of an orthonormal set [count, size] that are not `known`: of all axes the one that the
/// known vectors cover least, made orthogonal to them twice.
template <class T>
void complete_basis(T* vectors, size_t count, size_t size, std::vector<bool> known) {
  for (size_t missing = 0; missing < count; ++missing) {
    if (known[missing]) continue;
    std::vector<T> covered(size, T{0});
    for (size_t k = 0; k < count; ++k)
      for (size_t i = 0; i < size && known[k]; ++i) covered[i] += vectors[k * size + i] * vectors[k * size + i];
    T* fresh = vectors + missing * size;
    std::fill_n(fresh, size, T{0});
    fresh[std::min_element(covered.begin(), covered.end()) - covered.begin()] = 1;
    for (int pass = 0; pass < 2; ++pass)
      for (size_t k = 0; k < count; ++k) {
        if (!known[k]) continue;
        const T along = std::inner_product(fresh, fresh + size, vectors + k * size, T{0});
        for (size_t i = 0; i < size; ++i) fresh[i] -= along * vectors[k * size + i];
      }
    const T length = std::sqrt(std::inner_product(fresh, fresh + size, fresh, T{0}));
    for (size_t i = 0; i < size; ++i) fresh[i] /= length;
    known[missing] = true;
  }
}

/// One lane of the group, from and to row-major matrices.
template <class T>
class Lane {
 public:
  Lane(const SvdProblem<T>& problem, const JacobiGroup<T>& group, size_t lanes, size_t lane)
      : problem_(problem), shape_(problem.a), group_(group), lanes_(lanes), lane_(lane) {}

  /// Scaled by a power of two so that squares neither overflow nor vanish; gives its exponent.
  int load(const T* a) const {
    check_finite("svd", a, problem_.a.size());
    T largest{0};
    for (size_t i = 0; i < problem_.a.size(); ++i) largest = std::max(largest, std::abs(a[i]));
    const int exponent = largest == 0 ? 0 : std::ilogb(largest);
    const T* row = a;
    for (size_t i = 0; i < problem_.a.rows; ++i, row += problem_.a.columns)
      for (size_t j = 0; j < problem_.a.columns; ++j)
        w(shape_.turned ? j : i, shape_.turned ? i : j) = std::ldexp(row[j], -exponent);
    for (size_t j = 0; j < shape_.columns && group_.v != nullptr; ++j) v(j, j) = 1;
    return exponent;
  }

  void store(size_t index, int exponent) const {
    const size_t k = shape_.columns;
    std::vector<T> lengths(k);
    for (size_t j = 0; j < k; ++j) lengths[j] = std::sqrt(std::max(T{0}, group_.squares[j * lanes_ + lane_]));
    std::vector<size_t> order(k);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) { return lengths[x] > lengths[y]; });
    for (size_t r = 0; r < k; ++r) problem_.s[index * k + r] = std::ldexp(lengths[order[r]], exponent);
    store_long(index, order, lengths);
    store_turning(index, order);
  }

 private:
  T& w(size_t row, size_t column) const { return group_.w[(column * group_.rows + row) * lanes_ + lane_]; }
  T& v(size_t row, size_t column) const { return group_.v[(column * group_.v_rows + row) * lanes_ + lane_]; }

  /// The singular vectors on w's side: u's columns, or vh's rows of a wide matrix.
  void store_long(size_t index, const std::vector<size_t>& order, const std::vector<T>& lengths) const {
    T* const out = shape_.turned ? problem_.vh : problem_.u;
    if (out == nullptr) return;
    const size_t count = problem_.full ? shape_.rows : shape_.columns;
    std::vector<T> vectors(count * shape_.rows, T{0});
    std::vector<bool> known(count, false);
    for (size_t r = 0; r < shape_.columns; ++r) {
      const T length = lengths[order[r]];
      known[r] = length > 2 * kNegligible<T>;
      for (size_t i = 0; i < shape_.rows && known[r]; ++i) vectors[r * shape_.rows + i] = w(i, order[r]) / length;
    }
    complete_basis(vectors.data(), count, shape_.rows, std::move(known));
    T* const target = out + index * count * shape_.rows;
    if (shape_.turned)
      std::copy(vectors.begin(), vectors.end(), target);
    else
      transpose_matrix(vectors.data(), count, shape_.rows, target);
  }

  /// Those that turned with w's columns.
  void store_turning(size_t index, const std::vector<size_t>& order) const {
    T* const out = shape_.turned ? problem_.u : problem_.vh;
    const size_t k = shape_.columns;
    if (out == nullptr) return;
    for (size_t r = 0; r < k; ++r)
      for (size_t i = 0; i < k; ++i) out[index * k * k + (shape_.turned ? i * k + r : r * k + i)] = v(i, order[r]);
  }

  const SvdProblem<T>& problem_;
  Turned shape_;
  const JacobiGroup<T>& group_;
  size_t lanes_, lane_;
};

template <class T>
void svd_group(const SvdProblem<T>& problem, size_t first, size_t count, T* scratch) {
  const Turned shape(problem.a);
  const size_t lanes = lane_count<T>();
  const size_t rows = padded(shape.rows);
  const size_t turning = padded(shape.columns);
  const bool turn = (shape.turned ? problem.u : problem.vh) != nullptr;
  T* const v = scratch + shape.columns * rows * lanes;
  T* const squares = v + shape.columns * turning * lanes;
  std::fill(scratch, squares, T{0});
  const JacobiGroup<T> group{scratch, rows, shape.columns, turn ? v : nullptr, turning, squares};
  std::vector<int> exponents(count);
  for (size_t lane = 0; lane < count; ++lane)
    exponents[lane] = Lane<T>(problem, group, lanes, lane).load(problem.values + (first + lane) * problem.a.size());
  if (!orthogonalise_lanes(group))
    throw Error(ErrorCode::kInternal, "svd", "rotations that converge", "ones that do not");
  for (size_t lane = 0; lane < count; ++lane) Lane<T>(problem, group, lanes, lane).store(first + lane, exponents[lane]);
}

}  // namespace

bool jacobi_takes(const Matrices& a) {
  constexpr size_t kMost = 64;
  return a.rank() != 0 && a.count != 0 && std::max(a.rows, a.columns) <= kMost;
}

size_t jacobi_svd_scratch(const Matrices& a) {
  const Turned shape(a);
  return lane_count<float>() * sizeof(float) * shape.columns * (padded(shape.rows) + padded(shape.columns) + 1);
}

template <class T>
void jacobi_svd(const SvdProblem<T>& problem, const RunArguments& arguments) {
  const Aborted* const aborted = current_abort();
  const size_t lanes = lane_count<T>();
  const size_t groups = (problem.a.count + lanes - 1) / lanes;
  arguments.pool.run(groups, [&](size_t group, size_t thread) {
    check_aborted(aborted);
    const size_t first = group * lanes;
    svd_group(problem, first, std::min(lanes, problem.a.count - first), arguments.thread_scratch<T>(thread));
  });
}

template void jacobi_svd<float>(const SvdProblem<float>&, const RunArguments&);
template void jacobi_svd<double>(const SvdProblem<double>&, const RunArguments&);

}  // namespace heddle

#endif  // HWY_ONCE
