// Monarch matrices (Dao et al. 2022, arXiv 2204.00595), with the layout of the reference code: for w1 [K, q, p] and
// w2 [L, s, r] with K q = L r, h[k q + j] = sum_i w1[k, j, i] x[k p + i] and y[i L + l] = sum_j w2[l, i, j] h[j L + l].
#include "kernels/kernel_table.h"
#include "structured/chain_kernel.h"

namespace heddle {
namespace {

Chain read_monarch(const KernelRequest& request, std::span<const Operand> weights) {
  request.check(weights.size() == 2 && weights[0].shape.rank() == 3 && weights[1].shape.rank() == 3,
                "weights [K, q, p] and [L, s, r]", std::to_string(weights.size()) + " weights");
  const Shape& w1 = weights[0].shape;
  const Shape& w2 = weights[1].shape;
  Stage first;
  first.pre = w1[0];
  first.m = w1[1];
  first.k = w1[2];
  first.in = {.pre = first.k, .item = 1};
  first.out = {.pre = first.m, .item = 1};
  first.in_features = first.pre * first.k;
  first.out_features = first.pre * first.m;
  first.w_pre = first.m * first.k;
  first.w_m = first.k;
  first.w_k = 1;
  Stage second;
  second.pre = w2[0];
  second.m = w2[1];
  second.k = w2[2];
  second.in = {.pre = 1, .item = second.pre};
  second.out = {.pre = 1, .item = second.pre};
  second.in_features = second.pre * second.k;
  second.out_features = second.pre * second.m;
  second.w_pre = second.m * second.k;
  second.w_m = second.k;
  second.w_k = 1;
  return {{first, second}, {0, 1}};
}

}  // namespace

void register_monarch(KernelTable& table) {
  table["monarch"] = [](const KernelRequest& request) { return compile_chain(request, read_monarch); };
  table["monarch_vjp"] = [](const KernelRequest& request) { return compile_chain_vjp(request, read_monarch); };
}

}  // namespace heddle
