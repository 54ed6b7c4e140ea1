// Two-dimensional convolution and its two adjoints as products of matrices that are never built: tiles of them are
// gathered from the images into shared memory. x [n, c, h, w], w [o, c/groups, kh, kw], y [n, o, oh, ow].
#include <algorithm>

#include "cuda/core/launch.cuh"
#include "cuda/core/shared.cuh"
#include "cuda/kernels/kernel_table.h"
#include "kernels/conv.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kTile = 64, kDepth = 16, kEach = 4, kAcross = kTile / kEach;
/// Blocks that a multiprocessor is to hold: what is gathered and the sums fit into 80 registers.
constexpr unsigned kBlocksTogether = 3;
/// Blocks that keep every multiprocessor busy, and the shortest sum worth a block of its own.
constexpr int64_t kWantedBlocks = 512;
constexpr int64_t kSmallestPiece = 512;

/// `batch` products [m, depth] x [depth, n], whose sums are cut into pieces.
struct ProductSizes {
  int64_t batch = 0, m = 0, n = 0, depth = 0;
  int64_t pieces = 1, piece = 0;

  __host__ __device__ int64_t units() const { return batch * ceil_div(m, kTile) * ceil_div(n, kTile) * pieces; }
};

/// Problem::left(batch, row, d) and ::right(batch, d, column) are elements of the factors, ::store(batch, row, column,
/// piece, sum) takes what comes out.
template <class Problem>
__global__ void __launch_bounds__(kThreads, kBlocksTogether) multiply_gathered(ProductSizes sizes, Problem problem) {
  __shared__ Shared<float, kDepth*(kTile + 1)> a_tile, b_tile;
  const unsigned thread = threadIdx.x;
  const unsigned own_row = thread / kAcross, own_column = thread % kAcross;
  const int64_t row_tiles = ceil_div(sizes.m, kTile), column_tiles = ceil_div(sizes.n, kTile);
  for (int64_t unit = blockIdx.x; unit < sizes.units(); unit += gridDim.x) {
    const int64_t first_row = unit % row_tiles * kTile, first_column = unit / row_tiles % column_tiles * kTile;
    const int64_t batch = unit / row_tiles / column_tiles % sizes.batch;
    const int64_t piece = unit / row_tiles / column_tiles / sizes.batch;
    const int64_t begin = piece * sizes.piece;
    const int64_t end = begin + sizes.piece < sizes.depth ? begin + sizes.piece : sizes.depth;
    float sums[kEach][kEach] = {};
    for (int64_t first = begin; first < end; first += kDepth) {
      for (unsigned e = thread; e < kDepth * kTile; e += kThreads) {
        const unsigned d = e % kDepth, i = e / kDepth;
        const bool inside = first + d < end && first_row + i < sizes.m;
        a_tile[d * (kTile + 1) + i] = inside ? problem.left(batch, first_row + i, first + d) : 0.0F;
      }
      for (unsigned e = thread; e < kDepth * kTile; e += kThreads) {
        const unsigned d = e / kTile, j = e % kTile;
        const bool inside = first + d < end && first_column + j < sizes.n;
        b_tile[d * (kTile + 1) + j] = inside ? problem.right(batch, first + d, first_column + j) : 0.0F;
      }
      __syncthreads();
      for (unsigned d = 0; d < kDepth; ++d) {
        float a[kEach], b[kEach];
#pragma unroll
        for (unsigned i = 0; i < kEach; ++i) a[i] = a_tile[d * (kTile + 1) + own_row + i * kAcross];
#pragma unroll
        for (unsigned j = 0; j < kEach; ++j) b[j] = b_tile[d * (kTile + 1) + own_column + j * kAcross];
#pragma unroll
        for (unsigned i = 0; i < kEach; ++i)
#pragma unroll
          for (unsigned j = 0; j < kEach; ++j) sums[i][j] += a[i] * b[j];
      }
      __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < kEach; ++i)
#pragma unroll
      for (unsigned j = 0; j < kEach; ++j) {
        const int64_t row = first_row + own_row + i * kAcross, column = first_column + own_column + j * kAcross;
        if (row < sizes.m && column < sizes.n) problem.store(batch, row, column, piece, sums[i][j]);
      }
  }
}

/// What all three have in common.
struct Geometry {
  ConvProblem problem;

  __device__ int64_t kernel() const { return problem.window.y.size * problem.window.x.size; }
  __device__ int64_t pixels_in() const { return problem.window.y.input * problem.window.x.input; }
  __device__ int64_t pixels_out() const { return problem.window.y.output * problem.window.x.output; }
  /// Where channel `channel` of a group starts in an operand with `per_group` channels of so many pixels.
  __device__ int64_t plane(int64_t image, int64_t group, int64_t channel, int64_t per_group, int64_t pixels) const {
    return ((image * problem.groups + group) * per_group + channel) * pixels;
  }
  /// The number of the input pixel that tap `tap` of output pixel `pixel` meets; -1 outside of the image.
  __device__ int64_t input_of(int64_t pixel, int64_t tap) const {
    const WindowAxis &wy = problem.window.y, &wx = problem.window.x;
    const int64_t iy = pixel / wx.output * wy.stride - wy.before + tap / wx.size * wy.dilation;
    const int64_t ix = pixel % wx.output * wx.stride - wx.before + tap % wx.size * wx.dilation;
    return iy < 0 || iy >= wy.input || ix < 0 || ix >= wx.input ? -1 : iy * wx.input + ix;
  }
  /// The output along one axis that meets `input` with tap `tap`; -1 where there is none.
  static __device__ int64_t output_of(const WindowAxis& axis, int64_t input, int64_t tap) {
    const int64_t at = input + axis.before - tap * axis.dilation;
    return at < 0 || at % axis.stride != 0 || at / axis.stride >= axis.output ? -1 : at / axis.stride;
  }
};

/// y: rows are output channels, columns pixels of all images, sums go over input channels and taps.
struct Forward : Geometry {
  const float* x;
  const float* w;
  const float* bias;
  float* y;

  __device__ float left(int64_t group, int64_t row, int64_t d) const {
    return w[(group * problem.out + row) * problem.in * kernel() + d];
  }
  __device__ float right(int64_t group, int64_t d, int64_t column) const {
    const int64_t place = input_of(column % pixels_out(), d % kernel());
    if (place < 0) return 0.0F;
    return x[plane(column / pixels_out(), group, d / kernel(), problem.in, pixels_in()) + place];
  }
  __device__ void store(int64_t group, int64_t row, int64_t column, int64_t, float sum) const {
    const float added = bias == nullptr ? 0.0F : bias[group * problem.out + row];
    y[plane(column / pixels_out(), group, row, problem.out, pixels_out()) + column % pixels_out()] = sum + added;
  }
};

/// dx: rows are input channels, columns pixels of all images, sums go over output channels and taps.
struct Input : Geometry {
  const float* dy;
  const float* w;
  float* dx;

  __device__ float left(int64_t group, int64_t row, int64_t d) const {
    return w[((group * problem.out + d / kernel()) * problem.in + row) * kernel() + d % kernel()];
  }
  __device__ float right(int64_t group, int64_t d, int64_t column) const {
    const WindowAxis &wy = problem.window.y, &wx = problem.window.x;
    const int64_t pixel = column % pixels_in(), tap = d % kernel();
    const int64_t oy = output_of(wy, pixel / wx.input, tap / wx.size);
    const int64_t ox = output_of(wx, pixel % wx.input, tap % wx.size);
    if (oy < 0 || ox < 0) return 0.0F;
    return dy[plane(column / pixels_in(), group, d / kernel(), problem.out, pixels_out()) + oy * wx.output + ox];
  }
  __device__ void store(int64_t group, int64_t row, int64_t column, int64_t, float sum) const {
    dx[plane(column / pixels_in(), group, row, problem.in, pixels_in()) + column % pixels_in()] = sum;
  }
};

/// dw: rows are output channels, columns input channels and taps, sums go over pixels of all images. Each piece of them
/// has a weight of its own in `parts`.
struct Weight : Geometry {
  const float* x;
  const float* dy;
  float* parts;

  __device__ float left(int64_t group, int64_t row, int64_t d) const {
    return dy[plane(d / pixels_out(), group, row, problem.out, pixels_out()) + d % pixels_out()];
  }
  __device__ float right(int64_t group, int64_t d, int64_t column) const {
    const int64_t place = input_of(d % pixels_out(), column % kernel());
    if (place < 0) return 0.0F;
    return x[plane(d / pixels_out(), group, column / kernel(), problem.in, pixels_in()) + place];
  }
  __device__ void store(int64_t group, int64_t row, int64_t column, int64_t piece, float sum) const {
    const int64_t width = problem.in * kernel();
    parts[((piece * problem.groups + group) * problem.out + row) * width + column] = sum;
  }
};

__global__ void join_parts(const float* parts, float* dw, int64_t size, int64_t pieces) {
  for (int64_t at = first_unit(); at < size; at += unit_step()) {
    float total = 0.0F;
    for (int64_t piece = 0; piece < pieces; ++piece) total += parts[piece * size + at];
    dw[at] = total;
  }
}

template <class Problem>
void start(const Run& run, const ProductSizes& sizes, const Problem& problem) {
  launch(run, multiply_gathered<Problem>, {blocks_for(sizes.units()), kThreads}, sizes, problem);
}

/// Checked by the CPU's kernel.
ConvProblem read_problem(const KernelRequest& request, const Operand& x, const Operand& w, const Operand& y) {
  ConvProblem problem;
  problem.images = x.shape[0];
  problem.groups = request.attributes.integer("groups");
  problem.in = x.shape[1] / problem.groups;
  problem.out = w.shape[0] / problem.groups;
  problem.window = read_window(request, x.shape, w.shape[2], w.shape[3], y.shape);
  return problem;
}

Kernel compile_forward(const KernelRequest& request) {
  const ConvProblem problem = read_problem(request, request.inputs[0], request.inputs[1], request.outputs[0]);
  if (problem.images == 0) return nothing();
  const int64_t depth = problem.in * problem.kernel();
  const ProductSizes sizes{problem.groups, problem.out, problem.images * problem.pixels_out(), depth, 1, depth};
  return {.run = [problem, sizes](const Run& run) {
    start(run, sizes,
          Forward{{problem}, run.input<float>(0), run.input<float>(1), run.input<float>(2), run.output<float>(0)});
  }};
}

Kernel compile_input_vjp(const KernelRequest& request) {
  const ConvProblem problem = read_problem(request, request.outputs[0], request.inputs[1], request.inputs[0]);
  if (problem.images == 0) return nothing();
  const int64_t depth = problem.out * problem.kernel();
  const ProductSizes sizes{problem.groups, problem.in, problem.images * problem.pixels_in(), depth, 1, depth};
  return {.run = [problem, sizes](const Run& run) {
    start(run, sizes, Input{{problem}, run.input<float>(0), run.input<float>(1), run.output<float>(0)});
  }};
}

Kernel compile_weight_vjp(const KernelRequest& request) {
  const ConvProblem problem = read_problem(request, request.inputs[0], request.outputs[0], request.inputs[1]);
  const int64_t size = problem.groups * problem.out * problem.in * problem.kernel();
  if (problem.images == 0)
    return {.run = [size](const Run& run) {
      check(cudaMemsetAsync(run.out[0], 0, static_cast<size_t>(size) * sizeof(float), run.stream),
            run.report.operation);
    }};
  ProductSizes sizes{problem.groups, problem.out, problem.in * problem.kernel(), problem.images * problem.pixels_out()};
  sizes.piece = std::max(kSmallestPiece, ceil_div(sizes.depth, ceil_div(kWantedBlocks, sizes.units())));
  sizes.pieces = ceil_div(sizes.depth, sizes.piece);
  Kernel kernel;
  if (sizes.pieces > 1) kernel.scratch_bytes = static_cast<size_t>(sizes.pieces * size) * sizeof(float);
  kernel.run = [problem, sizes, size](const Run& run) {
    float* const parts = sizes.pieces > 1 ? run.scratch_at<float>(0) : run.output<float>(0);
    start(run, sizes, Weight{{problem}, run.input<float>(0), run.input<float>(1), parts});
    if (sizes.pieces > 1) launch(run, join_parts, grid_of(size), parts, run.output<float>(0), size, sizes.pieces);
  };
  return kernel;
}

}  // namespace

void register_conv(KernelTable& table) {
  table["conv2d"] = compile_forward;
  table["conv2d_input_vjp"] = compile_input_vjp;
  table["conv2d_weight_vjp"] = compile_weight_vjp;
}

}  // namespace heddle::cuda
