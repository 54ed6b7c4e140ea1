// Tensors into files, piece by piece: what is written is never in memory as a whole because of it.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/atomic_file.h"
#include "io/encoding.h"

namespace heddle {

struct TensorEntry {
  std::string name;
  Tensor tensor;
  Encoding encoding = Encoding::kF32;
  size_t interleaved_heads = 0;
  float addend = 0;
};

/// Appends the tensor's elements in the entry's encoding: the tensor's own, or f32, f16, bf16, q8_0 from any of f32,
/// f16, bf16. Each number has `addend` added before. With `interleaved_heads`, rows (elements of a vector) are put into
/// llama.cpp's rope order of so many heads.
/// Throws kDtype and kShape on what does not fit, kArgument on a number that is not finite for q8_0.
void write_tensor(AtomicFile& file, const TensorEntry& entry);

/// `head`, then each tensor, all padded to `alignment`; atomically.
void write_tensor_file(const std::string& path, std::span<const std::byte> head, size_t alignment,
                       const std::vector<TensorEntry>& entries);

}  // namespace heddle
