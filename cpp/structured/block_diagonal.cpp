// y[b, k s + i] = sum_j w[k, i, j] x[b, k p + j] for w [blocks, s, p].
#include "kernels/kernel_table.h"
#include "structured/chain_kernel.h"

namespace heddle {
namespace {

Chain read_block_diagonal(const KernelRequest& request, std::span<const Operand> weights) {
  request.check(weights.size() == 1 && weights[0].shape.rank() == 3, "one weight [blocks, out, in]",
                weights[0].shape.str());
  const int64_t blocks = weights[0].shape[0], m = weights[0].shape[1], k = weights[0].shape[2];
  Stage stage;
  stage.pre = blocks;
  stage.m = m;
  stage.k = k;
  stage.in = {.pre = k, .item = 1};
  stage.out = {.pre = m, .item = 1};
  stage.in_features = blocks * k;
  stage.out_features = blocks * m;
  stage.w_pre = m * k;
  stage.w_m = k;
  stage.w_k = 1;
  return {{stage}, {0}};
}

}  // namespace

void register_block_diagonal(KernelTable& table) {
  table["block_diagonal"] = [](const KernelRequest& request) { return compile_chain(request, read_block_diagonal); };
  table["block_diagonal_vjp"] = [](const KernelRequest& request) {
    return compile_chain_vjp(request, read_block_diagonal);
  };
}

}  // namespace heddle
