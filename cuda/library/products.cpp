#include "cuda/library/products.h"

#include <cublasLt.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "core/status.h"
#include "cuda/core/device.h"

namespace heddle::cuda {

namespace {

/// More lets the library split the inner dimension of flat products; NVIDIA's advice for Hopper.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED)
    throw Error(ErrorCode::kOutOfMemory, what, "memory for cuBLASLt", cublasLtGetStatusString(status));
  throw Error(ErrorCode::kDevice, what, "a product that cuBLASLt does", cublasLtGetStatusString(status));
}

cublasLtHandle_t handle() {
  static const cublasLtHandle_t kHandle = [] {
    cublasLtHandle_t made = nullptr;
    check_blas(cublasLtCreate(&made), "cuBLASLt");
    return made;
  }();
  return kHandle;
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kF64 ? CUDA_R_64F : dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/// Layout of a row-major matrix as the library's column-major one of the transposed matrix.
class Layout {
 public:
  Layout(DType dtype, int64_t rows, int64_t columns, int64_t batch, int64_t stride, int64_t row = 0) {
    check_blas(cublasLtMatrixLayoutCreate(&layout_, type_of(dtype), static_cast<uint64_t>(columns),
                                          static_cast<uint64_t>(rows), row == 0 ? columns : row),
               "matmul");
    const auto count = static_cast<int32_t>(batch);
    check_blas(cublasLtMatrixLayoutSetAttribute(layout_, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
               "matmul");
    check_blas(
        cublasLtMatrixLayoutSetAttribute(layout_, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
        "matmul");
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const noexcept { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

/// y' = op(b)' op(a)': what is row-major to us is column-major and transposed to the library, so a and b change places.
class LtProduct : public Product {
 public:
  explicit LtProduct(const ProductShape& shape)
      : shape_(shape),
        a_(shape.element, shape.transpose_a ? shape.k : shape.m, shape.transpose_a ? shape.m : shape.k, shape.batch,
           shape.stride_a, shape.row_a),
        b_(shape.element, shape.transpose_b ? shape.n : shape.k, shape.transpose_b ? shape.k : shape.n, shape.batch,
           shape.stride_b),
        y_(result_type(), shape.m, shape.n, shape.batch, shape.m * (shape.row_y == 0 ? shape.n : shape.row_y),
           shape.row_y) {
    const bool wide = shape.element == DType::kF64;
    const bool rounds = shape.element == DType::kF32 && shape.tf32;
    const cublasComputeType_t compute = wide     ? CUBLAS_COMPUTE_64F
                                        : rounds ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                 : CUBLAS_COMPUTE_32F;
    check_blas(cublasLtMatmulDescCreate(&operation_, compute, wide ? CUDA_R_64F : CUDA_R_32F), "matmul");
    try {
      set_transpose(CUBLASLT_MATMUL_DESC_TRANSA, shape.transpose_b);
      set_transpose(CUBLASLT_MATMUL_DESC_TRANSB, shape.transpose_a);
      if (shape.bias) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      choose_algorithm();
    } catch (...) {
      cublasLtMatmulDescDestroy(operation_);
      throw;
    }
  }
  ~LtProduct() override { cublasLtMatmulDescDestroy(operation_); }

  size_t scratch_bytes() const override { return algorithm_.workspaceSize; }

  void run(cudaStream_t stream, const void* a, const void* b, const void* c, void* y, void* scratch) const override {
    const float alpha = static_cast<float>(shape_.alpha), beta = static_cast<float>(shape_.beta);
    const bool wide = shape_.element == DType::kF64;
    const void* const alpha_at = wide ? static_cast<const void*>(&shape_.alpha) : &alpha;
    const void* const beta_at = wide ? static_cast<const void*>(&shape_.beta) : &beta;
    // Plans are shared, and the library reads the bias' address from there while it starts the product.
    std::unique_lock lock(bias_mutex_, std::defer_lock);
    if (shape_.bias) {
      lock.lock();
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, c);
    }
    const void* const addend = c == nullptr || shape_.bias ? y : c;
    check_blas(cublasLtMatmul(handle(), operation_, alpha_at, b, b_.get(), a, a_.get(), beta_at, addend, y_.get(), y,
                              y_.get(), &algorithm_.algo, scratch, algorithm_.workspaceSize, stream),
               "matmul");
  }

 private:
  DType result_type() const { return shape_.element == DType::kF64 ? DType::kF64 : DType::kF32; }

  void set_transpose(cublasLtMatmulDescAttributes_t attribute, bool transpose) {
    set(attribute, transpose ? CUBLAS_OP_T : CUBLAS_OP_N);
  }

  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, Value value) const {
    check_blas(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value), "matmul");
  }

  void choose_algorithm() {
    cublasLtMatmulPreference_t preference = nullptr;
    check_blas(cublasLtMatmulPreferenceCreate(&preference), "matmul");
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                         sizeof kWorkspaceBytes);
    // The executor's arena aligns its buffers so, and no more.
    constexpr uint32_t kAlignment = 64;
    for (const auto operand : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      cublasLtMatmulPreferenceSetAttribute(preference, operand, &kAlignment, sizeof kAlignment);
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle(), operation_, b_.get(), a_.get(), y_.get(),
                                                                 y_.get(), preference, 1, &algorithm_, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    check_blas(status, "matmul");
    if (found == 0) check_blas(CUBLAS_STATUS_NOT_SUPPORTED, "matmul");
  }

  ProductShape shape_;
  Layout a_, b_, y_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  mutable std::mutex bias_mutex_;
  cublasLtMatmulHeuristicResult_t algorithm_{};
};

auto key_of(const ProductShape& shape) {
  return std::make_tuple(shape.batch, shape.m, shape.n, shape.k, shape.transpose_a, shape.transpose_b, shape.stride_a,
                         shape.stride_b, shape.row_a, shape.row_y, shape.element, shape.alpha, shape.beta, shape.bias,
                         shape.tf32);
}

}  // namespace

/// A network has few shapes and many products: plans are shared as long as a kernel has them.
std::shared_ptr<const Product> Product::get(const ProductShape& shape) {
  static std::mutex mutex;
  static std::map<decltype(key_of(shape)), std::weak_ptr<const Product>> plans;
  const std::lock_guard lock(mutex);
  std::weak_ptr<const Product>& known = plans[key_of(shape)];
  if (auto plan = known.lock()) return plan;
  auto plan = std::make_shared<const LtProduct>(shape);
  known = plan;
  return plan;
}

}  // namespace heddle::cuda
