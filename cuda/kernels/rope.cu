// Rotary position embeddings, half-split: element i turns with element i + r, where r is the width of the table.
#include <memory>
#include <vector>

#include "cuda/core/device_buffer.h"
#include "cuda/core/launch.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

/// cosine and sine [count, width] of position times frequency.
__global__ void fill_tables(const int32_t* position, const float* frequencies, float scale, float* cosine, float* sine,
                            int64_t count, int64_t width) {
  for (int64_t at = first_unit(); at < count * width; at += unit_step()) {
    // The angle is rounded to f32, as in the models these tables must agree with; its cosine is exact to f32.
    const double angle = __fmul_rn(static_cast<float>(position[at / width]), frequencies[at % width]);
    cosine[at] = static_cast<float>(cos(angle)) * scale;
    sine[at] = static_cast<float>(sin(angle)) * scale;
  }
}

/// x [rows, heads, dim] with tables [table_rows, half] that the rows take in turn.
struct Rotation {
  int64_t rows, heads, dim, half, table_rows;
  float sign;
};

/// A thread turns a pair, or copies an element behind the pairs; x and y may be the same memory.
__global__ void rotate(Rotation shape, const float* x, const float* cosine, const float* sine, float* y) {
  const int64_t units = shape.dim - shape.half;
  for (int64_t at = first_unit(); at < shape.rows * shape.heads * units; at += unit_step()) {
    const int64_t i = at % units, vector = at / units;
    const float* const from = x + vector * shape.dim;
    float* const to = y + vector * shape.dim;
    if (i >= shape.half) {
      to[i + shape.half] = from[i + shape.half];
      continue;
    }
    const int64_t angle = vector / shape.heads % shape.table_rows * shape.half + i;
    const float c = cosine[angle], s = shape.sign * sine[angle];
    const float low = from[i], high = from[shape.half + i];
    to[i] = low * c - high * s;
    to[shape.half + i] = high * c + low * s;
  }
}

Kernel compile_rope_table(const KernelRequest& request) {
  const std::vector<double>& given = request.attributes.numbers("inverse_frequencies");
  const std::vector<float> frequencies(given.begin(), given.end());
  const auto scale = static_cast<float>(request.attributes.number("scale", 1.0));
  const auto count = static_cast<int64_t>(request.inputs[0].shape.count());
  const auto width = static_cast<int64_t>(frequencies.size());
  if (count * width == 0) return nothing();
  const auto table = std::make_shared<const DeviceTable<float>>(frequencies);
  return {.run = [=](const Run& run) {
    launch(run, fill_tables, grid_of(count * width), run.input<int32_t>(0), table->data(), scale, run.output<float>(0),
           run.output<float>(1), count, width);
  }};
}

Kernel compile_rope(const KernelRequest& request) {
  const Shape &x = request.inputs[0].shape, &table = request.inputs[1].shape;
  if (x.count() == 0) return nothing();
  const Rotation shape{.rows = x[0] * x[1],
                       .heads = x[2],
                       .dim = x[3],
                       .half = table[2],
                       .table_rows = table[0] * table[1],
                       .sign = request.attributes.integer("inverse", 0) == 1 ? -1.0F : 1.0F};
  Kernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [shape](const Run& run) {
    launch(run, rotate, grid_of(shape.rows * shape.heads * (shape.dim - shape.half)), shape, run.input<float>(0),
           run.input<float>(1), run.input<float>(2), run.output<float>(0));
  };
  return kernel;
}

}  // namespace

void register_rope(KernelTable& table) {
  table["rope_table"] = compile_rope_table;
  table["rope"] = compile_rope;
}

}  // namespace heddle::cuda
