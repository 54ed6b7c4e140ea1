// Frozen matrices that stay in blocks of 32 four- or eight-bit codes, and their product with few rows.
//
// Sixteen rows of W lie side by side, so that one vector holds the codes of sixteen results and a block's scales are
// one vector too. Activations are rounded to 16 bits per block of 32: with codes of at most 8 bits a block's sum still
// fits 32 bits, and the rounding (2^-16 of the block's largest value) is far below that of the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "core/fetch_region.h"
#include "core/storage.h"
#include "core/tile_pool.h"

namespace heddle {

/// Codes of W, by format: w = scale * code + minimum, where q4_0's minimum is -8 * scale and q8_0's is 0.
enum class BlockForm : uint8_t { kQ4_0, kQ4_1, kQ8_0 };

inline constexpr size_t kBlockLength = 32;
inline constexpr size_t kBlockPanelRows = 16;

/// What the kernel sees of a packed W [n, k].
struct BlockPanels {
  BlockForm form = BlockForm::kQ4_0;
  size_t n = 0;
  size_t k = 0;
  /// Per panel and block: words [vector][row][two neighbours in k], each with the codes of 4 (or 2) such pairs.
  const uint16_t* codes = nullptr;
  /// Per panel and block: 16 half-precision scales, then (q4_1) 16 minima.
  const uint16_t* scales = nullptr;

  size_t blocks() const noexcept { return k / kBlockLength; }
  size_t panels() const noexcept { return (n + kBlockPanelRows - 1) / kBlockPanelRows; }
  size_t words_per_block() const noexcept { return form == BlockForm::kQ8_0 ? 256 : 128; }
  size_t scales_per_block() const noexcept { return form == BlockForm::kQ4_1 ? 32 : 16; }
};

/// x [rows, k] in 16-bit codes: x = scale * code per block of 32; `sums`: scale times the sum of a block's codes.
struct BlockRows16 {
  int16_t* codes = nullptr;
  float* scales = nullptr;
  float* sums = nullptr;

  static size_t bytes(size_t rows, size_t k);
  /// Lays the three arrays out in `memory`, which is 64-byte aligned.
  static BlockRows16 at(std::byte* memory, size_t rows, size_t k);
  /// The rows from number `row` on.
  BlockRows16 from(size_t row, size_t k) const noexcept {
    const size_t block = row * (k / kBlockLength);
    return {codes + row * k, scales + block, sums + block};
  }
};

/// Rounds x [rows, k]; a block with a value that is not finite becomes NaN.
void round_rows_to_16_bits(const float* x, size_t rows, size_t k, const BlockRows16& out);

/// The left operand, and what becomes of the product: y = alpha * x Wᵀ + addend.
struct BlockProduct {
  BlockRows16 x;
  size_t rows = 0;
  float alpha = 1.0F;
  /// Null, [n], or [rows, n] if `full`; may be y itself.
  const float* addend = nullptr;
  bool full = false;
};

/// Consecutive panels, and the lines [first_line, last_line) of other memory to ask for meanwhile.
struct BlockTile {
  size_t first_panel = 0;
  size_t last_panel = 0;
  std::span<const FetchRegion> ahead = {};
  size_t first_line = 0;
  size_t last_line = 0;
};

/// The columns of y [rows, n] that belong to a tile's panels.
void multiply_panels(const BlockPanels& w, const BlockTile& tile, const BlockProduct& product, float* y);

class BlockMatrix {
 public:
  /// Whether `storage` holds W [n, k] in one of the forms.
  static bool fits(const Storage& storage, size_t n, size_t k);
  /// Packed once per storage, for all programs; tiles over the shared pool.
  static std::shared_ptr<const BlockMatrix> of_frozen(const std::shared_ptr<Storage>& storage, size_t n, size_t k);

  BlockMatrix(const EncodedRows& rows, size_t n, size_t k);

  const BlockPanels& panels() const noexcept { return panels_; }

 private:
  void pack_panel(const EncodedRows& rows, size_t panel);

  BlockPanels panels_;
  AlignedBuffer codes_;
  AlignedBuffer scales_;
};

}  // namespace heddle
