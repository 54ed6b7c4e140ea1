// y = a @ b + c + alpha * z @ v with z = alpha_z * (a @ u), by three of the library's products: the last adds to y
// where it lies.
#include <algorithm>
#include <array>
#include <memory>

#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"
#include "cuda/kernels/kernel_table.h"
#include "cuda/library/products.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;

enum Input : size_t { kA, kB, kU, kV, kC };
enum Output : size_t { kY, kZ };

Grid grid_of(int64_t units) { return {blocks_for(ceil_div(units, kThreads)), kThreads}; }

__device__ inline void convert(float from, Bf16& to) { to = to_bf16(from); }
__device__ inline void convert(Bf16 from, float& to) { to = to_float(from); }

template <class From, class To>
__global__ void convert_elements(const From* from, To* to, int64_t count) {
  for (int64_t at = first_unit(); at < count; at += unit_step()) convert(from[at], to[at]);
}

/// A matrix in the type that the products take, in scratch memory where that is not its own.
struct Matrix {
  bool converts = false;
  int64_t count = 0;
  size_t offset = 0;
};

struct Plan {
  DType element = DType::kF32;
  /// a, b, u, v and z.
  std::array<Matrix, 5> matrices;
  std::shared_ptr<const Product> base, down, up;
  size_t workspace = 0, scratch = 0;
  bool has_c = false;

  size_t take(size_t bytes) {
    const size_t at = scratch;
    scratch += (bytes + 255) / 256 * 256;
    return at;
  }
  Matrix matrix(const Operand& operand) {
    Matrix made{operand.dtype != element, static_cast<int64_t>(operand.shape.count()), 0};
    if (made.converts) made.offset = take(static_cast<size_t>(made.count) * dtype_size(element));
    return made;
  }
};

constexpr size_t kOfZ = 4;

Plan make_plan(const KernelRequest& request) {
  const bool turned_b = request.attributes.integer("transpose_b", 0) != 0;
  const bool turned_u = request.attributes.integer("transpose_u", 0) != 0;
  const bool turned_v = request.attributes.integer("transpose_v", 0) != 0;
  const int64_t m = request.inputs[kA].shape[0], k = request.inputs[kA].shape[1];
  const int64_t n = request.outputs[kY].shape[1], r = request.outputs[kZ].shape[1];
  Plan plan;
  if (request.attributes.has("precision") && request.attributes.text("precision") != "f32") plan.element = DType::kBF16;
  for (const size_t input : {kA, kB, kU, kV}) plan.matrices[input] = plan.matrix(request.inputs[input]);
  plan.matrices[kOfZ] = plan.matrix(request.outputs[kZ]);
  plan.has_c = request.inputs.size() == 5 && request.inputs[kC].present;
  plan.base = Product::get(
      {.m = m, .n = n, .k = k, .transpose_b = turned_b, .element = plan.element, .beta = plan.has_c ? 1.0 : 0.0});
  plan.down = Product::get({.m = m,
                            .n = r,
                            .k = k,
                            .transpose_b = turned_u,
                            .element = plan.element,
                            .alpha = request.attributes.number("alpha_z", 1.0)});
  plan.up = Product::get({.m = m,
                          .n = n,
                          .k = r,
                          .transpose_b = turned_v,
                          .element = plan.element,
                          .alpha = request.attributes.number("alpha", 1.0),
                          .beta = 1.0});
  plan.workspace =
      plan.take(std::max({plan.base->scratch_bytes(), plan.down->scratch_bytes(), plan.up->scratch_bytes()}));
  return plan;
}

/// The matrix itself, or its converted copy.
const void* prepared(const Run& run, const Plan& plan, size_t which, const void* from) {
  const Matrix& matrix = plan.matrices[which];
  if (!matrix.converts) return from;
  const int64_t count = matrix.count;
  void* const copy = run.scratch_at<void>(matrix.offset);
  if (plan.element == DType::kBF16)
    launch(run, convert_elements<float, Bf16>, grid_of(count), static_cast<const float*>(from),
           static_cast<Bf16*>(copy), count);
  else
    launch(run, convert_elements<Bf16, float>, grid_of(count), static_cast<const Bf16*>(from),
           static_cast<float*>(copy), count);
  return copy;
}

Kernel compile_low_rank_matmul(const KernelRequest& request) {
  const Plan plan = make_plan(request);
  Kernel kernel;
  if (plan.has_c) kernel.in_place = {{kC, kY}};
  kernel.scratch_bytes = plan.scratch;
  kernel.run = [plan](const Run& run) {
    void *const y = run.out[kY], *const z = run.out[kZ], *const workspace = run.scratch_at<void>(plan.workspace);
    const void* const a = prepared(run, plan, kA, run.in[kA]);
    plan.base->run(run.stream, a, prepared(run, plan, kB, run.in[kB]), plan.has_c ? run.in[kC] : y, y, workspace);
    plan.down->run(run.stream, a, prepared(run, plan, kU, run.in[kU]), z, z, workspace);
    plan.up->run(run.stream, prepared(run, plan, kOfZ, z), prepared(run, plan, kV, run.in[kV]), y, y, workspace);
  };
  return kernel;
}

}  // namespace

void register_low_rank_matmul(KernelTable& table) { table["low_rank_matmul"] = compile_low_rank_matmul; }

}  // namespace heddle::cuda
