// Matrix products of f64 operands, for checks of gradients: exact enough and simple before fast.
#pragma once

#include "kernels/matrix_plan.h"

namespace heddle {

/// y = alpha * a @ b + c with every operand f64; inputs 0 to 2 and output 0 as `matmul` has them.
CompiledKernel compile_matmul_f64(const Problem& problem);

}  // namespace heddle
