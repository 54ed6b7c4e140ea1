// Windows that slide over images: what convolution and pooling have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "program/kernel.h"

namespace heddle {

/// One axis of a sliding window: output position i covers inputs i * stride - before + dilation * k for k in [0, size).
struct WindowAxis {
  int64_t input = 0, output = 0;
  int64_t size = 1, stride = 1, dilation = 1;
  int64_t before = 0, after = 0;

  int64_t reach() const noexcept { return (size - 1) * dilation + 1; }
};

struct Window {
  WindowAxis y, x;
};

/// Reads attributes stride [2], padding [4] (top, bottom, left, right) and dilation [2], and checks them against an
/// image [n, c, h, w], windows of kh x kw and an output [n, c', oh, ow].
inline Window read_window(const KernelRequest& request, const Shape& image, int64_t kh, int64_t kw,
                          const Shape& output) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const auto& stride = request.attributes.integers("stride");
  const auto& padding = request.attributes.integers("padding");
  const auto& dilation = request.attributes.integers("dilation");
  request.check(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
                "2 strides, 4 paddings and 2 dilations", std::to_string(padding.size()) + " paddings");
  request.check(image.rank() == 4 && output.rank() == 4, "images of rank 4", image.str() + " and " + output.str());
  const auto axis = [&](size_t i, int64_t size) {
    const WindowAxis made{image[2 + i],   output[2 + i],     size, stride[i], dilation[i],
                          padding[2 * i], padding[2 * i + 1]};
    for (const int64_t value : {made.input, made.output, made.size, made.stride, made.dilation})
      request.check(value >= 1 && value < kLimit, "sizes, strides and dilations from 1 to 2^30", std::to_string(value));
    for (const int64_t value : {made.before, made.after})
      request.check(value >= 0 && value < kLimit, "paddings from 0 to 2^30", std::to_string(value));
    const int64_t room = made.input + made.before + made.after - made.reach();
    request.check(room >= 0, "a window that fits into the padded image", std::to_string(made.reach()));
    request.check(made.output == room / made.stride + 1,
                  "an output of " + std::to_string(room / made.stride + 1) + " along axis " + std::to_string(2 + i),
                  std::to_string(made.output));
    return made;
  };
  return {axis(0, kh), axis(1, kw)};
}

}  // namespace heddle
