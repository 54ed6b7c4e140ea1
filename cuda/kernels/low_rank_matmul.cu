// y = a @ b + c + alpha * z @ v with z = alpha_z * (a @ u), by three of the library's products: the last adds to y
// where it lies.
#include <algorithm>
#include <array>
#include <memory>

#include "cuda/core/elements.cuh"
#include "cuda/kernels/kernel_table.h"
#include "cuda/library/products.h"

namespace heddle::cuda {
namespace {

enum Input : size_t { kA, kB, kU, kV, kC };
enum Output : size_t { kY, kZ };

struct Plan {
  DType element = DType::kF32;
  /// a, b, u, v and z.
  std::array<ProductOperand, 5> matrices;
  std::shared_ptr<const Product> base, down, up;
  ScratchLayout scratch;
  size_t workspace = 0;
  bool has_c = false;
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
  for (const size_t input : {kA, kB, kU, kV})
    plan.matrices[input] = {request.inputs[input], plan.element, plan.scratch};
  plan.matrices[kOfZ] = {request.outputs[kZ], plan.element, plan.scratch};
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
  const size_t bytes = std::max({plan.base->scratch_bytes(), plan.down->scratch_bytes(), plan.up->scratch_bytes()});
  plan.workspace = plan.scratch.take(static_cast<int64_t>(bytes), 1);
  return plan;
}

Kernel compile_low_rank_matmul(const KernelRequest& request) {
  const Plan plan = make_plan(request);
  Kernel kernel;
  if (plan.has_c) kernel.in_place = {{kC, kY}};
  kernel.scratch_bytes = plan.scratch.bytes;
  kernel.run = [plan](const Run& run) {
    void *const y = run.out[kY], *const z = run.out[kZ], *const workspace = run.scratch_at<void>(plan.workspace);
    const void* const a = plan.matrices[kA].start(run, run.in[kA]);
    plan.base->run(run.stream, a, plan.matrices[kB].start(run, run.in[kB]), plan.has_c ? run.in[kC] : y, y, workspace);
    plan.down->run(run.stream, a, plan.matrices[kU].start(run, run.in[kU]), z, z, workspace);
    plan.up->run(run.stream, plan.matrices[kOfZ].start(run, z), plan.matrices[kV].start(run, run.in[kV]), y, y,
                 workspace);
  };
  return kernel;
}

}  // namespace

void register_low_rank_matmul(KernelTable& table) { table["low_rank_matmul"] = compile_low_rank_matmul; }

}  // namespace heddle::cuda
