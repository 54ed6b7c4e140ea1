// How tensors lie in files: dense, or in GGUF's blocks along the last dimension.
//
// A block of 32: f16 scale d, for the _1 formats an f16 minimum m, for 5 bits a word of fifth bits, then nibbles, low
// ones first: x = d (q - middle) or d q + m. A block of 256 (_k): scales of 16 or 32 elements are themselves quantised,
// x = (d s) q or (d s) q - (dmin m). iq4: nibbles that index a table of 16 levels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/dtype.h"

namespace heddle {

enum class Encoding : uint8_t {
  kF32,
  kF64,
  kBF16,
  kF16,
  kI32,
  kI64,
  kU8,
  kU32,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
};

/// Throws kFormat on an unknown name.
Encoding encoding_from_name(std::string_view name);
const char* encoding_name(Encoding encoding) noexcept;

/// True when the elements are those of a dtype.
constexpr bool is_dense(Encoding encoding) noexcept { return encoding < Encoding::kQ4_0; }
constexpr DType dense_dtype(Encoding encoding) noexcept { return static_cast<DType>(encoding); }
bool is_float(Encoding encoding) noexcept;

/// Elements that stand together: 1 where dense.
size_t block_elements(Encoding encoding) noexcept;
size_t block_bytes(Encoding encoding) noexcept;

/// How devices hold blocks, so that the words of codes lie aligned: the bodies of all blocks, one behind the other,
/// then, from a multiple of 256 bytes on, their heads. A body is a part of the block that has a multiple of 16 bytes,
/// or a dense element; the head is what remains before or behind it, if anything.
struct BlockPlanes {
  size_t body_begin = 0;
  size_t body_bytes = 0;
  size_t head_begin = 0;
  size_t head_bytes = 0;

  size_t heads_at(size_t blocks) const noexcept { return (blocks * body_bytes + 255) / 256 * 256; }
};
BlockPlanes block_planes(Encoding encoding) noexcept;

/// Bytes of `count` elements, which are whole blocks. Throws kShape on overflow.
size_t encoded_bytes(Encoding encoding, size_t count, const std::string& place);

}  // namespace heddle
