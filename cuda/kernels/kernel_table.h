// One register function per operator family; kernel_table.cpp calls them all.
#pragma once

#include "cuda/core/kernel.h"

namespace heddle::cuda {

void register_attention(KernelTable& table);
void register_attention_backward(KernelTable& table);
void register_elementwise(KernelTable& table);
void register_gather(KernelTable& table);
void register_grouped_low_rank(KernelTable& table);
void register_index(KernelTable& table);
void register_layer_norm(KernelTable& table);
void register_loss(KernelTable& table);
void register_low_rank_matmul(KernelTable& table);
void register_matmul(KernelTable& table);
void register_norm(KernelTable& table);
void register_paged_attention(KernelTable& table);
void register_reduce(KernelTable& table);
void register_rope(KernelTable& table);
void register_softmax(KernelTable& table);

}  // namespace heddle::cuda
