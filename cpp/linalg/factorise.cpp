#include "linalg/factorise.h"

#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/status.h"

namespace heddle {

namespace {

struct Size {
  size_t rows;
  size_t columns;
  size_t rank() const noexcept { return std::min(rows, columns); }
};

Size matrix_size(const char* op, const Tensor& a) {
  if (a.dtype != DType::kF32) throw Error(ErrorCode::kDtype, op, "an f32 matrix", dtype_name(a.dtype));
  const auto dims = a.shape.dims();
  if (dims.size() != 2) throw Error(ErrorCode::kShape, op, "a matrix [m, n]", a.shape.str());
  const Size size{static_cast<size_t>(dims[0]), static_cast<size_t>(dims[1])};
  constexpr size_t kMost = std::numeric_limits<lapack_int>::max();
  if (size.rank() == 0 || size.rows > kMost || size.columns > kMost)
    throw Error(ErrorCode::kShape, op, "a matrix that LAPACK can take, not an empty one", a.shape.str());
  return size;
}

Tensor make(size_t rows, size_t columns) {
  const Shape shape({static_cast<int64_t>(rows), static_cast<int64_t>(columns)});
  return {DType::kF32, shape, Storage::owned(shape.bytes(DType::kF32))};
}

float* data(const Tensor& tensor) { return reinterpret_cast<float*>(tensor.storage->mutable_data()); }

/// A copy that LAPACK may overwrite. It does not look for NaN by itself, and may not come back from one.
Tensor working_copy(const char* op, const Tensor& a, const Size& size) {
  Tensor copy = make(size.rows, size.columns);
  {
    const Storage::Pin pin(a.storage);
    std::memcpy(data(copy), pin.data(), a.storage->size());
  }
  const float* const values = data(copy);
  if (!std::all_of(values, values + size.rows * size.columns, [](float value) { return std::isfinite(value); }))
    throw Error(ErrorCode::kArgument, op, "finite numbers", "NaN or infinity");
  return copy;
}

void check(const char* op, lapack_int info) {
  if (info == LAPACK_WORK_MEMORY_ERROR) throw Error(ErrorCode::kOutOfMemory, op, "memory for LAPACK's work", "none");
  if (info > 0) throw Error(ErrorCode::kInternal, op, "an iteration that converges", "one that does not");
  if (info < 0) throw Error(ErrorCode::kInternal, op, "valid arguments", "argument " + std::to_string(-info));
}

}  // namespace

Svd svd(const Tensor& a, bool full) {
  const Size size = matrix_size("svd", a);
  const size_t rank = size.rank();
  const Tensor work = working_copy("svd", a, size);
  const size_t left = full ? size.rows : rank;
  const size_t right = full ? size.columns : rank;
  const Shape values({static_cast<int64_t>(rank)});
  Svd result{make(size.rows, left),
             {DType::kF32, values, Storage::owned(values.bytes(DType::kF32))},
             make(right, size.columns)};
  // aᵀ = v diag(s) uᵀ: LAPACK's left vectors are v, whose columns are our rows of vh.
  const auto m = static_cast<lapack_int>(size.columns);
  const auto n = static_cast<lapack_int>(size.rows);
  check("svd", LAPACKE_sgesdd(LAPACK_COL_MAJOR, full ? 'A' : 'S', m, n, data(work), m, data(result.s), data(result.vh),
                              m, data(result.u), static_cast<lapack_int>(left)));
  return result;
}

Qr qr(const Tensor& a) {
  const Size size = matrix_size("qr", a);
  const size_t rank = size.rank();
  const Tensor work = working_copy("qr", a, size);
  // a = q r is aᵀ = rᵀ qᵀ, LAPACK's LQ.
  const auto m = static_cast<lapack_int>(size.columns);
  const auto n = static_cast<lapack_int>(size.rows);
  const auto k = static_cast<lapack_int>(rank);
  std::vector<float> reflectors(rank);
  check("qr", LAPACKE_sgelqf(LAPACK_COL_MAJOR, m, n, data(work), m, reflectors.data()));
  Qr result{make(size.rows, rank), make(rank, size.columns)};
  float* const r = data(result.r);
  for (size_t row = 0; row < rank; ++row)
    std::copy_n(data(work) + row * size.columns + row, size.columns - row, r + row * size.columns + row);
  // The first k rows of the factored matrix, in a buffer of their own shape: LAPACK's leading dimension is k.
  float* const q = data(result.q);
  for (size_t column = 0; column < size.rows; ++column)
    std::copy_n(data(work) + column * size.columns, rank, q + column * rank);
  check("qr", LAPACKE_sorglq(LAPACK_COL_MAJOR, k, n, k, q, k, reflectors.data()));
  return result;
}

}  // namespace heddle
