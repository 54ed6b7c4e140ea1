// Factorisations with triangular factors, and systems of equations: `lu`, `cholesky`, `solve`, `solve_triangular`.
#include <numeric>

#include "kernels/kernel_table.h"
#include "linalg/lapack.h"
#include "linalg/matrices.h"

namespace heddle {
namespace {

/// a[permutation] = l u.
template <class T>
void lapack_lu(const Matrices& a, const T* values, int32_t* permutation, T* lower, T* upper) {
  const size_t k = a.rank();
  check_finite("lu", values, a.size());
  std::vector<T> work(a.size());
  transpose_matrix(values, a.rows, a.columns, work.data());
  std::vector<lapack_int> swaps(k);
  // A zero pivot (info > 0) is a valid factorisation of a singular matrix.
  lapack::check_call("lu",
                     lapack::getrf(static_cast<int>(a.rows), static_cast<int>(a.columns), work.data(), swaps.data()));
  std::iota(permutation, permutation + a.rows, 0);
  for (size_t i = 0; i < k; ++i) std::swap(permutation[i], permutation[swaps[i] - 1]);
  for (size_t i = 0; i < a.rows; ++i)
    for (size_t j = 0; j < k; ++j) lower[i * k + j] = j < i ? work[j * a.rows + i] : j == i ? T{1} : T{0};
  for (size_t i = 0; i < k; ++i)
    for (size_t j = 0; j < a.columns; ++j) upper[i * a.columns + j] = j < i ? T{0} : work[j * a.rows + i];
}

CompiledKernel compile_lu(const KernelRequest& request) {
  request.expect_counts(1, 3);
  const Matrices a = read_matrices(request, request.inputs[0], "a");
  check_operand(request, request.outputs[0], "permutation", DType::kI32, a.with({a.rows}));
  check_operand(request, request.outputs[1], "l", a.dtype, a.with({a.rows, a.rank()}));
  check_operand(request, request.outputs[2], "u", a.dtype, a.with({a.rank(), a.columns}));
  CompiledKernel kernel;
  kernel.run = [a](const RunArguments& arguments) {
    auto* permutation = arguments.output<int32_t>(0);
    if (a.rank() == 0) {
      for (size_t i = 0; i < a.count; ++i) std::iota(permutation + i * a.rows, permutation + (i + 1) * a.rows, 0);
      return;
    }
    with_float(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      for_matrices(arguments.pool, a, matrices_per_tile(a), [&](size_t i) {
        lapack_lu(a, arguments.input<T>(0) + i * a.size(), permutation + i * a.rows,
                  arguments.output<T>(1) + i * a.rows * a.rank(), arguments.output<T>(2) + i * a.rank() * a.columns);
      });
    });
  };
  return kernel;
}

/// a = l lᵀ; reads the lower triangle.
template <class T>
void lapack_cholesky(const Matrices& a, const T* values, T* lower) {
  check_finite("cholesky", values, a.size());
  const size_t n = a.rows;
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) lower[i * n + j] = j > i ? T{0} : values[i * n + j];
  const lapack_int info = lapack::potrf(static_cast<int>(n), lower);
  lapack::check_call("cholesky", info);
  if (info > 0)
    throw Error(ErrorCode::kArgument, "cholesky", "a positive definite matrix",
                "one whose leading minor of order " + std::to_string(info) + " is not positive");
}

CompiledKernel compile_cholesky(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Matrices a = read_square(request, request.inputs[0], "a");
  check_operand(request, request.outputs[0], "l", a.dtype, request.inputs[0].shape);
  CompiledKernel kernel;
  kernel.run = [a](const RunArguments& arguments) {
    if (a.rank() == 0) return;
    with_float(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      for_matrices(arguments.pool, a, matrices_per_tile(a), [&](size_t i) {
        lapack_cholesky(a, arguments.input<T>(0) + i * a.size(), arguments.output<T>(0) + i * a.size());
      });
    });
  };
  return kernel;
}

/// a x = b for b of so many columns.
struct SolvePlan {
  Matrices a;
  size_t columns = 0;
  bool upper = false, transpose = false, unit = false;
};

SolvePlan read_solve(const KernelRequest& request) {
  request.expect_counts(2, 1);
  const Matrices a = read_square(request, request.inputs[0], "a");
  const Matrices b = read_matrices(request, request.inputs[1], "b");
  check_operand(request, request.inputs[1], "b", a.dtype, a.with({a.rows, b.columns}));
  check_operand(request, request.outputs[0], "x", a.dtype, a.with({a.rows, b.columns}));
  return {a, b.columns};
}

[[noreturn]] void reject_singular(const char* op, lapack_int place) {
  throw Error(ErrorCode::kArgument, op, "an invertible matrix",
              "one whose pivot " + std::to_string(place) + " is zero");
}

template <class T>
void lapack_solve(const SolvePlan& plan, const T* a, const T* b, T* x) {
  const size_t n = plan.a.rows;
  check_finite("solve", a, n * n);
  check_finite("solve", b, n * plan.columns);
  std::vector<T> work(n * n);
  std::vector<T> turned(n * plan.columns);
  std::vector<lapack_int> swaps(n);
  transpose_matrix(a, n, n, work.data());
  transpose_matrix(b, n, plan.columns, turned.data());
  const lapack_int info = lapack::getrf(static_cast<int>(n), static_cast<int>(n), work.data(), swaps.data());
  lapack::check_call("solve", info);
  if (info > 0) reject_singular("solve", info);
  lapack::check_call("solve", lapack::getrs(static_cast<int>(n), static_cast<int>(plan.columns), work.data(),
                                            swaps.data(), turned.data()));
  transpose_matrix(turned.data(), plan.columns, n, x);
}

/// Rows of x one after the other, each from those before it (from the last on, when op(a) is upper).
template <class T>
void substitute(const SolvePlan& plan, const T* a, const T* b, T* x) {
  const size_t n = plan.a.rows;
  const size_t columns = plan.columns;
  const bool backwards = plan.upper != plan.transpose;
  check_finite("solve_triangular", a, n * n);
  check_finite("solve_triangular", b, n * columns);
  for (size_t step = 0; step < n; ++step) {
    const size_t i = backwards ? n - 1 - step : step;
    T* row = x + i * columns;
    std::copy_n(b + i * columns, columns, row);
    for (size_t other = 0; other < step; ++other) {
      const size_t j = backwards ? n - 1 - other : other;
      const T factor = plan.transpose ? a[j * n + i] : a[i * n + j];
      if (factor == 0) continue;
      const T* known = x + j * columns;
      for (size_t c = 0; c < columns; ++c) row[c] -= factor * known[c];
    }
    if (plan.unit) continue;
    const T pivot = a[i * n + i];
    if (pivot == 0) reject_singular("solve_triangular", static_cast<lapack_int>(i + 1));
    for (size_t c = 0; c < columns; ++c) row[c] /= pivot;
  }
}

CompiledKernel compile_solve(const KernelRequest& request) {
  const SolvePlan plan = read_solve(request);
  CompiledKernel kernel;
  kernel.run = [plan](const RunArguments& arguments) {
    if (plan.a.rank() == 0) return;
    with_float(plan.a.dtype, [&](auto zero) {
      using T = decltype(zero);
      const size_t size = plan.a.rows * plan.columns;
      for_matrices(arguments.pool, plan.a, matrices_per_tile(plan.a), [&](size_t i) {
        lapack_solve(plan, arguments.input<T>(0) + i * plan.a.size(), arguments.input<T>(1) + i * size,
                     arguments.output<T>(0) + i * size);
      });
    });
  };
  return kernel;
}

CompiledKernel compile_solve_triangular(const KernelRequest& request) {
  SolvePlan plan = read_solve(request);
  plan.upper = request.attributes.integer("upper") != 0;
  plan.transpose = request.attributes.integer("transpose") != 0;
  plan.unit = request.attributes.integer("unit") != 0;
  CompiledKernel kernel;
  kernel.run = [plan](const RunArguments& arguments) {
    with_float(plan.a.dtype, [&](auto zero) {
      using T = decltype(zero);
      const size_t size = plan.a.rows * plan.columns;
      for_matrices(arguments.pool, plan.a, matrices_per_tile(plan.a), [&](size_t i) {
        substitute(plan, arguments.input<T>(0) + i * plan.a.size(), arguments.input<T>(1) + i * size,
                   arguments.output<T>(0) + i * size);
      });
    });
  };
  return kernel;
}

}  // namespace

void register_triangular(KernelTable& table) {
  table["lu"] = compile_lu;
  table["cholesky"] = compile_cholesky;
  table["solve"] = compile_solve;
  table["solve_triangular"] = compile_solve_triangular;
}

}  // namespace heddle
