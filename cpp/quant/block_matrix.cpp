#include "quant/block_matrix.h"

#include <array>
#include <cstring>
#include <optional>

#include "core/dtype.h"

namespace heddle {
namespace {

std::optional<BlockForm> form_of(std::string_view encoding) {
  if (encoding == "q4_0") return BlockForm::kQ4_0;
  if (encoding == "q4_1") return BlockForm::kQ4_1;
  if (encoding == "q8_0") return BlockForm::kQ8_0;
  return std::nullopt;
}

/// One block as GGUF stores it, with its codes unpacked.
struct Block {
  uint16_t scale = 0;
  uint16_t minimum = 0;
  std::array<uint8_t, kBlockLength> codes{};

  Block() = default;
  Block(BlockForm form, const std::byte* from) {
    std::memcpy(&scale, from, 2);
    if (form == BlockForm::kQ4_1) std::memcpy(&minimum, from + 2, 2);
    const std::byte* packed = from + (form == BlockForm::kQ4_1 ? 4 : 2);
    if (form == BlockForm::kQ8_0) std::memcpy(codes.data(), packed, kBlockLength);
    for (size_t i = 0; form != BlockForm::kQ8_0 && i < kBlockLength / 2; ++i) {
      codes[i] = static_cast<uint8_t>(packed[i]) & 15;
      codes[i + kBlockLength / 2] = static_cast<uint8_t>(packed[i]) >> 4;
    }
  }
};

/// Puts the codes of one row's block into its words: `kPairs` neighbours in k share a pair of words.
template <size_t kPairs>
void place_codes(const Block& block, uint16_t* words) {
  constexpr size_t kBits = 16 / kPairs;
  for (size_t vector = 0; vector < kBlockLength / (2 * kPairs); ++vector) {
    const uint8_t* const codes = block.codes.data() + vector * 2 * kPairs;
    uint32_t even = 0;
    uint32_t odd = 0;
    for (size_t pair = 0; pair < kPairs; ++pair) {
      even |= static_cast<uint32_t>(codes[2 * pair]) << (pair * kBits);
      odd |= static_cast<uint32_t>(codes[2 * pair + 1]) << (pair * kBits);
    }
    words[vector * 2 * kBlockPanelRows] = static_cast<uint16_t>(even);
    words[vector * 2 * kBlockPanelRows + 1] = static_cast<uint16_t>(odd);
  }
}

size_t bytes_of(BlockForm form) { return form == BlockForm::kQ4_0 ? 18 : form == BlockForm::kQ4_1 ? 20 : 34; }

size_t aligned_bytes(size_t bytes) { return checked_add(bytes, 63, "matmul") / 64 * 64; }

}  // namespace

size_t BlockRows16::bytes(size_t rows, size_t k) {
  const size_t scales = aligned_bytes(checked_mul(rows, k / kBlockLength * sizeof(float), "matmul"));
  return aligned_bytes(checked_mul(rows, k * sizeof(int16_t), "matmul")) + 2 * scales;
}

BlockRows16 BlockRows16::at(std::byte* memory, size_t rows, size_t k) {
  const size_t scales = aligned_bytes(rows * (k / kBlockLength) * sizeof(float));
  auto* const floats = memory + aligned_bytes(rows * k * sizeof(int16_t));
  return {reinterpret_cast<int16_t*>(memory), reinterpret_cast<float*>(floats),
          reinterpret_cast<float*>(floats + scales)};
}

bool BlockMatrix::fits(const Storage& storage, size_t n, size_t k) {
  const EncodedRows* const rows = storage.encoded_rows();
  return rows != nullptr && form_of(rows->encoding()) && rows->columns() == k && k % kBlockLength == 0 &&
         (storage.size() == n * k * sizeof(float) || storage.size() == n * k * sizeof(uint16_t));
}

std::shared_ptr<const BlockMatrix> BlockMatrix::of_frozen(const std::shared_ptr<Storage>& storage, size_t n, size_t k) {
  const auto packed = storage->derived("blocks", [&]() -> std::shared_ptr<void> {
    auto made = std::make_shared<BlockMatrix>(*storage->encoded_rows(), n, k);
    storage->encoded_rows()->drop_pages();
    return made;
  });
  return std::static_pointer_cast<const BlockMatrix>(packed);
}

BlockMatrix::BlockMatrix(const EncodedRows& rows, size_t n, size_t k)
    : panels_{.form = *form_of(rows.encoding()), .n = n, .k = k} {
  const size_t blocks = checked_mul(panels_.panels(), panels_.blocks(), "matmul");
  codes_ = AlignedBuffer(checked_mul(blocks, panels_.words_per_block() * sizeof(uint16_t), "matmul"));
  scales_ = AlignedBuffer(checked_mul(blocks, panels_.scales_per_block() * sizeof(uint16_t), "matmul"));
  panels_.codes = reinterpret_cast<const uint16_t*>(codes_.data());
  panels_.scales = reinterpret_cast<const uint16_t*>(scales_.data());
  TilePool::shared().run(panels_.panels(), [&](size_t panel, size_t) { pack_panel(rows, panel); });
}

void BlockMatrix::pack_panel(const EncodedRows& rows, size_t panel) {
  const size_t lanes = std::min(kBlockPanelRows, panels_.n - panel * kBlockPanelRows);
  for (size_t lane = 0; lane < lanes; ++lane) {
    const std::byte* const row = rows.row(panel * kBlockPanelRows + lane);
    for (size_t index = 0; index < panels_.blocks(); ++index) {
      const size_t at = panel * panels_.blocks() + index;
      const Block block(panels_.form, row + index * bytes_of(panels_.form));
      auto* const scales = reinterpret_cast<uint16_t*>(scales_.data()) + at * panels_.scales_per_block();
      scales[lane] = block.scale;
      if (panels_.form == BlockForm::kQ4_1) scales[kBlockPanelRows + lane] = block.minimum;
      auto* const words = reinterpret_cast<uint16_t*>(codes_.data()) + at * panels_.words_per_block() + 2 * lane;
      if (panels_.form == BlockForm::kQ8_0)
        place_codes<2>(block, words);
      else
        place_codes<4>(block, words);
    }
  }
}

}  // namespace heddle
