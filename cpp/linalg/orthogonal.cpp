// Factorisations with orthogonal factors of matrices of any size, by LAPACK: `svd`, `qr`, `qr_pivoted`, `eigh`. Batches
// of small matrices go side by side (lanes_kernels.h).
#include <numeric>

#include "kernels/kernel_table.h"
#include "linalg/lanes.h"
#include "linalg/lanes_kernels.h"
#include "linalg/lapack.h"
#include "linalg/large_svd.h"
#include "linalg/matrices.h"
#include "linalg/tall_qr.h"

namespace heddle {
namespace {

template <class T>
void set_identity(T* a, size_t n) {
  std::fill_n(a, n * n, T{0});
  for (size_t i = 0; i < n; ++i) a[i * n + i] = 1;
}

struct SvdPlan {
  Matrices a;
  bool full = false;
  size_t left() const { return full ? a.rows : a.rank(); }
  size_t right() const { return full ? a.columns : a.rank(); }
};

/// One matrix. u and vh may be null, both or one of them.
template <class T>
void lapack_svd(const SvdPlan& plan, const T* a, T* u, T* s, T* vh) {
  const auto [m, n] = std::pair(plan.a.rows, plan.a.columns);
  const bool values_only = u == nullptr && vh == nullptr;
  std::vector<T> left(values_only || u != nullptr ? 0 : m * plan.left());
  std::vector<T> right(values_only || vh != nullptr ? 0 : plan.right() * n);
  if (!values_only && (!plan.full || m == n) && large_enough(m, n))
    return large_svd(a, m, n, u ? u : left.data(), s, vh ? vh : right.data());
  std::vector<T> work(a, a + plan.a.size());
  // aᵀ = v diag(s) uᵀ: LAPACK's left vectors are v, whose columns are our rows of vh.
  const char job = values_only ? 'N' : plan.full ? 'A' : 'S';
  lapack::check_converged(
      "svd", lapack::gesdd(job, static_cast<int>(n), static_cast<int>(m), work.data(), s, vh ? vh : right.data(),
                           static_cast<int>(n), u ? u : left.data(), static_cast<int>(plan.left())));
}

/// Of a tall matrix [m, n] by way of its QR: a = q r, r = w diag(s) vh, u = q w. Where nobody asks for u there is no q.
template <class T>
void tall_svd(TilePool& pool, const T* a, size_t m, size_t n, T* u, T* s, T* vh) {
  std::vector<T> q(u == nullptr ? 0 : m * n), r(n * n), w(u == nullptr ? 0 : n * n);
  tall_qr(pool, a, m, n, u == nullptr ? nullptr : q.data(), r.data());
  const SvdPlan small{{1, n, n, {}, {}}};
  lapack_svd<T>(small, r.data(), u == nullptr ? nullptr : w.data(), s, vh);
  if (u != nullptr) tall_product(pool, q.data(), w.data(), m, n, n, u);
}

/// Of a matrix that is tall, or whose transpose is.
template <class T>
void long_svd(TilePool& pool, const Matrices& matrix, const T* a, T* u, T* s, T* vh) {
  const auto [m, n] = std::pair(matrix.rows, matrix.columns);
  if (m >= n) return tall_svd(pool, a, m, n, u, s, vh);
  std::vector<T> turned(m * n), left(vh == nullptr ? 0 : n * m), right(u == nullptr ? 0 : m * m);
  transpose_matrix(a, m, n, turned.data());
  tall_svd<T>(pool, turned.data(), n, m, vh == nullptr ? nullptr : left.data(), s,
              u == nullptr ? nullptr : right.data());
  if (vh != nullptr) transpose_matrix(left.data(), n, m, vh);
  if (u != nullptr) transpose_matrix(right.data(), m, m, u);
}

template <class T>
T* part(T* values, size_t index, size_t size) {
  return values == nullptr ? nullptr : values + index * size;
}

template <class T>
void run_svd(const SvdPlan& plan, const RunArguments& arguments) {
  const auto* a = arguments.input<T>(0);
  auto* u = arguments.output<T>(0);
  auto* s = arguments.output<T>(1);
  auto* vh = arguments.output<T>(2);
  if (plan.a.rank() == 0) {
    for (size_t i = 0; i < plan.a.count && plan.full; ++i) {
      if (u != nullptr) set_identity(u + i * plan.a.rows * plan.a.rows, plan.a.rows);
      if (vh != nullptr) set_identity(vh + i * plan.a.columns * plan.a.columns, plan.a.columns);
    }
    return;
  }
  if (lanes_take(plan.a)) {
    lanes_svd<T>({plan.a, plan.full, a, u, s, vh}, arguments);
    return;
  }
  const auto each = [&](const auto& factor) {
    return [&, factor](size_t i) {
      check_finite("svd", a + i * plan.a.size(), plan.a.size());
      factor(a + i * plan.a.size(), part(u, i, plan.a.rows * plan.left()), s + i * plan.a.rank(),
             part(vh, i, plan.right() * plan.a.columns));
    };
  };
  if (!plan.full && tall_enough(std::max(plan.a.rows, plan.a.columns), plan.a.rank()))
    return for_tall_matrices(plan.a, each([&](const T* one, T* left, T* values, T* right) {
                               long_svd(arguments.pool, plan.a, one, left, values, right);
                             }));
  for_matrices(arguments.pool, plan.a, matrices_per_tile(plan.a),
               each([&](const T* one, T* left, T* values, T* right) { lapack_svd(plan, one, left, values, right); }));
}

CompiledKernel compile_svd(const KernelRequest& request) {
  request.expect_counts(1, 3);
  const SvdPlan plan{read_matrices(request, request.inputs[0], "a"), request.attributes.integer("full") != 0};
  const Matrices& a = plan.a;
  check_optional(request, request.outputs[0], "u", a.dtype, a.with({a.rows, plan.left()}));
  check_operand(request, request.outputs[1], "s", a.dtype, a.with({a.rank()}));
  check_optional(request, request.outputs[2], "vh", a.dtype, a.with({plan.right(), a.columns}));
  CompiledKernel kernel;
  if (lanes_take(a)) kernel.scratch_per_thread = lanes_svd_scratch(a, plan.full);
  kernel.run = [plan](const RunArguments& arguments) {
    with_float(plan.a.dtype, [&](auto zero) { run_svd<decltype(zero)>(plan, arguments); });
  };
  return kernel;
}

struct QrPlan {
  Matrices a;
  bool full = false;
  /// Columns of q, rows of r.
  size_t inner() const { return full ? a.rows : a.rank(); }
};

template <class T>
void lapack_qr(const QrPlan& plan, const T* a, T* q, T* r) {
  const auto [m, n] = std::pair(plan.a.rows, plan.a.columns);
  const size_t inner = plan.inner();
  std::vector<T> work(m * std::max(n, inner));
  transpose_matrix(a, m, n, work.data());
  std::vector<T> tau(plan.a.rank());
  lapack::check_call("qr", lapack::geqrf(static_cast<int>(m), static_cast<int>(n), work.data(), tau.data()));
  for (size_t i = 0; i < inner && r != nullptr; ++i)
    for (size_t j = 0; j < n; ++j) r[i * n + j] = j < i ? T{0} : work[j * m + i];
  if (q == nullptr) return;
  lapack::check_call("qr", lapack::orgqr(static_cast<int>(m), static_cast<int>(inner), static_cast<int>(plan.a.rank()),
                                         work.data(), tau.data()));
  transpose_matrix(work.data(), inner, m, q);
}

template <class T>
void run_qr(const QrPlan& plan, const RunArguments& arguments) {
  const Matrices& a = plan.a;
  if (lanes_take(a))
    return lanes_qr<T>({a, plan.full, arguments.input<T>(0), arguments.output<T>(0), arguments.output<T>(1)},
                       arguments);
  const auto each = [&](const auto& factor) {
    return [&, factor](size_t i) {
      T* const q = part(arguments.output<T>(0), i, a.rows * plan.inner());
      if (a.rank() == 0 && q != nullptr) return set_identity(q, plan.inner());
      if (a.rank() == 0) return;
      const T* const values = arguments.input<T>(0) + i * a.size();
      check_finite("qr", values, a.size());
      factor(values, q, part(arguments.output<T>(1), i, plan.inner() * a.columns));
    };
  };
  if (!plan.full && tall_enough(a.rows, a.columns))
    return for_tall_matrices(a, each([&](const T* values, T* q, T* r) {
                               std::vector<T> unasked(r == nullptr ? a.columns * a.columns : 0);
                               tall_qr(arguments.pool, values, a.rows, a.columns, q, r == nullptr ? unasked.data() : r);
                             }));
  for_matrices(arguments.pool, a, matrices_per_tile(a),
               each([&](const T* values, T* q, T* r) { lapack_qr(plan, values, q, r); }));
}

CompiledKernel compile_qr(const KernelRequest& request) {
  request.expect_counts(1, 2);
  const QrPlan plan{read_matrices(request, request.inputs[0], "a"), request.attributes.integer("full") != 0};
  check_optional(request, request.outputs[0], "q", plan.a.dtype, plan.a.with({plan.a.rows, plan.inner()}));
  check_optional(request, request.outputs[1], "r", plan.a.dtype, plan.a.with({plan.inner(), plan.a.columns}));
  CompiledKernel kernel;
  if (lanes_take(plan.a)) kernel.scratch_per_thread = lanes_qr_scratch(plan.a, plan.full);
  kernel.run = [plan](const RunArguments& arguments) {
    with_float(plan.a.dtype, [&](auto zero) { run_qr<decltype(zero)>(plan, arguments); });
  };
  return kernel;
}

/// a[:, places] = q r with the diagonal of r descending in magnitude.
template <class T>
void lapack_qr_pivoted(const Matrices& a, const T* values, T* q, T* r, int32_t* places) {
  const auto m = static_cast<int>(a.rows);
  const auto n = static_cast<int>(a.columns);
  const size_t k = a.rank();
  check_finite("qr_pivoted", values, a.size());
  std::vector<T> work(a.size());
  transpose_matrix(values, a.rows, a.columns, work.data());
  std::vector<lapack_int> order(a.columns, 0);
  std::vector<T> tau(k);
  lapack::check_call("qr_pivoted", lapack::geqp3(m, n, work.data(), order.data(), tau.data()));
  for (size_t j = 0; j < a.columns; ++j) places[j] = order[j] - 1;
  for (size_t i = 0; i < k; ++i)
    for (size_t j = 0; j < a.columns; ++j) r[i * a.columns + j] = j < i ? T{0} : work[j * a.rows + i];
  lapack::check_call("qr_pivoted", lapack::orgqr(m, static_cast<int>(k), static_cast<int>(k), work.data(), tau.data()));
  transpose_matrix(work.data(), k, a.rows, q);
}

CompiledKernel compile_qr_pivoted(const KernelRequest& request) {
  request.expect_counts(1, 3);
  const Matrices a = read_matrices(request, request.inputs[0], "a");
  check_operand(request, request.outputs[0], "q", a.dtype, a.with({a.rows, a.rank()}));
  check_operand(request, request.outputs[1], "r", a.dtype, a.with({a.rank(), a.columns}));
  check_operand(request, request.outputs[2], "pivots", DType::kI32, a.with({a.columns}));
  CompiledKernel kernel;
  kernel.run = [a](const RunArguments& arguments) {
    auto* pivots = arguments.output<int32_t>(2);
    if (a.rank() == 0) {
      for (size_t i = 0; i < a.count; ++i) std::iota(pivots + i * a.columns, pivots + (i + 1) * a.columns, 0);
      return;
    }
    with_float(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      for_matrices(arguments.pool, a, matrices_per_tile(a), [&](size_t i) {
        lapack_qr_pivoted(a, arguments.input<T>(0) + i * a.size(), arguments.output<T>(0) + i * a.rows * a.rank(),
                          arguments.output<T>(1) + i * a.rank() * a.columns, pivots + i * a.columns);
      });
    });
  };
  return kernel;
}

/// Reads the lower triangle.
template <class T>
void lapack_eigh(const Matrices& a, const T* values, T* w, T* v) {
  check_finite("eigh", values, a.size());
  std::vector<T> work(values, values + a.size());
  lapack::check_converged("eigh", lapack::syevd(static_cast<int>(a.rows), work.data(), w));
  transpose_matrix(work.data(), a.rows, a.rows, v);
}

CompiledKernel compile_eigh(const KernelRequest& request) {
  request.expect_counts(1, 2);
  const Matrices a = read_square(request, request.inputs[0], "a");
  check_operand(request, request.outputs[0], "w", a.dtype, a.with({a.rows}));
  check_operand(request, request.outputs[1], "v", a.dtype, a.with({a.rows, a.rows}));
  CompiledKernel kernel;
  if (lanes_take(a)) kernel.scratch_per_thread = lanes_eigh_scratch(a);
  kernel.run = [a](const RunArguments& arguments) {
    if (a.rank() == 0) return;
    with_float(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (lanes_take(a))
        return lanes_eigh<T>({a, arguments.input<T>(0), arguments.output<T>(0), arguments.output<T>(1)}, arguments);
      for_matrices(arguments.pool, a, matrices_per_tile(a), [&](size_t i) {
        lapack_eigh(a, arguments.input<T>(0) + i * a.size(), arguments.output<T>(0) + i * a.rows,
                    arguments.output<T>(1) + i * a.size());
      });
    });
  };
  return kernel;
}

}  // namespace

void register_orthogonal(KernelTable& table) {
  table["svd"] = compile_svd;
  table["qr"] = compile_qr;
  table["qr_pivoted"] = compile_qr_pivoted;
  table["eigh"] = compile_eigh;
}

}  // namespace heddle
