// y = alpha a @ b + c by the library's products. Operands of another type than it multiplies are converted into scratch
// memory first: to bf16 with precision "bf16" or "stored", and a lone bf16 operand to f32 otherwise, as the CPU does.
// Two bf16 operands are multiplied as they are, for their products are exact in f32. A frozen b keeps the form in which
// it is multiplied (cuda/quant/weight.cuh).
#include <algorithm>
#include <memory>
#include <string>

#include "cuda/core/elements.cuh"
#include "cuda/kernels/kernel_table.h"
#include "cuda/library/products.h"
#include "cuda/quant/weight.cuh"

namespace heddle::cuda {
namespace {

/// y [rows, width] = the bias in every row, or zeros.
template <class T>
__global__ void fill_rows(const T* bias, T* y, int64_t rows, int64_t width) {
  for (int64_t at = first_unit(); at < rows * width; at += unit_step())
    y[at] = bias == nullptr ? T{0} : bias[at % width];
}

enum class Addend : uint8_t { kNone, kFull, kBias };

struct Plan {
  ProductShape shape;
  Addend addend = Addend::kNone;
  ProductOperand a;
  WeightProduct product;
  /// Rows of y over all items.
  int64_t rows = 0;
  ScratchLayout scratch;
};

/// In which the operands are multiplied. Precision "stored" multiplies few rows with blocks as exactly as f32 does.
DType element_of(const KernelRequest& request, const ProductShape& shape) {
  const Operand &a = request.inputs[0], &b = request.inputs[1];
  if (request.outputs[0].dtype == DType::kF64) return DType::kF64;
  const std::string precision = request.attributes.has("precision") ? request.attributes.text("precision") : "f32";
  if (precision == "stored" && shape.batch == 1 && WeightProduct::is_few(shape)) {
    const auto blocks = BlockMatrix::of(b);
    if (blocks && !is_dense(blocks->encoding)) return DType::kF32;
  }
  const bool both_half = a.dtype == DType::kBF16 && b.dtype == DType::kBF16;
  return precision != "f32" || both_half ? DType::kBF16 : DType::kF32;
}

Plan read_plan(const KernelRequest& request) {
  const Operand &a = request.inputs[0], &b = request.inputs[1], &y = request.outputs[0];
  Plan plan;
  ProductShape& shape = plan.shape;
  shape.transpose_a = request.attributes.integer("transpose_a", 0) != 0;
  shape.transpose_b = request.attributes.integer("transpose_b", 0) != 0;
  shape.alpha = request.attributes.number("alpha", 1.0);
  shape.m = y.shape.back(1);
  shape.n = y.shape.back(0);
  shape.k = a.shape.back(shape.transpose_a ? 1 : 0);
  shape.batch = static_cast<int64_t>(a.shape.count(0, a.shape.rank() - 2));
  const bool shared_b = b.shape.rank() == 2;
  if (shared_b && !shape.transpose_a) {
    shape.m *= shape.batch;
    shape.batch = 1;
  }
  plan.rows = shape.batch * shape.m;
  shape.stride_a = shape.m * shape.k;
  shape.stride_b = shared_b ? 0 : shape.k * shape.n;
  if (request.inputs.size() == 3 && request.inputs[2].present)
    plan.addend = request.inputs[2].shape == y.shape ? Addend::kFull : Addend::kBias;
  shape.element = element_of(request, shape);
  shape.bias = plan.addend == Addend::kBias && shape.element != DType::kF64;
  shape.beta = plan.addend == Addend::kNone || shape.bias ? 0.0 : 1.0;
  return plan;
}

/// Fills y where the product does not read its addend, or where there is nothing to multiply.
template <class T>
void place_addend(const Run& run, const Plan& plan) {
  T* const y = run.output<T>(0);
  const T* const c = plan.addend == Addend::kNone ? nullptr : run.input<T>(2);
  if (plan.addend != Addend::kFull)
    launch(run, fill_rows<T>, grid_of(plan.rows * plan.shape.n), c, y, plan.rows, plan.shape.n);
  else if (c != y)
    check(
        cudaMemcpyAsync(y, c, static_cast<size_t>(plan.rows * plan.shape.n) * sizeof(T), cudaMemcpyDefault, run.stream),
        run.report.operation);
}

void place_addend(const Run& run, const Plan& plan) {
  plan.shape.element == DType::kF64 ? place_addend<double>(run, plan) : place_addend<float>(run, plan);
}

Kernel compile_matmul(const KernelRequest& request) {
  Plan plan = read_plan(request);
  Kernel kernel;
  if (plan.addend == Addend::kFull) kernel.in_place = {{2, 0}};
  if (plan.rows == 0 || plan.shape.n == 0) return nothing();
  if (plan.shape.k == 0) {
    kernel.run = [plan](const Run& run) { place_addend(run, plan); };
    return kernel;
  }
  plan.a = {request.inputs[0], plan.shape.element, plan.scratch};
  plan.product = {plan.shape, request.inputs[1], plan.scratch};
  plan.product.claim(1, kernel);
  const size_t workspace = plan.scratch.take(static_cast<int64_t>(plan.product.scratch_bytes()), 1);
  kernel.scratch_bytes = plan.scratch.bytes;
  kernel.run = [plan, workspace](const Run& run) {
    const void* const a = plan.a.start(run, run.in[0]);
    const bool read = plan.addend == Addend::kFull || plan.shape.bias;
    if (plan.addend == Addend::kBias && !read) place_addend(run, plan);
    const void* const c = read ? run.in[2] : run.out[0];
    plan.product.run(run, a, run.in[1], c, run.out[0], run.scratch_at<void>(workspace));
  };
  return kernel;
}

}  // namespace

void register_matmul(KernelTable& table) { table["matmul"] = compile_matmul; }

}  // namespace heddle::cuda
