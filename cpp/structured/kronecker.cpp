// y = x (sum over terms of F_1 (x) F_2 (x) ... (x) F_d)^T for factors F_t [terms, m_t, n_t], one axis of the features
// after the other, in the order that the instruction gives. All terms stand side by side between the stages; the last
// one sums them.
#include "kernels/kernel_table.h"
#include "structured/chain_kernel.h"

namespace heddle {

void register_kronecker(KernelTable& table) {
  table["kronecker"] = [](const KernelRequest& request) { return compile_chain(request, read_kronecker); };
  table["kronecker_vjp"] = [](const KernelRequest& request) { return compile_chain_vjp(request, read_kronecker); };
}

}  // namespace heddle
