#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {

const KernelTable& kernels() {
  static const KernelTable kTable = [] {
    KernelTable table;
    register_assignment(table);
    register_attention(table);
    register_attention_backward(table);
    register_chains(table);
    register_conv(table);
    register_elementwise(table);
    register_gather(table);
    register_grouped_low_rank(table);
    register_index(table);
    register_layer_norm(table);
    register_loss(table);
    register_low_rank_matmul(table);
    register_matmul(table);
    register_norm(table);
    register_orthogonal(table);
    register_paged_attention(table);
    register_pool(table);
    register_random(table);
    register_reduce(table);
    register_rope(table);
    register_sample(table);
    register_scan(table);
    register_segment_max(table);
    register_softmax(table);
    register_sort(table);
    register_sparse(table);
    register_triangular(table);
    register_walsh_hadamard(table);
    return table;
  }();
  return kTable;
}

}  // namespace heddle::cuda
