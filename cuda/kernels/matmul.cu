// y = alpha a @ b + c by the library's products. Operands of another type than it multiplies are converted into scratch
// memory first: to bf16 with precision "bf16" or "stored", and a lone bf16 operand to f32 otherwise, as the CPU does.
// Two bf16 operands are multiplied as they are, for their products are exact in f32.
#include <algorithm>
#include <memory>
#include <string>

#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"
#include "cuda/kernels/kernel_table.h"
#include "cuda/library/products.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;

Grid grid_of(int64_t units) { return {blocks_for(ceil_div(units, kThreads)), kThreads}; }

__device__ inline void convert(float from, Bf16& to) { to = to_bf16(from); }
__device__ inline void convert(Bf16 from, float& to) { to = to_float(from); }

template <class From, class To>
__global__ void convert_elements(const From* from, To* to, int64_t count) {
  for (int64_t at = first_unit(); at < count; at += unit_step()) convert(from[at], to[at]);
}

/// y [rows, width] = the bias in every row, or zeros.
template <class T>
__global__ void fill_rows(const T* bias, T* y, int64_t rows, int64_t width) {
  for (int64_t at = first_unit(); at < rows * width; at += unit_step())
    y[at] = bias == nullptr ? T{0} : bias[at % width];
}

enum class Addend : uint8_t { kNone, kFull, kBias };

/// An operand as the product takes it.
struct Source {
  bool converts = false;
  int64_t count = 0;
  size_t offset = 0;
};

struct Plan {
  ProductShape shape;
  Addend addend = Addend::kNone;
  Source a, b;
  /// Rows of y over all items.
  int64_t rows = 0;
  size_t scratch = 0;

  size_t take(size_t bytes) {
    const size_t at = scratch;
    scratch += (bytes + 255) / 256 * 256;
    return at;
  }
};

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
  shape.beta = plan.addend == Addend::kNone ? 0.0 : 1.0;

  const bool half = request.attributes.has("precision") && request.attributes.text("precision") != "f32";
  const bool both_half = a.dtype == DType::kBF16 && b.dtype == DType::kBF16;
  shape.element = y.dtype == DType::kF64 ? DType::kF64 : half || both_half ? DType::kBF16 : DType::kF32;
  plan.a = {a.dtype != shape.element, static_cast<int64_t>(a.shape.count()), 0};
  plan.b = {b.dtype != shape.element, static_cast<int64_t>(b.shape.count()), 0};
  return plan;
}

/// The operand itself, or its converted copy.
const void* prepared(const Run& run, size_t input, const Source& source, DType element) {
  if (!source.converts) return run.in[input];
  if (element == DType::kBF16) {
    auto* const copy = run.scratch_at<Bf16>(source.offset);
    launch(run, convert_elements<float, Bf16>, grid_of(source.count), run.input<float>(input), copy, source.count);
    return copy;
  }
  auto* const copy = run.scratch_at<float>(source.offset);
  launch(run, convert_elements<Bf16, float>, grid_of(source.count), run.input<Bf16>(input), copy, source.count);
  return copy;
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
  const size_t size = dtype_size(plan.shape.element);
  for (Source* const source : {&plan.a, &plan.b})
    if (source->converts) source->offset = plan.take(static_cast<size_t>(source->count) * size);
  const auto product = Product::get(plan.shape);
  const size_t workspace = plan.take(product->scratch_bytes());
  kernel.scratch_bytes = plan.scratch;
  kernel.run = [plan, product, workspace](const Run& run) {
    const void* const a = prepared(run, 0, plan.a, plan.shape.element);
    const void* const b = prepared(run, 1, plan.b, plan.shape.element);
    if (plan.addend == Addend::kBias) place_addend(run, plan);
    const void* const c = plan.addend == Addend::kFull ? run.in[2] : run.out[0];
    product->run(run.stream, a, b, c, run.out[0], run.scratch_at<void>(workspace));
  };
  return kernel;
}

}  // namespace

void register_matmul(KernelTable& table) { table["matmul"] = compile_matmul; }

}  // namespace heddle::cuda
