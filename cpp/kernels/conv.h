// What the ways to compute a convolution share. x [n, c, h, w], w [o, c/groups, kh, kw], y [n, o, oh, ow].
#pragma once

#include <cstdint>

#include "kernels/window.h"

namespace heddle {

/// y from x, dx from dy, or dw from both.
enum class ConvPass { kForward, kInput, kWeight };

struct ConvProblem {
  int64_t images = 0, groups = 1;
  /// Per group.
  int64_t in = 0, out = 0;
  Window window;
  bool bias = false;

  int64_t kernel() const { return window.y.size * window.x.size; }
  int64_t pixels_in() const { return window.y.input * window.x.input; }
  int64_t pixels_out() const { return window.y.output * window.x.output; }
  bool pointwise() const {
    const auto plain = [](const WindowAxis& a) { return a.size == 1 && a.stride == 1 && a.before + a.after == 0; };
    return groups == 1 && plain(window.y) && plain(window.x);
  }
};

}  // namespace heddle
