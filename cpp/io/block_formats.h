// Tensors of mapped files: views where their bytes can be used as they are, else decoded when first needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/tensor.h"
#include "io/encoding.h"
#include "io/mapped_file.h"

namespace heddle {

struct FileTensor {
  Encoding encoding = Encoding::kF32;
  /// The encoding's own, or f32/bf16 decoded from any floating-point encoding.
  DType dtype = DType::kF32;
  Shape shape;
  size_t offset = 0;
  /// The rows are in llama.cpp's interleaved rope order of so many heads; 0: they are not.
  size_t interleaved_heads = 0;
  /// Added to each decoded number; not 0 only where the encoding is a floating-point one.
  float addend = 0;
};

/// A view where the bytes can be used as they are, else decoded when first needed. Throws on bounds, kinds and shapes
/// that do not fit, before anything is allocated.
Tensor tensor_from_file(std::shared_ptr<const MappedFile> file, const FileTensor& wanted);

}  // namespace heddle
