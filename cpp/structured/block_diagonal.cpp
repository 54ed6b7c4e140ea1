// y[b, k s + i] = sum_j w[k, i, j] x[b, k p + j] for w [blocks, s, p].
#include "kernels/kernel_table.h"
#include "structured/chain_kernel.h"

namespace heddle {

void register_block_diagonal(KernelTable& table) {
  table["block_diagonal"] = [](const KernelRequest& request) { return compile_chain(request, read_block_diagonal); };
  table["block_diagonal_vjp"] = [](const KernelRequest& request) {
    return compile_chain_vjp(request, read_block_diagonal);
  };
}

}  // namespace heddle
