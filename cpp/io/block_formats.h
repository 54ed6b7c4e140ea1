// How tensors lie in files (dense, or GGUF's blocks of 32 elements along the last dimension) and their decoding.
//
// q4_0: f16 scale d, 16 bytes of nibbles; x = d (q - 8). q4_1: f16 d, f16 minimum m, nibbles; x = d q + m. Low nibbles
// are elements 0-15, high ones 16-31. q8_0: f16 d, 32 signed bytes; x = d q.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "core/tensor.h"
#include "io/mapped_file.h"

namespace heddle {

enum class Encoding : uint8_t { kF32, kF64, kBF16, kF16, kI32, kI64, kU8, kU32, kQ4_0, kQ4_1, kQ8_0 };

/// Throws kFormat on an unknown name.
Encoding encoding_from_name(std::string_view name);

struct FileTensor {
  Encoding encoding = Encoding::kF32;
  /// The encoding's own, or f32/bf16 decoded from any floating-point encoding.
  DType dtype = DType::kF32;
  Shape shape;
  size_t offset = 0;
  /// The rows are in llama.cpp's interleaved rope order of so many heads; 0: they are not.
  size_t interleaved_heads = 0;
};

/// A view where the bytes can be used as they are, else decoded when first needed. Throws on bounds, kinds and shapes
/// that do not fit, before anything is allocated.
Tensor tensor_from_file(std::shared_ptr<const MappedFile> file, const FileTensor& wanted);

}  // namespace heddle
