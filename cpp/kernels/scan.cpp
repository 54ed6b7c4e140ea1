// Recurrences along one axis, forwards or backwards: `cumsum`, `logcumsumexp`, and `linear_scan` h_t = a_t h_(t-1) +
// b_t, the heart of state-space models.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/scan.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef HEDDLE_KERNELS_SCAN_ONCE
#define HEDDLE_KERNELS_SCAN_ONCE

#include <array>
#include <cmath>
#include <limits>

#include "kernels/kernel_table.h"
#include "kernels/rows.h"

#endif  // HEDDLE_KERNELS_SCAN_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

/// y[i] = a[i] * h[i] + b[i]; without h: y = b. y may be a or b.
template <class T>
HWY_INLINE void scan_step_of(const T* a, const T* h, const T* b, T* y, size_t n) {
  const hn::ScalableTag<T> d;
  const size_t lanes = hn::Lanes(d);
  if (h == nullptr) {
    std::copy_n(b, n, y);
    return;
  }
  size_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, h + i), hn::LoadU(d, b + i)), d, y + i);
  // The same rounding as above, on targets that have a fused product.
  const hn::CappedTag<T, 1> one;
  for (; i < n; ++i)
    hn::StoreU(hn::MulAdd(hn::LoadU(one, a + i), hn::LoadU(one, h + i), hn::LoadU(one, b + i)), one, y + i);
}

void scan_step(const float* a, const float* h, const float* b, float* y, size_t n) { scan_step_of(a, h, b, y, n); }

void scan_step_f64(const double* a, const double* h, const double* b, double* y, size_t n) {
  scan_step_of(a, h, b, y, n);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(scan_step);
HWY_EXPORT(scan_step_f64);

void step_of(const float* a, const float* h, const float* b, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(scan_step)(a, h, b, y, n);
}

void step_of(const double* a, const double* h, const double* b, double* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(scan_step_f64)(a, h, b, y, n);
}

struct ScanPlan {
  AxisShape shape;
  bool reverse = false;
  DType dtype = DType::kF32;

  /// The t-th step's place along the axis.
  size_t place(size_t t) const { return reverse ? shape.size - 1 - t : t; }
};

ScanPlan read_plan(const KernelRequest& request, const Operand& x) {
  check_float(request, x, "x");
  return {axis_shape(x.shape, read_axis(request, x.shape)), request.attributes.integer("reverse") != 0, x.dtype};
}

/// A running sum, in f64: the error of a long one would grow with its length.
class Sum {
 public:
  double add(double x) {
    sum_ += x;
    return sum_;
  }

 private:
  double sum_ = 0;
};

/// log of a running sum of exponentials, as peak + log(sum of e^(x - peak)), in f64.
class LogSum {
 public:
  double add(double x) {
    // Equal first: infinities differ from themselves by NaN.
    if (x == peak_) {
      sum_ += 1;
    } else if (x > peak_) {
      sum_ = sum_ * std::exp(peak_ - x) + 1;
      peak_ = x;
    } else {
      sum_ += std::exp(x - peak_);
    }
    return peak_ + std::log(sum_);
  }

 private:
  double peak_ = -std::numeric_limits<double>::infinity();
  double sum_ = 0;
};

/// y[t] = what Running gives of x[0] to x[t].
template <class Running>
CompiledKernel compile_running(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const ScanPlan plan = read_plan(request, request.inputs[0]);
  check_operand(request, request.outputs[0], "y", plan.dtype, request.inputs[0].shape);
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [plan](const RunArguments& arguments) {
    const AxisShape& shape = plan.shape;
    with_float(plan.dtype, [&](auto element) {
      using T = decltype(element);
      const auto* x = arguments.input<T>(0);
      auto* y = arguments.output<T>(0);
      for_axis_lines(arguments.pool, shape, [&](size_t outer, size_t begin, size_t end) {
        std::array<Running, kInnerBlock> running{};
        for (size_t t = 0; t < shape.size; ++t) {
          const size_t row = (outer * shape.size + plan.place(t)) * shape.inner + begin;
          for (size_t i = 0; i < end - begin; ++i)
            y[row + i] = static_cast<T>(running[i].add(static_cast<double>(x[row + i])));
        }
      });
    });
  };
  return kernel;
}

CompiledKernel compile_linear_scan(const KernelRequest& request) {
  request.expect_counts(3, 1);
  const Operand& a = request.inputs[0];
  const ScanPlan plan = read_plan(request, a);
  const AxisShape& shape = plan.shape;
  check_operand(request, request.inputs[1], "b", plan.dtype, a.shape);
  const size_t axis = read_axis(request, a.shape);
  std::vector<int64_t> dims(a.shape.dims().begin(), a.shape.dims().end());
  dims.erase(dims.begin() + static_cast<ptrdiff_t>(axis));
  check_optional(request, request.inputs[2], "initial state", plan.dtype, Shape(dims));
  check_operand(request, request.outputs[0], "h", plan.dtype, a.shape);
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}, {1, 0}};
  kernel.run = [plan, shape](const RunArguments& arguments) {
    with_float(plan.dtype, [&](auto element) {
      using T = decltype(element);
      const auto* a = arguments.input<T>(0);
      const auto* b = arguments.input<T>(1);
      const auto* initial = arguments.input<T>(2);
      auto* h = arguments.output<T>(0);
      for_axis_lines(arguments.pool, shape, [&](size_t outer, size_t begin, size_t end) {
        const T* before = initial == nullptr ? nullptr : initial + outer * shape.inner + begin;
        for (size_t t = 0; t < shape.size; ++t) {
          const size_t row = (outer * shape.size + plan.place(t)) * shape.inner + begin;
          step_of(a + row, before, b + row, h + row, end - begin);
          before = h + row;
        }
      });
    });
  };
  return kernel;
}

}  // namespace

void register_scan(KernelTable& table) {
  table["cumsum"] = compile_running<Sum>;
  table["linear_scan"] = compile_linear_scan;
  table["logcumsumexp"] = compile_running<LogSum>;
}

}  // namespace heddle

#endif  // HWY_ONCE
