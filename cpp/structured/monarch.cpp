// Monarch matrices (Dao et al. 2022, arXiv 2204.00595), with the layout of the reference code: for w1 [K, q, p] and
// w2 [L, s, r] with K q = L r, h[k q + j] = sum_i w1[k, j, i] x[k p + i] and y[i L + l] = sum_j w2[l, i, j] h[j L + l].
#include "kernels/kernel_table.h"
#include "structured/chain_kernel.h"

namespace heddle {

void register_monarch(KernelTable& table) {
  table["monarch"] = [](const KernelRequest& request) { return compile_chain(request, read_monarch); };
  table["monarch_vjp"] = [](const KernelRequest& request) { return compile_chain_vjp(request, read_monarch); };
}

}  // namespace heddle
