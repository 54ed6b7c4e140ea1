#include "io/encoding.h"

#include <array>

namespace heddle {

namespace {

struct Layout {
  const char* name;
  size_t elements;
  size_t bytes;
};

/// In the order of Encoding.
constexpr std::array<Layout, 20> kLayouts = {
    {{"f32", 1, 4},      {"f64", 1, 8},      {"bf16", 1, 2},     {"f16", 1, 2},      {"i32", 1, 4},
     {"i64", 1, 8},      {"u8", 1, 1},       {"u32", 1, 4},      {"q4_0", 32, 18},   {"q4_1", 32, 20},
     {"q5_0", 32, 22},   {"q5_1", 32, 24},   {"q8_0", 32, 34},   {"q2_k", 256, 84},  {"q3_k", 256, 110},
     {"q4_k", 256, 144}, {"q5_k", 256, 176}, {"q6_k", 256, 210}, {"iq4_nl", 32, 18}, {"iq4_xs", 256, 136}}};

const Layout& layout_of(Encoding encoding) noexcept { return kLayouts[static_cast<size_t>(encoding)]; }

}  // namespace

Encoding encoding_from_name(std::string_view name) {
  std::string known;
  for (size_t i = 0; i < kLayouts.size(); ++i) {
    if (name == kLayouts[i].name) return static_cast<Encoding>(i);
    known += (i == 0 ? "" : ", ") + std::string(kLayouts[i].name);
  }
  throw Error(ErrorCode::kFormat, "encoding", "one of " + known, std::string(name));
}

const char* encoding_name(Encoding encoding) noexcept { return layout_of(encoding).name; }

bool is_float(Encoding encoding) noexcept {
  switch (encoding) {
    case Encoding::kI32:
    case Encoding::kI64:
    case Encoding::kU8:
    case Encoding::kU32: return false;
    default: return true;
  }
}

size_t block_elements(Encoding encoding) noexcept { return layout_of(encoding).elements; }

size_t block_bytes(Encoding encoding) noexcept { return layout_of(encoding).bytes; }

BlockPlanes block_planes(Encoding encoding) noexcept {
  const size_t bytes = block_bytes(encoding);
  const size_t head = is_dense(encoding) ? 0 : bytes % 16;
  // Super-blocks end with their scales, except for iq4_xs.
  const bool head_last = block_elements(encoding) == 256 && encoding != Encoding::kIQ4_XS;
  return {head_last ? 0 : head, bytes - head, head_last ? bytes - head : 0, head};
}

size_t encoded_bytes(Encoding encoding, size_t count, const std::string& place) {
  return checked_mul(count / block_elements(encoding), block_bytes(encoding), place.c_str());
}

}  // namespace heddle
