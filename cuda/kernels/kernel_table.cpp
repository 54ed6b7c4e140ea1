#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {

const KernelTable& kernels() {
  static const KernelTable kTable = [] {
    KernelTable table;
    register_elementwise(table);
    register_reduce(table);
    return table;
  }();
  return kTable;
}

}  // namespace heddle::cuda
