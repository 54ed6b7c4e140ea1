// Recurrences along one axis, forwards or backwards: `cumsum`, `logcumsumexp`, and `linear_scan` h_t = a_t h_(t-1) +
// b_t. A thread walks along each line of the axis, in the CPU's order; neighbouring threads have neighbouring lines.
#include "cuda/core/launch.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 128;

/// x [outer, size, inner].
struct Lines {
  int64_t outer = 0, size = 0, inner = 0;
  bool reverse = false;

  __host__ __device__ int64_t count() const { return outer * inner; }
  /// Where step t of a line stands.
  __device__ int64_t at(int64_t line, int64_t t) const {
    return (line / inner * size + (reverse ? size - 1 - t : t)) * inner + line % inner;
  }
};

Lines read_lines(const KernelRequest& request) {
  const Shape& shape = request.inputs[0].shape;
  const auto axis = static_cast<size_t>(request.attributes.integer("axis"));
  return {static_cast<int64_t>(shape.count(0, axis)), shape[axis],
          static_cast<int64_t>(shape.count(axis + 1, shape.rank())), request.attributes.integer("reverse") != 0};
}

/// A running sum, in f64: the error of a long one would grow with its length.
class RunningSum {
 public:
  __device__ double add(double x) {
    sum_ += x;
    return sum_;
  }

 private:
  double sum_ = 0;
};

/// log of a running sum of exponentials, as peak + log(sum of e^(x - peak)), in f64.
class RunningLogSum {
 public:
  __device__ double add(double x) {
    // Equal first: infinities differ from themselves by NaN.
    if (x == peak_) {
      sum_ += 1;
    } else if (x > peak_) {
      sum_ = sum_ * exp(peak_ - x) + 1;
      peak_ = x;
    } else {
      sum_ += exp(x - peak_);
    }
    return peak_ + log(sum_);
  }

 private:
  double peak_ = -static_cast<double>(INFINITY);
  double sum_ = 0;
};

template <class Running, class T>
__global__ void scan_lines(Lines lines, const T* x, T* y) {
  for (int64_t line = first_unit(); line < lines.count(); line += unit_step()) {
    Running running;
    for (int64_t t = 0; t < lines.size; ++t) {
      const int64_t at = lines.at(line, t);
      y[at] = static_cast<T>(running.add(static_cast<double>(x[at])));
    }
  }
}

template <class Running, class T>
Kernel running(const Lines& lines) {
  Kernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [lines](const Run& run) {
    launch(run, scan_lines<Running, T>, grid_of(lines.count(), kThreads), lines, run.input<T>(0), run.output<T>(0));
  };
  return kernel;
}

template <class Running>
Kernel compile_running(const KernelRequest& request) {
  if (request.inputs[0].shape.count() == 0) return nothing();
  const Lines lines = read_lines(request);
  return request.inputs[0].dtype == DType::kF64 ? running<Running, double>(lines) : running<Running, float>(lines);
}

/// h may be a or b.
template <class T>
__global__ void scan_linear(Lines lines, const T* a, const T* b, const T* initial, T* h) {
  for (int64_t line = first_unit(); line < lines.count(); line += unit_step()) {
    T state = initial == nullptr ? T{0} : initial[line];
    for (int64_t t = 0; t < lines.size; ++t) {
      const int64_t at = lines.at(line, t);
      // Without a state before it the first is b alone, whatever a is.
      state = t == 0 && initial == nullptr ? b[at] : fma(a[at], state, b[at]);
      h[at] = state;
    }
  }
}

template <class T>
Kernel linear(const Lines& lines) {
  Kernel kernel;
  kernel.in_place = {{0, 0}, {1, 0}};
  kernel.run = [lines](const Run& run) {
    launch(run, scan_linear<T>, grid_of(lines.count(), kThreads), lines, run.input<T>(0), run.input<T>(1),
           run.input<T>(2), run.output<T>(0));
  };
  return kernel;
}

Kernel compile_linear_scan(const KernelRequest& request) {
  if (request.inputs[0].shape.count() == 0) return nothing();
  const Lines lines = read_lines(request);
  return request.inputs[0].dtype == DType::kF64 ? linear<double>(lines) : linear<float>(lines);
}

}  // namespace

void register_scan(KernelTable& table) {
  table["cumsum"] = compile_running<RunningSum>;
  table["linear_scan"] = compile_linear_scan;
  table["logcumsumexp"] = compile_running<RunningLogSum>;
}

}  // namespace heddle::cuda
