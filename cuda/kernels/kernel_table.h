// One register function per operator family; kernel_table.cpp calls them all.
#pragma once

#include "cuda/core/kernel.h"

namespace heddle::cuda {

void register_assignment(KernelTable& table);
void register_attention(KernelTable& table);
void register_attention_backward(KernelTable& table);
void register_chains(KernelTable& table);
void register_conv(KernelTable& table);
void register_elementwise(KernelTable& table);
void register_gather(KernelTable& table);
void register_grouped_low_rank(KernelTable& table);
void register_index(KernelTable& table);
void register_layer_norm(KernelTable& table);
void register_loss(KernelTable& table);
void register_low_rank_matmul(KernelTable& table);
void register_matmul(KernelTable& table);
void register_norm(KernelTable& table);
void register_orthogonal(KernelTable& table);
void register_paged_attention(KernelTable& table);
void register_pool(KernelTable& table);
void register_random(KernelTable& table);
void register_reduce(KernelTable& table);
void register_rope(KernelTable& table);
void register_sample(KernelTable& table);
void register_scan(KernelTable& table);
void register_segment_max(KernelTable& table);
void register_softmax(KernelTable& table);
void register_sort(KernelTable& table);
void register_sparse(KernelTable& table);
void register_triangular(KernelTable& table);
void register_walsh_hadamard(KernelTable& table);

}  // namespace heddle::cuda
