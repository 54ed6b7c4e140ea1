// Two-dimensional convolution and its two adjoints. x [n, c, h, w], w [o, c/groups, kh, kw], y [n, o, oh, ow].
//
// A tile is one image and some of its channels, computed by a single-threaded oneDNN primitive in the layout that it
// likes best; operands are rearranged on the way in and out. Measured on one AVX-512 core, f32 GFLOP/s, this way / NCHW
// as it lies / im2col and a packed product: 3x3 of 64 channels on 56x56 104 / 67 / 96, of 256 on 14x14 122 / 95 / 101,
// 4 groups 111 / 43 / -, depthwise 25 / 4 / -; but 1x1 75 / 111 / 108, so those take NCHW as it lies. Large images with
// stride 1 take kernels of our own (conv_direct.h), which are faster where a convolution has few channels or is 1x1: in
// tiles of the pool, oneDNN / own, 1x1 64 to 256 channels on 56x56 59 / 107, the gradient of 256 to 64 58 / 102,
// windows of 3 along 3000 samples 72 / 101, 3x3 of 64 on 28x28 101 / 102, of 512 on 7x7 113 / 58.

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/resting_memory.h"
#include "kernels/conv_direct.h"
#include "kernels/kernel_table.h"
#include "kernels/onednn.h"
#include "kernels/rows.h"

namespace heddle {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

constexpr int64_t kWantedTiles = 16;
/// Channels of one tile: a multiple of the widest vector.
constexpr int64_t kChannelBlock = 16;
/// Elements of x that one call of the weight gradient takes.
constexpr int64_t kChunkElements = int64_t{1} << 19;

/// What one call computes: so many images, groups, and channels per group.
struct Piece {
  int64_t images, groups, in, out;
};

size_t aligned(size_t bytes) { return checked_add(bytes, 63, "conv2d") / 64 * 64; }

/// Moves an operand between its own layout and the primitive's, if they differ.
class Relayout {
 public:
  Relayout() = default;
  Relayout(const memory::desc& from, const memory::desc& to) : from_(from), to_(to), needed_(from != to) {
    if (needed_) primitive_ = dnnl::reorder(dnnl::reorder::primitive_desc(cpu_engine(), from, cpu_engine(), to));
  }
  bool needed() const { return needed_; }
  void run(const void* from, void* to) const {
    dnnl::reorder(primitive_)
        .execute(cpu_stream(), {{DNNL_ARG_FROM, memory_at(from_, from)}, {DNNL_ARG_TO, memory_at(to_, to)}});
  }

 private:
  memory::desc from_, to_;
  bool needed_ = false;
  dnnl::reorder primitive_;
};

/// A primitive for one piece, with the way of each operand into its layout.
class Convolution {
 public:
  Convolution(ConvPass pass, const ConvProblem& problem, const Piece& piece);

  size_t x_bytes() const { return x_.needed() ? aligned(x_desc_.get_size()) : 0; }
  size_t y_bytes() const { return y_.needed() ? aligned(y_desc_.get_size()) : 0; }
  size_t w_bytes() const { return aligned(w_desc_.get_size()); }
  size_t workspace_bytes() const { return aligned(workspace_desc_.get_size()); }
  const memory::desc& w_desc() const { return w_desc_; }
  const Relayout& x() const { return x_; }
  const Relayout& w() const { return w_; }
  const Relayout& y() const { return y_; }

  /// On operands in the primitive's layouts.
  void run(const void* x, const void* w, const float* bias, const void* y, std::byte* workspace) const;

 private:
  template <class Made>
  void adopt(const Made& made);

  ConvPass pass_;
  dnnl::primitive primitive_;
  memory::desc x_desc_, w_desc_, y_desc_, bias_desc_, workspace_desc_;
  Relayout x_, w_, y_;
};

memory::desc strided(const memory::dims& dims, const memory::dims& strides) {
  return {dims, memory::data_type::f32, strides};
}

Convolution::Convolution(ConvPass pass, const ConvProblem& problem, const Piece& piece) : pass_(pass) {
  const auto& [wy, wx] = problem.window;
  const int64_t k = problem.kernel();
  const memory::dims x_dims{piece.images, piece.groups * piece.in, wy.input, wx.input};
  const memory::dims y_dims{piece.images, piece.groups * piece.out, wy.output, wx.output};
  // Channels of a single image lie dense; to the library a stride that nothing steps over would make them sparse.
  const auto image_stride = [&](int64_t per_group, int64_t of_piece, int64_t pixels) {
    return (piece.images == 1 ? of_piece : problem.groups * per_group) * pixels;
  };
  const memory::desc own_x =
      strided(x_dims, {image_stride(problem.in, x_dims[1], problem.pixels_in()), problem.pixels_in(), wx.input, 1});
  const memory::desc own_y =
      strided(y_dims, {image_stride(problem.out, y_dims[1], problem.pixels_out()), problem.pixels_out(), wx.output, 1});
  memory::dims w_dims{piece.out, piece.in, wy.size, wx.size};
  memory::dims w_strides{problem.in * k, k, wx.size, 1};
  if (problem.groups > 1) {
    w_dims.insert(w_dims.begin(), piece.groups);
    w_strides.insert(w_strides.begin(), problem.out * problem.in * k);
  }
  const auto any = [](const memory::dims& dims) { return memory::desc(dims, memory::data_type::f32, Tag::any); };
  const memory::desc x = problem.pointwise() ? own_x : any(x_dims);
  const memory::desc y = problem.pointwise() ? own_y : any(y_dims);
  const memory::dims strides{wy.stride, wx.stride};
  const memory::dims dilations{wy.dilation - 1, wx.dilation - 1};
  const memory::dims before{wy.before, wx.before};
  // What the stride leaves over at the end is no padding to oneDNN, which wants its sizes to be exact.
  const auto after = [](const WindowAxis& a) { return (a.output - 1) * a.stride + a.reach() - a.input - a.before; };
  const memory::dims behind{after(wy), after(wx)};
  const auto direct = dnnl::algorithm::convolution_direct;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  bias_desc_ = memory::desc({piece.groups * piece.out}, memory::data_type::f32, Tag::a);
  using Forward = dnnl::convolution_forward;
  const auto kind = pass == ConvPass::kForward ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;
  const auto described =
      problem.bias ? Forward::desc(kind, direct, x, any(w_dims), bias_desc_, y, strides, dilations, before, behind)
                   : Forward::desc(kind, direct, x, any(w_dims), y, strides, dilations, before, behind);
  const Forward::primitive_desc forward(described, attributes, cpu_engine());
  if (pass == ConvPass::kForward) {
    primitive_ = Forward(forward);
    x_desc_ = forward.src_desc();
    w_desc_ = forward.weights_desc();
    y_desc_ = forward.dst_desc();
    workspace_desc_ = forward.scratchpad_desc();
  } else if (pass == ConvPass::kInput) {
    const dnnl::convolution_backward_data::primitive_desc made(
        {direct, x, any(w_dims), y, strides, dilations, before, behind}, attributes, cpu_engine(), forward);
    primitive_ = dnnl::convolution_backward_data(made);
    x_desc_ = made.diff_src_desc();
    w_desc_ = made.weights_desc();
    y_desc_ = made.diff_dst_desc();
    workspace_desc_ = made.scratchpad_desc();
  } else {
    const dnnl::convolution_backward_weights::primitive_desc made(
        {direct, x, any(w_dims), y, strides, dilations, before, behind}, attributes, cpu_engine(), forward);
    primitive_ = dnnl::convolution_backward_weights(made);
    x_desc_ = made.src_desc();
    w_desc_ = made.diff_weights_desc();
    y_desc_ = made.diff_dst_desc();
    workspace_desc_ = made.scratchpad_desc();
  }
  const memory::desc own_w = strided(w_dims, w_strides);
  x_ = pass == ConvPass::kInput ? Relayout(x_desc_, own_x) : Relayout(own_x, x_desc_);
  w_ = pass == ConvPass::kWeight ? Relayout(w_desc_, own_w) : Relayout(own_w, w_desc_);
  y_ = pass == ConvPass::kForward ? Relayout(y_desc_, own_y) : Relayout(own_y, y_desc_);
}

void Convolution::run(const void* x, const void* w, const float* bias, const void* y, std::byte* workspace) const {
  constexpr std::array<std::array<int, 3>, 3> kRoles{{{DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
                                                      {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST},
                                                      {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST}}};
  const auto& roles = kRoles[static_cast<size_t>(pass_)];
  std::unordered_map<int, memory> arguments{{roles[0], memory_at(x_desc_, x)},
                                            {roles[1], memory_at(w_desc_, w)},
                                            {roles[2], memory_at(y_desc_, y)},
                                            {DNNL_ARG_SCRATCHPAD, memory_at(workspace_desc_, workspace)}};
  if (bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, memory_at(bias_desc_, bias));
  primitive_.execute(cpu_stream(), arguments);
}

/// The channels cut into parts: ranges of groups where there are several, else of the pass's own result channels.
struct Parts {
  int64_t size = 0, total = 0;

  int64_t count() const { return (total + size - 1) / size; }
  int64_t begin(int64_t part) const { return part * size; }
  int64_t length(int64_t part) const { return std::min(size, total - begin(part)); }
  bool last(int64_t part) const { return part + 1 == count(); }
};

Parts choose_parts(ConvPass pass, const ConvProblem& problem) {
  Parts parts;
  parts.total = problem.groups > 1 ? problem.groups : pass == ConvPass::kInput ? problem.in : problem.out;
  // The weight gradient's tiles are parts alone: its images are summed up.
  const int64_t images = pass == ConvPass::kWeight ? 1 : problem.images;
  const int64_t wanted = std::max<int64_t>(1, (kWantedTiles + images - 1) / images);
  const int64_t channels = problem.groups > 1 ? std::min(problem.in, problem.out) : 1;
  const int64_t block = std::max<int64_t>(1, kChannelBlock / channels);
  const int64_t even = (parts.total + wanted - 1) / wanted;
  parts.size = std::min(parts.total, (even + block - 1) / block * block);
  return parts;
}

Piece piece_of(ConvPass pass, const ConvProblem& problem, int64_t images, int64_t length) {
  if (problem.groups > 1) return {images, length, problem.in, problem.out};
  if (pass == ConvPass::kInput) return {images, 1, length, problem.out};
  return {images, 1, problem.in, length};
}

/// Where the part's share of each operand begins, in elements, in image 0.
struct PartOffsets {
  int64_t x, w, y, channel;
};

PartOffsets offsets_of(ConvPass pass, const ConvProblem& problem, int64_t begin) {
  const int64_t in = problem.groups > 1 ? begin * problem.in : pass == ConvPass::kInput ? begin : 0;
  const int64_t out = problem.groups > 1 ? begin * problem.out : pass == ConvPass::kInput ? 0 : begin;
  const int64_t w = problem.groups > 1 || pass != ConvPass::kInput ? out * problem.in : in;
  return {in * problem.pixels_in(), w * problem.kernel(), out * problem.pixels_out(), out};
}

/// y from x, or dx from dy: tiles of one image and one part; the weight is rearranged once per run, or once for all
/// runs where it is frozen.
class ImagePlan {
 public:
  ImagePlan(ConvPass pass, const ConvProblem& problem)
      : pass_(pass), problem_(problem), parts_(choose_parts(pass, problem)) {
    for (const bool last : {false, true}) {
      const int64_t length = parts_.length(last ? parts_.count() - 1 : 0);
      made_[last] = std::make_shared<const Convolution>(pass, problem, piece_of(pass, problem, 1, length));
    }
    packed_part_ = made_[0]->w_bytes();
    for (const auto& each : made_) {
      x_bytes_ = std::max(x_bytes_, each->x_bytes());
      y_bytes_ = std::max(y_bytes_, each->y_bytes());
      workspace_bytes_ = std::max(workspace_bytes_, each->workspace_bytes());
    }
  }

  bool packs() const { return made_[0]->w().needed() || made_[1]->w().needed(); }
  size_t packed_bytes() const { return checked_mul(packed_part_, static_cast<size_t>(parts_.count()), "conv2d"); }
  size_t scratch_per_thread() const { return x_bytes_ + y_bytes_ + workspace_bytes_; }

  void pack(const float* w, std::byte* packed, TilePool& pool) const {
    pool.run(static_cast<size_t>(parts_.count()), [&](size_t tile, size_t) {
      const auto part = static_cast<int64_t>(tile);
      const Convolution& made = *made_[parts_.last(part)];
      const float* from = w + offsets_of(pass_, problem_, parts_.begin(part)).w;
      std::byte* to = packed + tile * packed_part_;
      if (made.w().needed())
        guarded("conv2d", "a weight to be rearranged", [&] { made.w().run(from, to); });
      else
        std::memcpy(to, from, made.w_bytes());
    });
  }

  /// `source` and `result`: x and y, or dy and dx. `weight`: packed, or as it lies where the plan does not pack.
  void run(const float* source, const std::byte* weight, const float* bias, float* result,
           const RunArguments& arguments) const {
    const int64_t parts = parts_.count();
    const bool packed = packs();
    arguments.pool.run(static_cast<size_t>(problem_.images * parts), [&](size_t tile, size_t thread) {
      const auto part = static_cast<int64_t>(tile) % parts;
      const auto image = static_cast<int64_t>(tile) / parts;
      const PartOffsets at = offsets_of(pass_, problem_, parts_.begin(part));
      const int64_t x = image * problem_.groups * problem_.in * problem_.pixels_in() + at.x;
      const int64_t y = image * problem_.groups * problem_.out * problem_.pixels_out() + at.y;
      const size_t own = packed ? static_cast<size_t>(part) * packed_part_ : static_cast<size_t>(at.w) * sizeof(float);
      const bool forward = pass_ == ConvPass::kForward;
      run_tile(*made_[parts_.last(part)], source + (forward ? x : y), weight + own,
               bias == nullptr ? nullptr : bias + at.channel, result + (forward ? y : x),
               arguments.thread_scratch<std::byte>(thread));
    });
  }

 private:
  void run_tile(const Convolution& made, const float* source, const void* weight, const float* bias, float* result,
                std::byte* scratch) const {
    const bool forward = pass_ == ConvPass::kForward;
    const Relayout& way_in = forward ? made.x() : made.y();
    const Relayout& way_out = forward ? made.y() : made.x();
    std::byte* const inner_source = scratch + (forward ? 0 : x_bytes_);
    std::byte* const inner_result = scratch + (forward ? x_bytes_ : 0);
    guarded("conv2d", "a convolution to run", [&] {
      if (way_in.needed()) way_in.run(source, inner_source);
      const void* from = way_in.needed() ? static_cast<const void*>(inner_source) : source;
      void* to = way_out.needed() ? static_cast<void*>(inner_result) : result;
      made.run(forward ? from : to, weight, bias, forward ? to : from, scratch + x_bytes_ + y_bytes_);
      if (way_out.needed()) way_out.run(inner_result, result);
    });
  }

  ConvPass pass_;
  ConvProblem problem_;
  Parts parts_;
  /// By whether the part is the last one.
  std::array<std::shared_ptr<const Convolution>, 2> made_;
  size_t packed_part_ = 0, x_bytes_ = 0, y_bytes_ = 0, workspace_bytes_ = 0;
};

/// dw from x and dy. A tile is one part and one range of images, taken in chunks whose results are added up in order;
/// where there are several ranges, their sums are added up in order at the end.
class WeightPlan {
 public:
  explicit WeightPlan(const ConvProblem& problem)
      : problem_(problem), parts_(choose_parts(ConvPass::kWeight, problem)) {
    ranges_ = std::min(problem.images, std::max<int64_t>(1, kWantedTiles / parts_.count()));
    range_ = (problem.images + ranges_ - 1) / ranges_;
    ranges_ = (problem.images + range_ - 1) / range_;
    const int64_t elements = problem.groups * problem.in * problem.pixels_in();
    // Operands that are taken as they lie must be dense.
    chunk_ = problem.pointwise() ? 1 : std::clamp<int64_t>(kChunkElements / elements, 1, range_);
    make_all();
    if (!one_layout()) {
      // Sums over chunks are taken in the primitive's layout, which then must not depend on the chunk's size.
      chunk_ = 1;
      made_.clear();
      make_all();
    }
    dw_count_ = static_cast<size_t>(problem.groups * problem.out * problem.in * problem.kernel());
  }

  size_t scratch_per_thread() const { return x_bytes_ + y_bytes_ + 2 * w_bytes_ + workspace_bytes_; }

  void run(const float* x, const float* dy, float* dw, const RunArguments& arguments) const {
    RunBuffer partial(ranges_ > 1 ? checked_mul(dw_count_, (ranges_ - 1) * sizeof(float), "conv2d") : 0);
    auto* others = reinterpret_cast<float*>(partial.data());
    arguments.pool.run(static_cast<size_t>(parts_.count() * ranges_), [&](size_t tile, size_t thread) {
      const auto part = static_cast<int64_t>(tile) % parts_.count();
      const auto range = static_cast<int64_t>(tile) / parts_.count();
      float* to = range == 0 ? dw : others + static_cast<size_t>(range - 1) * dw_count_;
      guarded("conv2d", "a convolution to run",
              [&] { run_tile(x, dy, to, part, range, arguments.thread_scratch<std::byte>(thread)); });
    });
    if (ranges_ == 1) return;
    for_row_ranges(arguments.pool, dw_count_, kRowTileElements, [&](size_t begin, size_t end) {
      for (int64_t range = 1; range < ranges_; ++range) {
        const float* from = others + static_cast<size_t>(range - 1) * dw_count_;
        for (size_t i = begin; i < end; ++i) dw[i] += from[i];
      }
    });
  }

 private:
  int64_t range_end(int64_t range) const { return std::min(problem_.images, (range + 1) * range_); }

  void make_all() {
    for (int64_t range = 0; range < ranges_; ++range)
      for (int64_t image = range * range_; image < range_end(range); image += chunk_)
        make(std::min(chunk_, range_end(range) - image));
  }

  bool one_layout() const {
    const auto differs = [&](const auto& entry) {
      return entry.second->w_desc() != made_.at({made_.begin()->first.first, entry.first.second})->w_desc();
    };
    return std::none_of(made_.begin(), made_.end(), differs);
  }

  void make(int64_t images) {
    for (const bool last : {false, true}) {
      const int64_t length = parts_.length(last ? parts_.count() - 1 : 0);
      auto& made = made_[{images, last}];
      if (made) continue;
      made = std::make_shared<const Convolution>(ConvPass::kWeight, problem_,
                                                 piece_of(ConvPass::kWeight, problem_, images, length));
      x_bytes_ = std::max(x_bytes_, made->x_bytes());
      y_bytes_ = std::max(y_bytes_, made->y_bytes());
      w_bytes_ = std::max(w_bytes_, made->w_bytes());
      workspace_bytes_ = std::max(workspace_bytes_, made->workspace_bytes());
    }
  }

  void run_tile(const float* x, const float* dy, float* dw, int64_t part, int64_t range, std::byte* scratch) const {
    std::byte* const inner_y = scratch + x_bytes_;
    auto* const total = reinterpret_cast<float*>(inner_y + y_bytes_);
    auto* const fresh = reinterpret_cast<float*>(inner_y + y_bytes_ + w_bytes_);
    std::byte* const workspace = inner_y + y_bytes_ + 2 * w_bytes_;
    const PartOffsets at = offsets_of(ConvPass::kWeight, problem_, parts_.begin(part));
    const int64_t x_image = problem_.groups * problem_.in * problem_.pixels_in();
    const int64_t y_image = problem_.groups * problem_.out * problem_.pixels_out();
    const int64_t first = range * range_;
    for (int64_t image = first; image < range_end(range); image += chunk_) {
      const int64_t images = std::min(chunk_, range_end(range) - image);
      const Convolution& made = *made_.at({images, parts_.last(part)});
      const float* own_x = x + image * x_image + at.x;
      const float* own_y = dy + image * y_image + at.y;
      if (made.x().needed()) made.x().run(own_x, scratch);
      if (made.y().needed()) made.y().run(own_y, inner_y);
      made.run(made.x().needed() ? static_cast<const void*>(scratch) : own_x, image == first ? total : fresh, nullptr,
               made.y().needed() ? static_cast<const void*>(inner_y) : own_y, workspace);
      if (image != first)
        for (size_t i = 0; i < made.w_bytes() / sizeof(float); ++i) total[i] += fresh[i];
    }
    const Convolution& made = *made_.at({std::min(chunk_, range_end(range) - first), parts_.last(part)});
    if (made.w().needed())
      made.w().run(total, dw + at.w);
    else
      std::memcpy(dw + at.w, total, parts_.length(part) * dw_count_ / parts_.total * sizeof(float));
  }

  ConvProblem problem_;
  Parts parts_;
  int64_t ranges_ = 1, range_ = 1, chunk_ = 1;
  /// By the number of images, and whether the part is the last one.
  std::map<std::pair<int64_t, bool>, std::shared_ptr<const Convolution>> made_;
  size_t dw_count_ = 0, x_bytes_ = 0, y_bytes_ = 0, w_bytes_ = 0, workspace_bytes_ = 0;
};

/// Checks the three operands, wherever the instruction has them.
ConvProblem read_problem(const KernelRequest& request, const Operand& x, const Operand& w, const Operand& y) {
  for (const Operand* operand : {&x, &w, &y})
    request.check(operand->present && operand->dtype == DType::kF32 && operand->shape.rank() == 4,
                  "x, w and y f32 of rank 4", operand_text(*operand));
  ConvProblem problem;
  problem.images = x.shape[0];
  problem.groups = request.attributes.integer("groups");
  request.check(problem.groups >= 1 && x.shape[1] >= 1 && w.shape[0] >= 1 && x.shape[1] % problem.groups == 0 &&
                    w.shape[0] % problem.groups == 0,
                "groups that divide " + std::to_string(x.shape[1]) + " and " + std::to_string(w.shape[0]) + " channels",
                std::to_string(problem.groups));
  problem.in = x.shape[1] / problem.groups;
  problem.out = w.shape[0] / problem.groups;
  request.check(w.shape[1] == problem.in, "a weight of " + std::to_string(problem.in) + " input channels",
                w.shape.str());
  problem.window = read_window(request, x.shape, w.shape[2], w.shape[3], y.shape);
  request.check(y.shape[0] == problem.images && y.shape[1] == w.shape[0],
                "y [" + std::to_string(problem.images) + ", " + std::to_string(w.shape[0]) + ", ...]", y.shape.str());
  return problem;
}

/// Names the packed form of a frozen weight, which depends on everything that the library's choice may depend on.
std::string packing_key(const char* kind, ConvPass pass, const ConvProblem& problem) {
  std::string key = kind + std::string(pass == ConvPass::kForward ? "/forward" : "/input");
  for (const int64_t size :
       {problem.images, problem.groups, problem.window.y.input, problem.window.x.input, problem.window.y.stride,
        problem.window.x.stride, problem.window.y.dilation, problem.window.x.dilation, problem.window.y.before,
        problem.window.x.before, problem.window.y.size, problem.window.x.size, problem.window.y.output,
        problem.window.x.output})
    key += "/" + std::to_string(size);
  return key;
}

/// Operands (source, w[, bias]) -> result by one way to compute it.
template <class Plan>
CompiledKernel planned_kernel(const KernelRequest& request, const std::string& key, bool bias,
                              const std::shared_ptr<const Plan>& plan) {
  const Operand& w = request.inputs[1];
  const size_t shared = plan->packs() ? aligned(plan->packed_bytes()) : 0;
  CompiledKernel kernel;
  kernel.scratch_per_thread = aligned(plan->scratch_per_thread());
  std::shared_ptr<AlignedBuffer> frozen;
  if (shared != 0 && w.frozen) {
    frozen = std::static_pointer_cast<AlignedBuffer>(w.frozen->derived(key, [&]() -> std::shared_ptr<void> {
      const Storage::Pin pin(w.frozen);
      auto packed = std::make_shared<AlignedBuffer>(shared);
      plan->pack(reinterpret_cast<const float*>(pin.data()), packed->data(), TilePool::shared());
      return packed;
    }));
    kernel.consumed_inputs = {1};
  }
  const bool packs = shared != 0 && !frozen;
  kernel.run = [plan, frozen, packs, shared, bias](const RunArguments& arguments) {
    const RunBuffer fresh(packs ? shared : 0);
    if (packs) plan->pack(arguments.input<float>(1), fresh.data(), arguments.pool);
    const std::byte* weight = frozen ? frozen->data() : packs ? fresh.data() : arguments.input<std::byte>(1);
    plan->run(arguments.input<float>(0), weight, bias ? arguments.input<float>(2) : nullptr, arguments.output<float>(0),
              arguments);
  };
  return kernel;
}

/// The forward pass and the gradient of x.
CompiledKernel image_kernel(const KernelRequest& request, ConvPass pass, const ConvProblem& problem) {
  if (problem.images == 0) return {.run = [](const RunArguments&) {}};
  if (DirectConvolution::fits(pass, problem))
    return planned_kernel(request, packing_key("conv2d_direct", pass, problem), problem.bias,
                          std::make_shared<const DirectConvolution>(pass, problem));
  return planned_kernel(request, packing_key("conv2d", pass, problem), problem.bias,
                        guarded("conv2d", "a convolution that oneDNN can do",
                                [&] { return std::make_shared<const ImagePlan>(pass, problem); }));
}

CompiledKernel compile_conv2d(const KernelRequest& request) {
  request.expect_counts(3, 1);
  ConvProblem problem = read_problem(request, request.inputs[0], request.inputs[1], request.outputs[0]);
  problem.bias = request.inputs[2].present;
  check_optional(request, request.inputs[2], "bias", DType::kF32, Shape{request.inputs[1].shape[0]});
  return image_kernel(request, ConvPass::kForward, problem);
}

CompiledKernel compile_conv2d_input_vjp(const KernelRequest& request) {
  request.expect_counts(2, 1);
  return image_kernel(request, ConvPass::kInput,
                      read_problem(request, request.outputs[0], request.inputs[1], request.inputs[0]));
}

CompiledKernel compile_conv2d_weight_vjp(const KernelRequest& request) {
  request.expect_counts(2, 1);
  const ConvProblem problem = read_problem(request, request.inputs[0], request.outputs[0], request.inputs[1]);
  if (problem.images == 0) {
    const size_t bytes = request.outputs[0].shape.bytes(DType::kF32);
    return {.run = [bytes](const RunArguments& arguments) { std::memset(arguments.out[0], 0, bytes); }};
  }
  const auto plan = guarded("conv2d", "a convolution that oneDNN can do",
                            [&] { return std::make_shared<const WeightPlan>(problem); });
  CompiledKernel kernel;
  kernel.scratch_per_thread = plan->scratch_per_thread();
  kernel.run = [plan](const RunArguments& arguments) {
    plan->run(arguments.input<float>(0), arguments.input<float>(1), arguments.output<float>(0), arguments);
  };
  return kernel;
}

}  // namespace

void register_conv(KernelTable& table) {
  table["conv2d"] = compile_conv2d;
  table["conv2d_input_vjp"] = compile_conv2d_input_vjp;
  table["conv2d_weight_vjp"] = compile_conv2d_weight_vjp;
}

}  // namespace heddle
