#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {

const KernelTable& kernels() {
  static const KernelTable kTable = [] {
    KernelTable table;
    register_attention(table);
    register_attention_backward(table);
    register_elementwise(table);
    register_gather(table);
    register_grouped_low_rank(table);
    register_index(table);
    register_layer_norm(table);
    register_loss(table);
    register_low_rank_matmul(table);
    register_matmul(table);
    register_norm(table);
    register_paged_attention(table);
    register_reduce(table);
    register_rope(table);
    register_softmax(table);
    return table;
  }();
  return kTable;
}

}  // namespace heddle::cuda
