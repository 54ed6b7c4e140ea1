// Convolutions with stride 1 on images as they lie, channel by channel: pixels are the vectors' lanes, so that no
// operand is rearranged. A window's columns are images shifted by a pixel, its rows are addresses.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/conv.h"

namespace heddle {

/// y from x, or dx from dy, which is the same with the window turned round. Tiles are ranges of pixels and of channels.
class DirectConvolution {
 public:
  static bool fits(ConvPass pass, const ConvProblem& problem);

  DirectConvolution(ConvPass pass, const ConvProblem& problem);

  static constexpr bool packs() { return true; }
  size_t packed_bytes() const;
  size_t scratch_per_thread() const;
  /// w as it lies -> panels of channels.
  void pack(const float* w, std::byte* packed, TilePool& pool) const;
  /// `bias` may be null.
  void run(const float* source, const std::byte* packed, const float* bias, float* result,
           const RunArguments& arguments) const;

 private:
  /// Positions [begin, end) of the source's channels, each `shifts` times.
  void gather(const float* image, int64_t begin, int64_t end, float* shifted) const;

  int64_t images_, in_, out_;
  WindowAxis y_, x_;
  /// The source is the image as it lies, in whole vectors.
  bool plain_;
  /// Pixels of a tile, and panels of channels; how many of each there are.
  int64_t width_, ranges_, panels_, parts_;
  /// Of one shifted channel in scratch, and of the window's rows.
  int64_t shifted_width_, row_step_;
  /// Where each product of a tile finds its pixels, in the order of the packed weights.
  std::vector<int64_t> offsets_;
  /// Strides of w's elements, and where its first one lies.
  int64_t w_out_, w_in_, w_y_, w_x_, w_first_;
};

}  // namespace heddle
