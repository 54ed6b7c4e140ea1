// Kernels of chains. `op`: inputs x [..., in] and the stages' weights, output y [..., out]. `op_vjp`: inputs x, the
// weights and dy, outputs dx and the weights' gradients, each of which may be left out.
#pragma once

#include <functional>

#include "structured/chain.h"
#include "structured/feature_chain.h"

namespace heddle {

/// Makes the chain of one instruction from its weights' operands, which are present, f32 and have no empty dimension.
using ReadChain = Chain (*)(const KernelRequest& request, std::span<const Operand> weights);

CompiledKernel compile_chain(const KernelRequest& request, ReadChain read);
CompiledKernel compile_chain_vjp(const KernelRequest& request, ReadChain read);

}  // namespace heddle
