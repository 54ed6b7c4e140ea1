#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/conv_direct.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_KERNELS_CONV_DIRECT_ONCE
#define HEDDLE_KERNELS_CONV_DIRECT_ONCE

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/conv_direct.h"

namespace heddle {
namespace {

/// Output channels that the micro-kernel computes at once, and the pixels: three of the widest vectors.
constexpr int64_t kPanelChannels = 8;
constexpr int64_t kStrip = 48;
constexpr int64_t kLongestVector = 16;

/// out[i][p] (+)= bias[i] + sum over j of w[i][j] in[offsets[j] + p] for pixels p of [0, pixels).
struct PixelProduct {
  /// Panels of kPanelChannels channels, [panel][j][channel], `panel_size` elements apart.
  const float* w;
  int64_t panel_size, channels;
  std::span<const int64_t> offsets;
  /// Null where there is none.
  const float* bias;
  /// Whole vectors of it are read.
  const float* in;
  float* out;
  int64_t out_stride;
  int64_t pixels;
  bool accumulate;
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_CONV_DIRECT_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;

/// A vector, or `lanes` of its elements.
template <bool kPartial>
HWY_INLINE hn::Vec<F> load(const float* from, int64_t lanes) {
  const F f;
  if constexpr (!kPartial) return hn::LoadU(f, from);
  HWY_ALIGN float all[16] = {};
  std::copy_n(from, lanes, all);
  return hn::Load(f, all);
}

template <bool kPartial>
HWY_INLINE void store(hn::Vec<F> v, float* to, int64_t lanes) {
  const F f;
  if constexpr (!kPartial) return hn::StoreU(v, f, to);
  HWY_ALIGN float all[16];
  hn::Store(v, f, all);
  std::copy_n(all, lanes, to);
}

/// One panel, kRows of its channels, kVectors vectors of pixels from `pixel` on; fewer pixels where `lanes` is not 0.
template <int kRows, int kVectors, bool kPartial>
HWY_INLINE void multiply(const PixelProduct& job, const float* w, int64_t channel, int64_t pixel, int64_t lanes) {
  const F f;
  const auto n = static_cast<int64_t>(hn::Lanes(f));
  const int64_t count = std::min<int64_t>(kRows, job.channels - channel);
  float* out = job.out + channel * job.out_stride + pixel;
  hn::Vec<F> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (job.accumulate && i < count)
        sums[i][v] = load<kPartial>(out + i * job.out_stride + v * n, lanes);
      else
        sums[i][v] = hn::Set(f, job.bias != nullptr && i < count ? job.bias[channel + i] : 0.0F);
    }
  }
  const float* in = job.in + pixel;
  for (const int64_t offset : job.offsets) {
    const float* from = in + offset;
    hn::Vec<F> x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) x[v] = hn::LoadU(f, from + v * n);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const auto factor = hn::Set(f, w[i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::MulAdd(factor, x[v], sums[i][v]);
    }
    w += kPanelChannels;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    if (i >= count) break;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store<kPartial>(sums[i][v], out + i * job.out_stride + v * n, lanes);
    }
  }
}

/// All panels for kVectors vectors of pixels. Sums fill the registers: 24 of 32 wide vectors, 12 of 16 narrow ones.
template <int kVectors, bool kPartial>
HWY_INLINE void multiply_panels(const PixelProduct& job, int64_t pixel, int64_t lanes) {
  const float* w = job.w;
  for (int64_t channel = 0; channel < job.channels; channel += kPanelChannels, w += job.panel_size) {
    if (hn::Lanes(F()) == 16 && job.channels - channel > 4) {
      multiply<8, kVectors, kPartial>(job, w, channel, pixel, lanes);
      continue;
    }
    multiply<4, kVectors, kPartial>(job, w, channel, pixel, lanes);
    if (job.channels - channel > 4) multiply<4, kVectors, kPartial>(job, w + 4, channel + 4, pixel, lanes);
  }
}

void pixel_product(const PixelProduct& job) {
  const auto n = static_cast<int64_t>(hn::Lanes(F()));
  int64_t pixel = 0;
  for (; pixel + 3 * n <= job.pixels; pixel += 3 * n) multiply_panels<3, false>(job, pixel, 0);
  if (pixel + 2 * n <= job.pixels) {
    multiply_panels<2, false>(job, pixel, 0);
    pixel += 2 * n;
  }
  if (pixel + n <= job.pixels) {
    multiply_panels<1, false>(job, pixel, 0);
    pixel += n;
  }
  if (pixel < job.pixels) multiply_panels<1, true>(job, pixel, job.pixels - pixel);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(pixel_product);

constexpr int64_t kWantedTiles = 16;
/// Products that are taken before the next ones: their pixels, a strip wide, stay in the first cache.
constexpr int64_t kProducts = 128;
/// Shifted channels of a tile stay in the second cache.
constexpr int64_t kShiftedFloats = int64_t{1} << 17;

/// Images that are smaller, and windows whose pixels are used less often, are oneDNN's.
constexpr int64_t kFewestPixels = 512;
constexpr int64_t kFewestUses = 128;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t floats(int64_t a, int64_t b) { return checked_mul(static_cast<size_t>(a), static_cast<size_t>(b), "conv2d"); }

/// The axis of the adjoint: outputs become inputs, and the window meets them from the other side.
WindowAxis adjoint(const WindowAxis& axis) {
  const int64_t around = axis.reach() - 1;
  return {axis.output, axis.input, axis.size, 1, axis.dilation, around - axis.before, around - axis.after};
}

}  // namespace

bool DirectConvolution::fits(ConvPass pass, const ConvProblem& problem) {
  const auto [y, x] = problem.window;
  const bool turns = y.before < y.reach() && y.after < y.reach() && x.before < x.reach() && x.after < x.reach();
  const bool known = pass == ConvPass::kForward || (pass == ConvPass::kInput && turns);
  if (!known || problem.groups != 1 || y.stride != 1 || x.stride != 1) return false;
  const int64_t pixels = pass == ConvPass::kForward ? problem.pixels_out() : problem.pixels_in();
  const int64_t channels = pass == ConvPass::kForward ? problem.out : problem.in;
  // Shifting a pixel must be little work beside what is done with it.
  return pixels >= kFewestPixels && (problem.pointwise() || channels * y.size >= kFewestUses);
}

DirectConvolution::DirectConvolution(ConvPass pass, const ConvProblem& problem)
    : images_(problem.images),
      in_(pass == ConvPass::kForward ? problem.in : problem.out),
      out_(pass == ConvPass::kForward ? problem.out : problem.in),
      y_(pass == ConvPass::kForward ? problem.window.y : adjoint(problem.window.y)),
      x_(pass == ConvPass::kForward ? problem.window.x : adjoint(problem.window.x)),
      plain_(problem.pointwise() && problem.pixels_in() % kLongestVector == 0) {
  const int64_t kernel = problem.kernel();
  const bool forward = pass == ConvPass::kForward;
  w_out_ = forward ? in_ * kernel : kernel;
  w_in_ = forward ? kernel : out_ * kernel;
  w_y_ = forward ? x_.size : -x_.size;
  w_x_ = forward ? 1 : -1;
  w_first_ = forward ? 0 : kernel - 1;

  const int64_t pixels = y_.output * x_.output;
  row_step_ = y_.dilation * x_.output;
  const int64_t halo = (y_.size - 1) * row_step_;
  const int64_t strips = ceil_div(pixels, kStrip);
  const int64_t wanted = ceil_div(kWantedTiles, images_);
  int64_t most = ceil_div(strips, std::min(strips, wanted));
  if (!plain_) most = std::min(most, std::max<int64_t>(1, (kShiftedFloats / (in_ * x_.size) - halo) / kStrip));
  width_ = most * kStrip;
  ranges_ = ceil_div(pixels, width_);
  const int64_t panels = ceil_div(out_, kPanelChannels);
  panels_ = ceil_div(panels, std::min(panels, ceil_div(kWantedTiles, images_ * ranges_)));
  parts_ = ceil_div(panels, panels_);
  shifted_width_ = width_ + halo;
  for (int64_t c = 0; c < in_; ++c)
    for (int64_t row = 0; row < y_.size; ++row)
      for (int64_t column = 0; column < x_.size; ++column)
        offsets_.push_back(plain_ ? c * pixels : (c * x_.size + column) * shifted_width_ + row * row_step_);
}

size_t DirectConvolution::packed_bytes() const {
  return checked_mul(floats(parts_ * panels_ * kPanelChannels, static_cast<int64_t>(offsets_.size())), sizeof(float),
                     "conv2d");
}

size_t DirectConvolution::scratch_per_thread() const {
  // The last vector may lie beyond the last channel.
  return plain_ ? 0 : checked_mul(floats(in_ * x_.size, shifted_width_) + kStrip, sizeof(float), "conv2d");
}

void DirectConvolution::pack(const float* w, std::byte* packed, TilePool& pool) const {
  pool.run(static_cast<size_t>(ceil_div(out_, kPanelChannels)), [&](size_t panel, size_t) {
    const int64_t first = static_cast<int64_t>(panel) * kPanelChannels;
    const int64_t channels = std::min(kPanelChannels, out_ - first);
    float* to = reinterpret_cast<float*>(packed) + panel * offsets_.size() * kPanelChannels;
    for (int64_t c = 0; c < in_; ++c)
      for (int64_t row = 0; row < y_.size; ++row)
        for (int64_t column = 0; column < x_.size; ++column, to += kPanelChannels) {
          const float* from = w + w_first_ + first * w_out_ + c * w_in_ + row * w_y_ + column * w_x_;
          for (int64_t i = 0; i < channels; ++i) to[i] = from[i * w_out_];
          std::fill(to + channels, to + kPanelChannels, 0.0F);
        }
  });
}

void DirectConvolution::gather(const float* image, int64_t begin, int64_t end, float* shifted) const {
  for (int64_t c = 0; c < in_; ++c, image += y_.input * x_.input) {
    for (int64_t column = 0; column < x_.size; ++column, shifted += shifted_width_) {
      // Pixels [low, high) of a row meet the image, `shift` further on.
      const int64_t shift = column * x_.dilation - x_.before;
      const int64_t low = std::clamp<int64_t>(-shift, 0, x_.output);
      const int64_t high = std::clamp<int64_t>(x_.input - shift, low, x_.output);
      for (int64_t row = begin / x_.output; row * x_.output < end; ++row) {
        const int64_t first = std::max<int64_t>(0, begin - row * x_.output);
        const int64_t last = std::min(x_.output, end - row * x_.output);
        const bool inside = row >= y_.before && row - y_.before < y_.input;
        const int64_t from = inside ? std::clamp(low, first, last) : last;
        const int64_t to = inside ? std::clamp(high, from, last) : last;
        float* line = shifted + row * x_.output - begin;
        std::fill(line + first, line + from, 0.0F);
        if (inside) std::copy_n(image + (row - y_.before) * x_.input + shift + from, to - from, line + from);
        std::fill(line + to, line + last, 0.0F);
      }
    }
  }
}

void DirectConvolution::run(const float* source, const std::byte* packed, const float* bias, float* result,
                            const RunArguments& arguments) const {
  const int64_t pixels = y_.output * x_.output;
  const auto products = static_cast<int64_t>(offsets_.size());
  arguments.pool.run(static_cast<size_t>(images_ * ranges_ * parts_), [&](size_t tile, size_t thread) {
    const int64_t part = static_cast<int64_t>(tile) % parts_;
    const int64_t range = static_cast<int64_t>(tile) / parts_ % ranges_;
    const int64_t index = static_cast<int64_t>(tile) / parts_ / ranges_;
    const int64_t begin = range * width_;
    const int64_t end = std::min(pixels, begin + width_);
    const int64_t channel = part * panels_ * kPanelChannels;
    const float* image = source + index * in_ * y_.input * x_.input;
    float* const shifted = arguments.thread_scratch<float>(thread);
    if (!plain_) gather(image, begin, end + (y_.size - 1) * row_step_, shifted);
    PixelProduct job{.w = reinterpret_cast<const float*>(packed) + channel * products,
                     .panel_size = products * kPanelChannels,
                     .channels = std::min(panels_ * kPanelChannels, out_ - channel),
                     .offsets = {},
                     .bias = bias == nullptr ? nullptr : bias + channel,
                     .in = nullptr,
                     .out = nullptr,
                     .out_stride = pixels,
                     .pixels = 0,
                     .accumulate = false};
    for (int64_t strip = begin; strip < end; strip += kStrip) {
      job.in = plain_ ? image + strip : shifted + strip - begin;
      job.out = result + (index * out_ + channel) * pixels + strip;
      job.pixels = std::min(kStrip, end - strip);
      const float* w = job.w;
      for (int64_t first = 0; first < products; first += kProducts) {
        PixelProduct block = job;
        block.w = w + first * kPanelChannels;
        block.offsets = std::span(offsets_).subspan(static_cast<size_t>(first),
                                                    static_cast<size_t>(std::min(kProducts, products - first)));
        block.accumulate = first > 0;
        HWY_DYNAMIC_DISPATCH(pixel_product)(block);
      }
    }
  });
}

}  // namespace heddle
#endif  // HWY_ONCE
