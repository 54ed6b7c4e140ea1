#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "structured/alternating.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_STRUCTURED_ALTERNATING_ONCE
#define HEDDLE_STRUCTURED_ALTERNATING_ONCE

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "core/random.h"
#include "core/status.h"
#include "core/tile_pool.h"
#include "structured/alternating.h"

namespace heddle {
namespace {

/// One regression: minimise Σ_t w_t (a_t · x - b_t)² + ridge |x|², a_t = basis[indices[t], :].
struct Regression {
  const double* basis;
  size_t k;
  const int32_t* indices;
  size_t count;
  /// Scaled by the root of the weight, as `root`.
  const double* b;
  const double* root;
  double ridge;

  const double* row(size_t t) const { return basis + static_cast<size_t>(indices[t]) * k; }
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_STRUCTURED_ALTERNATING_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<double, 8>;

HWY_INLINE double dot(const double* a, const double* b, size_t k) {
  const D d;
  const size_t n = hn::Lanes(d);
  auto total = hn::Zero(d);
  size_t i = 0;
  for (; i + n <= k; i += n) total = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), total);
  double sum = hn::GetLane(hn::SumOfLanes(d, total));
  for (; i < k; ++i) sum += a[i] * b[i];
  return sum;
}

/// y += factor * x
HWY_INLINE void add_scaled(double factor, const double* x, double* y, size_t k) {
  const D d;
  const size_t n = hn::Lanes(d);
  const auto scale = hn::Set(d, factor);
  size_t i = 0;
  for (; i + n <= k; i += n) hn::StoreU(hn::MulAdd(scale, hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, y + i);
  for (; i < k; ++i) y[i] += factor * x[i];
}

/// gram [k, k] (its lower triangle, at least) = ridge I + Σ w a aᵀ, right [k] = Σ w b a.
void normal_equations(const Regression& p, double* gram, double* right) {
  std::fill_n(gram, p.k * p.k, 0.0);
  std::fill_n(right, p.k, 0.0);
  for (size_t i = 0; i < p.k; ++i) gram[i * p.k + i] = p.ridge;
  for (size_t t = 0; t < p.count; ++t) {
    const double* a = p.row(t);
    const double weight = p.root[t] * p.root[t];
    for (size_t i = 0; i < p.k; ++i) add_scaled(weight * a[i], a, gram + i * p.k, i + 1);
    add_scaled(p.root[t] * p.b[t], a, right, p.k);
  }
}

/// residual = b - A x over the scaled equations, or with kProduct A x.
template <bool kProduct>
HWY_INLINE void apply(const Regression& p, const double* x, double* result) {
  for (size_t t = 0; t < p.count; ++t) {
    const double value = p.root[t] * dot(p.row(t), x, p.k);
    result[t] = kProduct ? value : p.b[t] - value;
  }
}

void apply_rows(const Regression& p, const double* x, double* result) { apply<true>(p, x, result); }
void residual_rows(const Regression& p, const double* x, double* result) { apply<false>(p, x, result); }

/// gradient = Aᵀ r - ridge x
void gradient_rows(const Regression& p, const double* residual, const double* x, double* gradient) {
  for (size_t i = 0; i < p.k; ++i) gradient[i] = -p.ridge * x[i];
  for (size_t t = 0; t < p.count; ++t) add_scaled(p.root[t] * residual[t], p.row(t), gradient, p.k);
}

/// Every equation is added, with a random sign, to a random row of the sketch [rows, k].
void count_sketch(const Regression& p, uint64_t seed, uint64_t stream, double* sketch, size_t rows) {
  for (size_t t = 0; t < p.count; ++t) {
    const uint32_t bits = philox_word(seed, stream, t);
    add_scaled((bits & 1) != 0 ? p.root[t] : -p.root[t], p.row(t), sketch + (bits >> 1) % rows * p.k, p.k);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(normal_equations);
HWY_EXPORT(apply_rows);
HWY_EXPORT(residual_rows);
HWY_EXPORT(gradient_rows);
HWY_EXPORT(count_sketch);

/// Regressions that one tile solves.
constexpr size_t kTileRows = 16;
/// Rows of a tall matrix that one tile sums up.
constexpr size_t kTallRows = 1024;
/// A pivot below this share of the largest diagonal element means that a direction is open.
constexpr double kOpen = 1e-13;

/// Lower triangle of a [k, k] -> its Cholesky factor L, in place; false when a direction is open.
bool cholesky(double* a, size_t k) {
  double largest = 0.0;
  for (size_t i = 0; i < k; ++i) largest = std::max(largest, a[i * k + i]);
  for (size_t i = 0; i < k; ++i)
    for (size_t j = 0; j <= i; ++j) {
      double sum = a[i * k + j];
      for (size_t c = 0; c < j; ++c) sum -= a[i * k + c] * a[j * k + c];
      if (j < i) {
        a[i * k + j] = sum / a[j * k + j];
      } else {
        if (!(sum > kOpen * largest)) return false;
        a[i * k + i] = std::sqrt(sum);
      }
    }
  return true;
}

/// x = L⁻¹ x
void solve_lower(const double* l, size_t k, double* x) {
  for (size_t i = 0; i < k; ++i) {
    for (size_t c = 0; c < i; ++c) x[i] -= l[i * k + c] * x[c];
    x[i] /= l[i * k + i];
  }
}

/// x = L⁻ᵀ x
void solve_lower_transposed(const double* l, size_t k, double* x) {
  for (size_t i = k; i-- > 0;) {
    x[i] /= l[i * k + i];
    for (size_t c = 0; c < i; ++c) x[c] -= l[i * k + c] * x[i];
  }
}

/// L = Rᵀ of the QR decomposition of a [rows, k], by Householder reflections of a, which is overwritten. False when a
/// direction is open.
bool triangular_factor(double* a, size_t rows, size_t k, double* l) {
  double largest = 0.0;
  for (size_t j = 0; j < k; ++j) {
    double norm = 0.0;
    for (size_t i = j; i < rows; ++i) norm += a[i * k + j] * a[i * k + j];
    norm = std::sqrt(norm);
    largest = std::max(largest, norm);
    if (!(norm > 1e-12 * largest)) return false;
    const double pivot = a[j * k + j] > 0.0 ? -norm : norm;
    const double head = a[j * k + j] - pivot;
    const double scale = -1.0 / (pivot * head);
    a[j * k + j] = head;
    for (size_t c = j + 1; c < k; ++c) {
      double product = 0.0;
      for (size_t i = j; i < rows; ++i) product += a[i * k + j] * a[i * k + c];
      for (size_t i = j; i < rows; ++i) a[i * k + c] -= scale * product * a[i * k + j];
    }
    for (size_t c = 0; c < j; ++c) l[j * k + c] = a[c * k + j];
    l[j * k + j] = pivot;
  }
  return true;
}

double norm_squared(std::span<const double> x) { return std::inner_product(x.begin(), x.end(), x.begin(), 0.0); }

/// Working memory of one tile.
struct Workspace {
  explicit Workspace(size_t k) : gram(k * k), sketch(), gradient(k), direction(k), step(k) {}
  std::vector<double> gram, sketch, gradient, direction, step, residual, product, b, root;
};

/// Conjugate gradients on the normal equations of A L⁻ᵀ, from x on. Without a factor L: of A.
size_t conjugate_gradients(const Regression& p, const double* factor, size_t limit, double tolerance, double* x,
                           Workspace& work) {
  const size_t k = p.k;
  work.residual.resize(p.count);
  work.product.resize(p.count);
  auto& gradient = work.gradient;
  auto& direction = work.direction;
  auto& step = work.step;
  HWY_DYNAMIC_DISPATCH(residual_rows)(p, x, work.residual.data());
  const auto turn = [&] {
    HWY_DYNAMIC_DISPATCH(gradient_rows)(p, work.residual.data(), x, gradient.data());
    if (factor != nullptr) solve_lower(factor, k, gradient.data());
    return norm_squared(gradient);
  };
  double current = turn();
  const double target = tolerance * tolerance * current;
  direction = gradient;
  // A gradient this small next to the residual is rounding, and following it leads away.
  const auto rounding = [&] { return 1e-30 * norm_squared(work.residual); };
  size_t done = 0;
  for (; done < limit && current > std::max(target, rounding()); ++done) {
    step = direction;
    if (factor != nullptr) solve_lower_transposed(factor, k, step.data());
    HWY_DYNAMIC_DISPATCH(apply_rows)(p, step.data(), work.product.data());
    const double curvature = norm_squared(work.product) + p.ridge * norm_squared(step);
    if (!(curvature > 0.0)) break;
    const double length = current / curvature;
    for (size_t i = 0; i < k; ++i) x[i] += length * step[i];
    for (size_t t = 0; t < p.count; ++t) work.residual[t] -= length * work.product[t];
    const double next = turn();
    for (size_t i = 0; i < k; ++i) direction[i] = gradient[i] + next / current * direction[i];
    current = next;
  }
  return done;
}

/// What a row's solution cost.
struct RowReport {
  size_t iterations = 0;
  bool undetermined = false;
};

RowReport minimum_norm(const Regression& p, double* x, Workspace& work) {
  std::fill_n(x, p.k, 0.0);
  // From 0 on, conjugate gradients stay in the span of the equations, whose dimension bounds their iterations.
  return {conjugate_gradients(p, nullptr, 2 * std::min(p.count, p.k) + 2, 1e-12, x, work), true};
}

RowReport solve_exactly(const Regression& p, double* x, Workspace& work) {
  HWY_DYNAMIC_DISPATCH(normal_equations)(p, work.gram.data(), work.step.data());
  if (!cholesky(work.gram.data(), p.k)) return minimum_norm(p, x, work);
  solve_lower(work.gram.data(), p.k, work.step.data());
  solve_lower_transposed(work.gram.data(), p.k, work.step.data());
  std::copy(work.step.begin(), work.step.end(), x);
  return {};
}

RowReport solve_sketched(const Regression& p, uint64_t row, const HalfStepOptions& options, double* x,
                         Workspace& work) {
  work.sketch.assign(options.sketch_rows * p.k, 0.0);
  HWY_DYNAMIC_DISPATCH(count_sketch)(p, options.seed, row, work.sketch.data(), options.sketch_rows);
  if (!triangular_factor(work.sketch.data(), options.sketch_rows, p.k, work.gram.data()))
    return solve_exactly(p, x, work);
  return {conjugate_gradients(p, work.gram.data(), options.iterations, options.tolerance, x, work), false};
}

RowReport solve_row(const Regression& p, uint64_t row, const HalfStepOptions& options, double* x, Workspace& work) {
  if (options.solver == RowSolver::kExact || p.count < p.k || p.count <= options.sketch_rows)
    return solve_exactly(p, x, work);
  if (options.solver == RowSolver::kSketched) return solve_sketched(p, row, options, x, work);
  return {conjugate_gradients(p, nullptr, options.iterations, options.tolerance, x, work), false};
}

Tensor make_matrix(size_t rows, size_t columns) {
  const Shape shape({static_cast<int64_t>(rows), static_cast<int64_t>(columns)});
  return {DType::kF64, shape, Storage::owned(shape.bytes(DType::kF64))};
}

double* data(const Tensor& tensor) { return reinterpret_cast<double*>(tensor.storage->mutable_data()); }

/// A tensor's elements, kept in memory while this lives.
template <class T>
class Pinned {
 public:
  explicit Pinned(const Tensor& tensor) : pin_(tensor.storage) {}
  const T* data() const { return reinterpret_cast<const T*>(pin_.data()); }

 private:
  Storage::Pin pin_;
};

void expect(const Tensor& tensor, DType dtype, const Shape& shape, const char* name) {
  if (tensor.dtype == dtype && tensor.shape == shape) return;
  throw Error(ErrorCode::kShape, "completion", std::string(name) + " " + dtype_name(dtype) + " " + shape.str(),
              std::string(dtype_name(tensor.dtype)) + " " + tensor.shape.str());
}

/// What becomes an address is checked once, before the threads use it.
void check_indices(const Tensor& pointers, const Tensor& indices, size_t columns) {
  const Pinned<int32_t> starts(pointers), places(indices);
  const auto refuse = [](const char* expected) { throw Error(ErrorCode::kArgument, "completion", expected, "others"); };
  const size_t rows = pointers.shape.count() - 1;
  if (starts.data()[0] != 0 || static_cast<size_t>(starts.data()[rows]) != indices.shape.count())
    refuse("pointers from 0 to the number of observations");
  for (size_t row = 0; row < rows; ++row)
    if (starts.data()[row + 1] < starts.data()[row]) refuse("pointers that never fall");
  for (size_t t = 0; t < indices.shape.count(); ++t)
    if (places.data()[t] < 0 || static_cast<size_t>(places.data()[t]) >= columns) refuse("indices within the matrix");
}

void check(const Observations& given, const Tensor& basis, const HalfStepOptions& options) {
  if (basis.dtype != DType::kF64 || basis.shape.rank() != 2 || basis.shape[1] < 1)
    throw Error(ErrorCode::kShape, "completion", "a basis f64 [n, k]", basis.shape.str());
  if (given.pointers.shape.rank() != 1 || given.pointers.shape[0] < 1 || given.indices.shape.rank() != 1)
    throw Error(ErrorCode::kShape, "completion", "pointers [m + 1] and indices [count]", given.pointers.shape.str());
  const Shape& count = given.indices.shape;
  expect(given.pointers, DType::kI32, given.pointers.shape, "pointers");
  expect(given.indices, DType::kI32, count, "indices");
  expect(given.values, DType::kF64, count, "values");
  if (given.order) expect(*given.order, DType::kI32, count, "order");
  if (given.weights) expect(*given.weights, DType::kF64, count, "weights");
  check_indices(given.pointers, given.indices, static_cast<size_t>(basis.shape[0]));
  if (given.order) check_indices(given.pointers, *given.order, count.count());
  if (options.solver == RowSolver::kSketched && options.sketch_rows < static_cast<size_t>(basis.shape[1]))
    throw Error(ErrorCode::kArgument, "completion", "at least k rows of the sketch",
                std::to_string(options.sketch_rows));
}

/// aᵀ a [k, k] of a tall matrix [n, k]: sums over tiles of rows, added up in order.
std::vector<double> gram_of(const double* a, size_t n, size_t k) {
  const size_t tiles = (n + kTallRows - 1) / kTallRows;
  std::vector<double> parts(tiles * k * k);
  std::vector<int32_t> places(kTallRows);
  std::iota(places.begin(), places.end(), 0);
  const std::vector<double> ones(kTallRows, 1.0), zeros(kTallRows, 0.0);
  TilePool::shared().run(tiles, [&](size_t tile, size_t) {
    std::vector<double> unused(k);
    const size_t begin = tile * kTallRows;
    const Regression all{a + begin * k, k,  places.data(), std::min(kTallRows, n - begin), zeros.data(),
                         ones.data(),   0.0};
    HWY_DYNAMIC_DISPATCH(normal_equations)(all, parts.data() + tile * k * k, unused.data());
  });
  std::vector<double> gram(k * k);
  for (size_t tile = 0; tile < tiles; ++tile)
    for (size_t i = 0; i < k * k; ++i) gram[i] += parts[tile * k * k + i];
  return gram;
}

/// The factor L of the Gram matrix of some columns, and which columns depend on those before them: in L these are 0.
struct ColumnFactor {
  std::vector<double> l;
  std::vector<bool> open;
};

ColumnFactor factor_columns(std::vector<double> gram, size_t k) {
  double largest = 0.0;
  for (size_t i = 0; i < k; ++i) largest = std::max(largest, gram[i * k + i]);
  std::vector<bool> open(k);
  for (size_t i = 0; i < k; ++i)
    for (size_t j = 0; j <= i; ++j) {
      double sum = gram[i * k + j];
      for (size_t c = 0; c < j; ++c) sum -= gram[i * k + c] * gram[j * k + c];
      if (i == j) {
        open[i] = !(sum > kOpen * largest);
        gram[i * k + i] = open[i] ? 0.0 : std::sqrt(sum);
      } else {
        gram[i * k + j] = open[j] ? 0.0 : sum / gram[j * k + j];
      }
    }
  return {std::move(gram), std::move(open)};
}

/// row = L^-1 row; open columns get a random number instead, which the next pass makes orthogonal to the rest.
void replace_row(const ColumnFactor& factor, size_t k, uint64_t index, double scale, double* row) {
  constexpr uint64_t kStream = 0x6f70656e;
  for (size_t i = 0; i < k; ++i) {
    if (factor.open[i]) {
      row[i] = scale * (uniform_from_bits(philox_word(0, kStream + i, index)) - 0.5);
      continue;
    }
    for (size_t c = 0; c < i; ++c) row[i] -= factor.open[c] ? 0.0 : factor.l[i * k + c] * row[c];
    row[i] /= factor.l[i * k + i];
  }
}

/// a [n, k] with orthonormal columns, in place; `start` [rows, k] keeps start * a^T as it was. The second pass removes
/// what rounding in the squared condition number has left; each pass that had to invent directions needs two more.
void orthonormalise(double* a, size_t n, size_t k, double* start, size_t rows) {
  for (int left = 2, pass = 0; left > 0 && pass < 6; --left, ++pass) {
    const ColumnFactor factor = factor_columns(gram_of(a, n, k), k);
    if (std::find(factor.open.begin(), factor.open.end(), true) != factor.open.end()) left = 3;
    const double scale = std::sqrt(12.0 / static_cast<double>(std::max<size_t>(1, n)));
    TilePool::shared().run((n + kTallRows - 1) / kTallRows, [&](size_t tile, size_t) {
      for (size_t row = tile * kTallRows; row < std::min(n, (tile + 1) * kTallRows); ++row)
        replace_row(factor, k, row, scale, a + row * k);
    });
    // a = q L^T, so start a^T = (start L) q^T.
    for (size_t row = 0; row < rows; ++row)
      for (size_t j = 0; j < k; ++j) {
        double sum = 0.0;
        for (size_t c = j; c < k; ++c) sum += start[row * k + c] * factor.l[c * k + j];
        start[row * k + j] = sum;
      }
  }
}

Tensor copy_of(const Tensor& source) {
  Tensor copy = make_matrix(static_cast<size_t>(source.shape[0]), static_cast<size_t>(source.shape[1]));
  std::copy_n(Pinned<double>(source).data(), source.shape.count(), data(copy));
  return copy;
}

}  // namespace

HalfStep half_step(const Observations& observations, const Tensor& basis, const std::optional<Tensor>& start,
                   const HalfStepOptions& options) {
  check(observations, basis, options);
  const auto rows = static_cast<size_t>(observations.pointers.shape[0] - 1);
  const auto k = static_cast<size_t>(basis.shape[1]);
  const Shape factor_shape({static_cast<int64_t>(rows), basis.shape[1]});
  if (start) expect(*start, DType::kF64, factor_shape, "start");
  HalfStep result;
  result.basis = copy_of(basis);
  result.factor = start ? copy_of(*start) : make_matrix(rows, k);
  const auto n = static_cast<size_t>(basis.shape[0]);
  double* const factor = data(result.factor);
  double* const own_basis = data(result.basis);
  orthonormalise(own_basis, n, k, factor, start ? rows : 0);

  const Pinned<int32_t> pointers(observations.pointers), indices(observations.indices);
  const Pinned<int32_t> order(observations.order.value_or(observations.indices));
  const Pinned<double> values(observations.values), weights(observations.weights.value_or(observations.values));
  std::vector<RowReport> reports(rows);
  TilePool::shared().run((rows + kTileRows - 1) / kTileRows, [&](size_t tile, size_t) {
    Workspace work(k);
    for (size_t row = tile * kTileRows; row < std::min(rows, (tile + 1) * kTileRows); ++row) {
      const auto first = static_cast<size_t>(pointers.data()[row]);
      const size_t count = static_cast<size_t>(pointers.data()[row + 1]) - first;
      work.b.resize(count);
      work.root.resize(count);
      for (size_t t = 0; t < count; ++t) {
        const size_t at = observations.order ? static_cast<size_t>(order.data()[first + t]) : first + t;
        work.root[t] = observations.weights ? std::sqrt(std::max(weights.data()[at], 0.0)) : 1.0;
        work.b[t] = work.root[t] * values.data()[at];
      }
      const Regression regression{own_basis,    k, indices.data() + first, count, work.b.data(), work.root.data(),
                                  options.ridge};
      reports[row] = solve_row(regression, row, options, factor + row * k, work);
    }
  });
  for (const RowReport& each : reports) {
    result.iterations += each.iterations;
    result.undetermined += each.undetermined ? 1 : 0;
  }
  return result;
}

Tensor orthonormal_columns(const Tensor& a) {
  if (a.dtype != DType::kF64 || a.shape.rank() != 2)
    throw Error(ErrorCode::kShape, "completion", "f64 [n, k]", a.shape.str());
  Tensor q = copy_of(a);
  orthonormalise(data(q), static_cast<size_t>(a.shape[0]), static_cast<size_t>(a.shape[1]), nullptr, 0);
  return q;
}

size_t connected_parts(const Tensor& pointers, const Tensor& indices, size_t columns) {
  if (pointers.shape.rank() != 1 || pointers.shape[0] < 1)
    throw Error(ErrorCode::kShape, "completion", "pointers [m + 1]", pointers.shape.str());
  expect(pointers, DType::kI32, pointers.shape, "pointers");
  expect(indices, DType::kI32, Shape({static_cast<int64_t>(indices.shape.count())}), "indices");
  check_indices(pointers, indices, columns);
  const size_t rows = pointers.shape.count() - 1;
  const Pinned<int32_t> starts(pointers), places(indices);
  std::vector<size_t> parent(rows + columns);
  std::iota(parent.begin(), parent.end(), size_t{0});
  const auto root = [&](size_t node) {
    while (parent[node] != node) node = parent[node] = parent[parent[node]];
    return node;
  };
  std::vector<bool> seen(rows + columns);
  for (size_t row = 0; row < rows; ++row)
    for (int32_t t = starts.data()[row]; t < starts.data()[row + 1]; ++t) {
      const size_t column = rows + static_cast<size_t>(places.data()[t]);
      seen[row] = seen[column] = true;
      parent[root(row)] = root(column);
    }
  size_t parts = 0;
  for (size_t node = 0; node < rows + columns; ++node) parts += seen[node] && parent[node] == node ? 1 : 0;
  return parts;
}

}  // namespace heddle

#endif  // HWY_ONCE
