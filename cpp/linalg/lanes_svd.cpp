// Singular values of batches of small matrices: bidiagonal by Householder's reflections, then implicit QR iterations
// (Golub and Reinsch 1970, in the form of Demmel and Kahan 1990). Sweeps run over all lanes together; a lane has
// rotations where its last unreduced block is.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linalg/lanes_svd.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "linalg/turns-inl.h"

#ifndef HEDDLE_LINALG_LANES_SVD_ONCE
#define HEDDLE_LINALG_LANES_SVD_ONCE

#include <numeric>

#include "linalg/lanes_kernels.h"

namespace heddle {

/// At least as many rows as columns.
template <class T>
struct SvdLanes {
  /// Vectors of at most kNarrowBytes.
  bool narrow;
  /// [rows, n] of which `height` rows are the matrix's.
  T* a;
  size_t rows, height, n;
  /// [n, rows], [n]
  T* left_vectors;
  T* left_taus;
  /// [n, padded n], [n]
  T* right_vectors;
  T* right_taus;
  /// [n] singular values, neither sorted nor positive.
  T* diagonal;
  /// [n], the last one 0.
  T* beside;
  /// [rows, u_columns] and [padded n, n], zero; become the vectors. Null if nobody asks.
  T* u;
  size_t u_columns;
  T* v;
  T* u_turns;
  T* v_turns;
  /// 2 u_columns + 2 rows vectors, zero.
  T* work;
};

}  // namespace heddle

#endif  // HEDDLE_LINALG_LANES_SVD_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

/// a becomes u b v^T with b upper bidiagonal; the reflections of u and v stay.
template <class D, class T = hn::TFromD<D>>
void bidiagonalise(D d, const SvdLanes<T>& svd) {
  const size_t lanes = hn::Lanes(d);
  const auto [rows, height, n] = std::tuple(svd.rows, svd.height, svd.n);
  // The last reflection from the right, a - y z^T, is still to be made.
  T* const y = svd.work;
  T* const sums = y + rows * lanes;
  const T* z = sums + n * lanes;
  for (size_t k = 0; k < n; ++k) {
    T* const v = svd.left_vectors + k * rows * lanes;
    const auto zk = hn::Load(d, z + k * lanes);
    for (size_t i = k; i < height; ++i) {
      const auto x = hn::Load(d, svd.a + (i * n + k) * lanes);
      hn::Store(hn::NegMulAdd(hn::Load(d, y + i * lanes), zk, x), d, v + i * lanes);
    }
    const auto left = make_reflection(d, v, k, height);
    hn::Store(left.beta, d, svd.diagonal + k * lanes);
    hn::Store(left.tau, d, svd.left_taus + k * lanes);
    if (k + 1 == n) return;
    std::fill(sums + (k + 1) * lanes, sums + n * lanes, T{0});
    update_and_sum(d, svd.a, rows, n, k, k + 1, y, z, v, sums);
    scale_lanes(d, sums, k + 1, n, left.tau);
    T* const x = svd.right_vectors + k * padded(n) * lanes;
    const T* const row = svd.a + k * n * lanes;
    for (size_t j = (k + 1) * lanes; j < n * lanes; j += lanes)
      hn::Store(hn::Sub(hn::Load(d, row + j), hn::Load(d, sums + j)), d, x + j);
    const auto right = make_reflection(d, x, k + 1, n);
    hn::Store(right.beta, d, svd.beside + k * lanes);
    hn::Store(right.tau, d, svd.right_taus + k * lanes);
    update_and_dot<false>(d, svd.a, rows, n, k + 1, k + 1, RankOne<T>{v, sums}, RankOne<T>{v, sums}, x, y);
    scale_lanes(d, y, k + 1, rows, right.tau);
    std::fill_n(y, (k + 1) * lanes, T{0});
    z = x;
  }
}

/// The smaller singular value of the last two rows of a block, after LAPACK's las2; 0 where the block has one.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V least_value(D d, const Block<D>& block) {
  const auto one = hn::Set(d, hn::TFromD<D>(1));
  const auto above = hn::Abs(block.above), bottom = hn::Abs(block.bottom);
  const auto low = hn::Min(above, bottom), high = hn::Max(above, bottom);
  const auto usable = hn::AndNot(block.singular, block.active);
  const auto divisor = hn::IfThenElse(usable, high, one);
  const auto sum = hn::Add(one, hn::Div(low, divisor));
  const auto difference = hn::Div(hn::Sub(high, low), divisor);
  const auto link = hn::Div(block.link, divisor);
  const auto square = hn::Mul(link, link);
  const auto root =
      hn::Add(hn::Sqrt(hn::MulAdd(sum, sum, square)), hn::Sqrt(hn::MulAdd(difference, difference, square)));
  return hn::IfThenElseZero(usable, hn::Div(hn::Add(low, low), root));
}

/// One implicit QR sweep from the top to the bottom of each lane's block.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void sweep(D d, T* diagonal, T* beside, const Block<D>& block, TurnRecord<T>& u, TurnRecord<T>& v) {
  const size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, T{1});
  const auto shift = least_value(d, block);
  auto f = hn::Zero(d), g = hn::Zero(d);
  auto here = hn::Load(d, diagonal + block.first * lanes);
  auto e = hn::Load(d, beside + block.first * lanes);
  for (size_t i = block.first; i < block.last; ++i) {
    const auto at = hn::Set(d, static_cast<T>(i));
    const auto active = hn::And(block.active, hn::And(hn::Le(block.lo, at), hn::Lt(at, block.hi)));
    const auto starts = hn::And(active, hn::Eq(block.lo, at));
    // (here^2 - shift^2) / here
    const auto divisor = hn::IfThenElse(block.singular, one, here);
    const auto start =
        hn::Mul(hn::Sub(hn::Abs(here), shift), hn::Add(hn::CopySign(one, here), hn::Div(shift, divisor)));
    f = hn::IfThenElse(starts, start, f);
    g = hn::IfThenElse(starts, e, g);
    const auto right = turn_of(d, f, g, active);
    record_turn(d, v, i, right);
    if (i > block.first) {
      T* const before = beside + (i - 1) * lanes;
      hn::Store(hn::IfThenElse(hn::AndNot(starts, active), right.length, hn::Load(d, before)), d, before);
    }
    const auto next = hn::Load(d, diagonal + (i + 1) * lanes);
    f = hn::MulAdd(right.sin, e, hn::Mul(right.cos, here));
    e = hn::NegMulAdd(right.sin, here, hn::Mul(right.cos, e));
    g = hn::Mul(right.sin, next);
    const auto below = hn::Mul(right.cos, next);
    const auto left = turn_of(d, f, g, active);
    record_turn(d, u, i, left);
    hn::Store(left.length, d, diagonal + i * lanes);
    f = hn::MulAdd(left.sin, below, hn::Mul(left.cos, e));
    here = hn::NegMulAdd(left.sin, e, hn::Mul(left.cos, below));
    hn::Store(f, d, beside + i * lanes);
    // Below a block there is zero.
    const auto following = hn::Load(d, beside + (i + 1) * lanes);
    g = hn::Mul(left.sin, following);
    e = hn::Mul(left.cos, following);
    hn::Store(e, d, beside + (i + 1) * lanes);
  }
  hn::Store(here, d, diagonal + block.last * lanes);
  end_sweep(d, u, block.first, block.last);
  end_sweep(d, v, block.first, block.last);
}

/// False where iterations do not converge.
template <class D, class T = hn::TFromD<D>>
bool svd_lanes(D d, const SvdLanes<T>& svd) {
  const size_t lanes = hn::Lanes(d);
  const size_t n = svd.n;
  bidiagonalise(d, svd);
  const size_t work = (2 * svd.u_columns + 2 * svd.rows) * lanes;
  if (svd.u != nullptr) {
    std::fill_n(svd.work, work, T{0});
    multiply_reflections(d, Reflections<T>{svd.left_vectors, svd.left_taus, n, svd.rows, 0}, svd.u, svd.u_columns,
                         svd.work);
  }
  if (svd.v != nullptr) {
    std::fill_n(svd.work, work, T{0});
    multiply_reflections(d, Reflections<T>{svd.right_vectors, svd.right_taus, n - 1, padded(n), 1}, svd.v, n, svd.work);
  }
  auto largest = hn::Zero(d);
  for (size_t i = 0; i < n * lanes; i += lanes)
    largest = hn::Max(largest, hn::Max(hn::Abs(hn::Load(d, svd.diagonal + i)), hn::Abs(hn::Load(d, svd.beside + i))));
  TurnRecord<T> u{svd.u, svd.rows, svd.u_columns, svd.u_turns};
  TurnRecord<T> v{svd.v, padded(n), n, svd.v_turns};
  for (size_t left = kMostSweepsPerRow * n; left > 0; --left) {
    const auto block = find_blocks<true>(d, svd.diagonal, svd.beside, n, largest);
    if (hn::AllFalse(d, block.active)) {
      apply_turns(d, u);
      apply_turns(d, v);
      return true;
    }
    sweep(d, svd.diagonal, svd.beside, block, u, v);
  }
  return false;
}

bool svd_f32(const SvdLanes<float>& svd) {
  return at_width<float>(svd.narrow, [&](auto d) { return svd_lanes(d, svd); });
}
bool svd_f64(const SvdLanes<double>& svd) {
  return at_width<double>(svd.narrow, [&](auto d) { return svd_lanes(d, svd); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(svd_f32);
HWY_EXPORT(svd_f64);

bool decompose(const SvdLanes<float>& svd) { return HWY_DYNAMIC_DISPATCH(svd_f32)(svd); }
bool decompose(const SvdLanes<double>& svd) { return HWY_DYNAMIC_DISPATCH(svd_f64)(svd); }

/// A wide matrix is taken as its transpose, whose left and right vectors are swapped.
struct Turned {
  bool turned;
  size_t height, n;
  explicit Turned(const Matrices& a) : turned(a.columns > a.rows), height(std::max(a.rows, a.columns)), n(a.rank()) {}
};

size_t work_vectors(size_t rows, size_t u_columns) { return 2 * u_columns + 2 * rows; }

/// Where the vectors of one lane come from: their order, and -1 for those that turn with a negative value.
template <class T>
struct Sorted {
  std::vector<size_t> order;
  std::vector<T> signs;
};

template <class T>
class SvdGroup {
 public:
  SvdGroup(const SvdProblem<T>& problem, size_t first, size_t count, T* memory)
      : problem_(problem), shape_(problem.a), first_(first), count_(count), lanes_(lane_count<T>(problem.a)) {
    const size_t n = shape_.n, rows = padded(shape_.height);
    const bool tall_asked = (shape_.turned ? problem.vh : problem.u) != nullptr;
    const bool square_asked = (shape_.turned ? problem.u : problem.vh) != nullptr;
    LaneScratch<T> scratch(memory, lanes_);
    svd_.narrow = narrow_lanes(problem.a);
    svd_.a = scratch.take(rows * n);
    svd_.rows = rows;
    svd_.height = shape_.height;
    svd_.n = n;
    svd_.left_vectors = scratch.take(rows * n);
    svd_.left_taus = scratch.take(n);
    svd_.right_vectors = scratch.take(padded(n) * n);
    svd_.right_taus = scratch.take(n);
    svd_.diagonal = scratch.take(n);
    svd_.beside = scratch.take(n);
    svd_.u_columns = problem.full ? shape_.height : n;
    svd_.u = tall_asked ? scratch.take(rows * svd_.u_columns) : nullptr;
    svd_.v = square_asked ? scratch.take(padded(n) * n) : nullptr;
    svd_.u_turns = scratch.take(TurnRecord<T>::vectors(svd_.u_columns));
    svd_.v_turns = scratch.take(TurnRecord<T>::vectors(n));
    svd_.work = scratch.take(work_vectors(rows, svd_.u_columns));
  }

  void run() {
    const std::vector<T> scales = load();
    if (!decompose(svd_)) throw Error(ErrorCode::kInternal, "svd", "an iteration that converges", "one that does not");
    std::vector<Sorted<T>> sorted;
    for (size_t lane = 0; lane < count_; ++lane) sorted.push_back(store_values(lane, scales[lane]));
    store_vectors(svd_.u, shape_.height, svd_.u_columns, sorted, false, shape_.turned ? problem_.vh : problem_.u);
    store_vectors(svd_.v, shape_.n, shape_.n, sorted, true, shape_.turned ? problem_.u : problem_.vh);
  }

 private:
  std::vector<T> load() const {
    const size_t size = problem_.a.size(), columns = problem_.a.columns;
    const T* const values = problem_.values + first_ * size;
    std::vector<T> scales(count_), inverses(count_);
    for (size_t lane = 0; lane < count_; ++lane) {
      check_finite("svd", values + lane * size, size);
      scales[lane] = scale_for(largest_of(values + lane * size, size));
      inverses[lane] = T{1} / scales[lane];
    }
    const size_t down = shape_.turned ? 1 : columns, across = shape_.turned ? columns : 1;
    fill_lanes(svd_.a, lanes_, count_, shape_.height, shape_.n, [&](size_t lane, size_t i, size_t j) {
      return values[lane * size + i * down + j * across] * inverses[lane];
    });
    return scales;
  }

  Sorted<T> store_values(size_t lane, T scale) const {
    const auto value = [&](size_t i) { return svd_.diagonal[i * lanes_ + lane]; };
    Sorted<T> sorted{std::vector<size_t>(svd_.u_columns), std::vector<T>(svd_.u_columns, T{1})};
    const auto begin = sorted.order.begin();
    std::iota(begin, sorted.order.end(), size_t{0});
    std::stable_sort(begin, begin + shape_.n,
                     [&](size_t x, size_t y) { return std::abs(value(x)) > std::abs(value(y)); });
    for (size_t r = 0; r < shape_.n; ++r) {
      const T own = value(sorted.order[r]);
      problem_.s[(first_ + lane) * shape_.n + r] = std::abs(own) * scale;
      if (own < 0) sorted.signs[r] = T{-1};
    }
    return sorted;
  }

  /// z [height, columns] as the columns of u, or as the rows of vh.
  void store_vectors(const T* z, size_t height, size_t columns, const std::vector<Sorted<T>>& sorted, bool with_sign,
                     T* out) const {
    if (z == nullptr) return;
    const bool as_rows = out == problem_.vh;
    const size_t down = as_rows ? 1 : columns, across = as_rows ? height : 1;
    drain_lanes(z, lanes_, count_, height, columns, [&](size_t lane, size_t i, const auto& row) {
      const auto& [order, signs] = sorted[lane];
      T* const target = out + (first_ + lane) * height * columns + i * down;
      for (size_t r = 0; r < columns; ++r) target[r * across] = with_sign ? signs[r] * row(order[r]) : row(order[r]);
    });
  }

  const SvdProblem<T>& problem_;
  Turned shape_;
  size_t first_, count_, lanes_;
  SvdLanes<T> svd_;
};

}  // namespace

size_t lanes_svd_scratch(const Matrices& a, bool full) {
  const Turned shape(a);
  const size_t n = shape.n, rows = padded(shape.height), u_columns = full ? shape.height : n;
  const size_t vectors = rows * (2 * n + u_columns) + 2 * padded(n) * n + 4 * n +
                         TurnRecord<float>::vectors(u_columns) + TurnRecord<float>::vectors(n) +
                         work_vectors(rows, u_columns);
  return lane_count<float>(a) * sizeof(float) * vectors;
}

template <class T>
void lanes_svd(const SvdProblem<T>& problem, const RunArguments& arguments) {
  for_lane_groups(arguments, problem.a, lane_count<T>(problem.a), [&](size_t first, size_t count, size_t thread) {
    SvdGroup<T>(problem, first, count, arguments.thread_scratch<T>(thread)).run();
  });
}

template void lanes_svd<float>(const SvdProblem<float>&, const RunArguments&);
template void lanes_svd<double>(const SvdProblem<double>&, const RunArguments&);

}  // namespace heddle

#endif  // HWY_ONCE
