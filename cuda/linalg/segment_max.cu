// `segment_max`: y[s] = max of the rows x[i] with segment[i] = s; -infinity where there are none. A thread takes a row
// and column, and the order in which maxima meet does not matter: numbers become integers that grow with them, with NaN
// above all.
#include <memory>
#include <string>

#include "cuda/core/launch.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

struct SingleBits {
  using Bits = unsigned;
  static __device__ Bits of(float value) { return __float_as_uint(value); }
  static __device__ float value(Bits bits) { return __uint_as_float(bits); }
};
struct DoubleBits {
  using Bits = unsigned long long;
  static __device__ Bits of(double value) { return static_cast<Bits>(__double_as_longlong(value)); }
  static __device__ double value(Bits bits) { return __longlong_as_double(static_cast<long long>(bits)); }
};
template <class T>
struct BitsOf : SingleBits {};
template <>
struct BitsOf<double> : DoubleBits {};

template <class T>
using Bits = typename BitsOf<T>::Bits;
template <class T>
inline constexpr Bits<T> kSign = Bits<T>{1} << (8 * sizeof(T) - 1);

template <class T>
__device__ Bits<T> order_of(T value) {
  if (value != value) return ~Bits<T>{0};
  const Bits<T> bits = BitsOf<T>::of(value);
  return (bits & kSign<T>) != 0 ? ~bits : bits | kSign<T>;
}

/// What order_of() made its argument of: of ~0 a NaN.
template <class T>
__device__ T value_of(Bits<T> order) {
  return BitsOf<T>::value((order & kSign<T>) != 0 ? order ^ kSign<T> : ~order);
}

template <class T>
__global__ void fill_least(Bits<T>* y, int64_t count) {
  const Bits<T> least = order_of<T>(-static_cast<T>(INFINITY));
  for (int64_t at = first_unit(); at < count; at += unit_step()) y[at] = least;
}

template <class T>
__global__ void take_maxima(const int32_t* segment, const T* x, Bits<T>* y, int64_t count, int64_t width,
                            int64_t segments, Report report) {
  for (int64_t at = first_unit(); at < count * width; at += unit_step()) {
    const int64_t to = segment[at / width];
    if (within(report, to, 0, segments)) atomicMax(&y[to * width + at % width], order_of(x[at]));
  }
}

/// Of rows without columns: the segments are wrong or right all the same.
__global__ void check_segments(const int32_t* segment, int64_t count, int64_t segments, Report report) {
  for (int64_t at = first_unit(); at < count; at += unit_step()) within(report, segment[at], 0, segments);
}

template <class T>
__global__ void decode(Bits<T>* y, int64_t count) {
  for (int64_t at = first_unit(); at < count; at += unit_step()) {
    const T value = value_of<T>(y[at]);
    reinterpret_cast<T*>(y)[at] = value;
  }
}

template <class T>
Kernel maxima(const KernelRequest& request) {
  const Operand &x = request.inputs[1], &y = request.outputs[0];
  const int64_t count = x.shape[0], width = x.shape[1], segments = y.shape[0];
  const auto words = std::make_shared<const std::string>("segments below " + std::to_string(segments));
  return {.run = [=](const Run& run) {
    auto* const to = reinterpret_cast<Bits<T>*>(run.output<T>(0));
    const Report report = run.report.in_words(words->c_str());
    if (segments * width > 0) launch(run, fill_least<T>, grid_of(segments * width), to, segments * width);
    if (count * width > 0)
      launch(run, take_maxima<T>, grid_of(count * width), run.input<int32_t>(0), run.input<T>(1), to, count, width,
             segments, report);
    else if (count > 0)
      launch(run, check_segments, grid_of(count), run.input<int32_t>(0), count, segments, report);
    if (segments * width > 0) launch(run, decode<T>, grid_of(segments * width), to, segments * width);
  }};
}

Kernel compile_segment_max(const KernelRequest& request) {
  return request.inputs[1].dtype == DType::kF64 ? maxima<double>(request) : maxima<float>(request);
}

}  // namespace

void register_segment_max(KernelTable& table) { table["segment_max"] = compile_segment_max; }

}  // namespace heddle::cuda
