// One register function per operator family; kernel_table.cpp calls them all.
#pragma once

#include "cuda/core/kernel.h"

namespace heddle::cuda {

void register_elementwise(KernelTable& table);
void register_reduce(KernelTable& table);

}  // namespace heddle::cuda
