// `elementwise`: a straight-line program of scalar operations. A thread runs it on a few neighbouring elements at a
// time, so that reading an operation costs little beside carrying it out; values in between lie in shared memory, where
// each thread has a column of its own. Inputs are all read before the first output is written, so outputs may replace
// inputs of the same shape.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/core/device_buffer.h"
#include "cuda/core/launch.cuh"
#include "cuda/core/loops.h"
#include "cuda/core/numbers.cuh"
#include "cuda/core/shared.cuh"
#include "cuda/kernels/kernel_table.h"
#include "kernels/micro_ops.h"

namespace heddle::cuda {
namespace {

enum class Mode : uint8_t { kDirect, kScalar, kStrided };

/// One operation on columns of shared memory; `source[0]` of a load is an input, of a store a column.
struct Step {
  MicroOp op;
  DType dtype;
  Mode mode;
  uint8_t sources;
  uint16_t destination;
  uint16_t source[3];
  double constant;
};

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Values {
  T at[kWidth];
};

template <int kCount>
struct Pointers {
  const void* in[kCount];
  void* out[kCount];
};

constexpr int kFewOperands = 24;
/// As many as the CPU's kernel takes.
constexpr int kManyOperands = 1024;

struct Parameters {
  const Step* steps;
  /// By input; only those of mode kStrided are read.
  const Walk* walks;
  int step_count;
  int columns;
  int64_t count;
};

__device__ float exponential(float x) { return expf(x); }
__device__ double exponential(double x) { return exp(x); }

/// Of e^-|x|, which cannot overflow, so that small results keep their digits.
template <class T>
__device__ T sigmoid(T x) {
  if (x != x) return x;
  const T e = exponential(x < T{0} ? x : -x);
  return (x < T{0} ? e : T{1}) / (T{1} + e);
}

__device__ float softplus(float x) { return fmaxf(x, 0.0F) + log1pf(expf(-fabsf(x))); }
__device__ double softplus(double x) { return fmax(x, 0.0) + log1p(exp(-fabs(x))); }

template <class T>
__device__ T power(T x, T y) {
  // The exponents of optimizers and norms exactly.
  if (y == T{2}) return x * x;
  if (y == T{3}) return x * x * x;
  if (y == T{-1}) return T{1} / x;
  return pow(x, y);
}

template <class T, int kWidth>
struct Operands {
  Values<T, kWidth> a, b, c, y;

  template <class Function>
  __device__ void map(Function function) {
    for (int i = 0; i < kWidth; ++i) y.at[i] = function(a.at[i], b.at[i], c.at[i]);
  }
};

template <class T, int kWidth>
__device__ void apply(const Step& step, Operands<T, kWidth>& operands) {
  const auto constant = static_cast<T>(step.constant);
  switch (step.op) {
    case MicroOp::kConstant: operands.map([constant](T, T, T) { return constant; }); break;
    case MicroOp::kAdd: operands.map([](T a, T b, T) { return a + b; }); break;
    case MicroOp::kSub: operands.map([](T a, T b, T) { return a - b; }); break;
    case MicroOp::kMul: operands.map([](T a, T b, T) { return a * b; }); break;
    case MicroOp::kDiv: operands.map([](T a, T b, T) { return a / b; }); break;
    // A NaN on either side is the result, as in NumPy.
    case MicroOp::kMaximum: operands.map([](T a, T b, T) { return a != a || a > b ? a : b; }); break;
    case MicroOp::kMinimum: operands.map([](T a, T b, T) { return a != a || a < b ? a : b; }); break;
    case MicroOp::kPow: operands.map([](T a, T b, T) { return power(a, b); }); break;
    case MicroOp::kNeg: operands.map([](T a, T, T) { return -a; }); break;
    case MicroOp::kAbs: operands.map([](T a, T, T) { return a < T{0} || a == T{0} ? T{0} - a : a; }); break;
    case MicroOp::kSign: operands.map([](T a, T, T) { return a > T{0} ? T{1} : a < T{0} ? T{-1} : a; }); break;
    case MicroOp::kExp: operands.map([](T a, T, T) { return exponential(a); }); break;
    case MicroOp::kLog: operands.map([](T a, T, T) { return log(a); }); break;
    case MicroOp::kSqrt: operands.map([](T a, T, T) { return sqrt(a); }); break;
    case MicroOp::kRsqrt: operands.map([](T a, T, T) { return T{1} / sqrt(a); }); break;
    case MicroOp::kReciprocal: operands.map([](T a, T, T) { return T{1} / a; }); break;
    case MicroOp::kSquare: operands.map([](T a, T, T) { return a * a; }); break;
    case MicroOp::kSin: operands.map([](T a, T, T) { return sin(a); }); break;
    case MicroOp::kCos: operands.map([](T a, T, T) { return cos(a); }); break;
    case MicroOp::kTanh: operands.map([](T a, T, T) { return tanh(a); }); break;
    case MicroOp::kSigmoid: operands.map([](T a, T, T) { return sigmoid(a); }); break;
    case MicroOp::kSilu: operands.map([](T a, T, T) { return a * sigmoid(a); }); break;
    case MicroOp::kRelu: operands.map([](T a, T, T) { return a < T{0} ? T{0} : a; }); break;
    case MicroOp::kErf: operands.map([](T a, T, T) { return erf(a); }); break;
    case MicroOp::kSoftplus: operands.map([](T a, T, T) { return softplus(a); }); break;
    case MicroOp::kFloor: operands.map([](T a, T, T) { return floor(a); }); break;
    case MicroOp::kGreater: operands.map([](T a, T b, T) { return static_cast<T>(a > b); }); break;
    case MicroOp::kGreaterEqual: operands.map([](T a, T b, T) { return static_cast<T>(a >= b); }); break;
    case MicroOp::kLess: operands.map([](T a, T b, T) { return static_cast<T>(a < b); }); break;
    case MicroOp::kEqual: operands.map([](T a, T b, T) { return static_cast<T>(a == b); }); break;
    case MicroOp::kNotEqual: operands.map([](T a, T b, T) { return static_cast<T>(a != b); }); break;
    case MicroOp::kSelect: operands.map([](T a, T b, T c) { return a == T{0} ? c : b; }); break;
    case MicroOp::kCopy:
    case MicroOp::kLoad:
    case MicroOp::kStore: break;
  }
}

template <class T>
__device__ T load_number(DType dtype, const void* from, int64_t at) {
  switch (dtype) {
    case DType::kF64: return static_cast<T>(static_cast<const double*>(from)[at]);
    case DType::kBF16: return static_cast<T>(to_float(static_cast<const Bf16*>(from)[at]));
    case DType::kF16: return static_cast<T>(to_float(static_cast<const Half*>(from)[at]));
    case DType::kI32: return static_cast<T>(static_cast<const int32_t*>(from)[at]);
    case DType::kU32: return static_cast<T>(static_cast<const uint32_t*>(from)[at]);
    case DType::kU8: return static_cast<T>(static_cast<const uint8_t*>(from)[at]);
    default: return static_cast<T>(static_cast<const float*>(from)[at]);
  }
}

template <class T>
__device__ void store_number(DType dtype, void* to, int64_t at, T value) {
  switch (dtype) {
    case DType::kF64: static_cast<double*>(to)[at] = static_cast<double>(value); break;
    case DType::kBF16: static_cast<Bf16*>(to)[at] = to_bf16(static_cast<float>(value)); break;
    case DType::kF16: static_cast<Half*>(to)[at] = to_half(static_cast<float>(value)); break;
    case DType::kI32: static_cast<int32_t*>(to)[at] = saturate<int32_t>(value); break;
    case DType::kU32: static_cast<uint32_t*>(to)[at] = saturate<uint32_t>(value); break;
    case DType::kU8: static_cast<uint8_t*>(to)[at] = saturate<uint8_t>(value); break;
    default: static_cast<float*>(to)[at] = static_cast<float>(value);
  }
}

template <class T>
constexpr DType kOwnType = sizeof(T) == 8 ? DType::kF64 : DType::kF32;

template <class T, int kWidth>
__device__ void load(const Parameters& parameters, const Step& step, const void* from, int64_t begin, int filled,
                     Values<T, kWidth>& y) {
  if (step.mode == Mode::kDirect && step.dtype == kOwnType<T> && filled == kWidth) {
    y = *reinterpret_cast<const Values<T, kWidth>*>(static_cast<const T*>(from) + begin);
    return;
  }
  for (int i = 0; i < kWidth; ++i) {
    // Elements beyond the end repeat the last one.
    const int64_t index = begin + (i < filled ? i : filled - 1);
    const int64_t at = step.mode == Mode::kDirect   ? index
                       : step.mode == Mode::kScalar ? 0
                                                    : parameters.walks[step.source[0]].offset(index);
    y.at[i] = load_number<T>(step.dtype, from, at);
  }
}

template <class T, int kWidth>
__device__ void store(const Step& step, void* to, int64_t begin, int filled, const Values<T, kWidth>& x) {
  if (step.dtype == kOwnType<T> && filled == kWidth) {
    *reinterpret_cast<Values<T, kWidth>*>(static_cast<T*>(to) + begin) = x;
    return;
  }
  for (int i = 0; i < filled; ++i) store_number(step.dtype, to, begin + i, x.at[i]);
}

template <class T, int kWidth, int kOperands>
__global__ void run_steps(Parameters parameters, Pointers<kOperands> pointers) {
  const auto columns = dynamic_shared<Values<T, kWidth>>(0, parameters.columns * blockDim.x);
  const auto column = [&](unsigned index) { return index * blockDim.x + threadIdx.x; };
  const int64_t units = (parameters.count + kWidth - 1) / kWidth;
  for (int64_t unit = first_unit(); unit < units; unit += unit_step()) {
    const int64_t begin = unit * kWidth;
    const int filled = parameters.count - begin < kWidth ? static_cast<int>(parameters.count - begin) : kWidth;
    for (int at = 0; at < parameters.step_count; ++at) {
      const Step step = parameters.steps[at];
      Operands<T, kWidth> operands;
      if (step.op == MicroOp::kLoad) {
        load(parameters, step, pointers.in[step.source[0]], begin, filled, operands.y);
        columns[column(step.destination)] = operands.y;
        continue;
      }
      if (step.sources > 0) operands.a = columns[column(step.source[0])];
      if (step.op == MicroOp::kStore) {
        store(step, pointers.out[step.destination], begin, filled, operands.a);
        continue;
      }
      if (step.sources > 1) operands.b = columns[column(step.source[1])];
      if (step.sources > 2) operands.c = columns[column(step.source[2])];
      apply(step, operands);
      columns[column(step.destination)] = operands.y;
    }
  }
}

/// Orders loads, operations and stores, and gives each value a column for as long as it is needed.
class Compiler {
 public:
  explicit Compiler(const KernelRequest& request)
      : request_(request), inputs_(request.inputs.size()), shape_(request.outputs[0].shape) {
    for (const Operand& operand : request.inputs) is_double_ = is_double_ || operand.dtype == DType::kF64;
    for (const Operand& operand : request.outputs) is_double_ = is_double_ || operand.dtype == DType::kF64;
  }

  Kernel compile() {
    if (shape_.count() == 0) return nothing();
    read_operations();
    plan_inputs();
    mark_last_uses();
    schedule();
    return finish();
  }

 private:
  static constexpr size_t kUnused = SIZE_MAX;

  void read_operations() {
    ScalarProgram read = parse_scalar_program(request_);
    ops_ = std::move(read.ops);
    results_ = std::move(read.results);
  }

  void plan_inputs() {
    StridedLoops loops;
    loops.rank = shape_.rank();
    for (size_t axis = 0; axis < shape_.rank(); ++axis) loops.dims[axis] = static_cast<size_t>(shape_[axis]);
    for (const Operand& input : request_.inputs) {
      loops.strides.push_back(broadcast_strides(request_, input.shape, shape_));
      // A scalar imposes no order on the loops, but strides of one-element dimensions are not all zero.
      if (input.shape.count() == 1) loops.strides.back() = {};
      modes_.push_back(input.shape.count() == shape_.count() ? Mode::kDirect
                       : input.shape.count() == 1            ? Mode::kScalar
                                                             : Mode::kStrided);
    }
    loops.collapse();
    for (size_t i = 0; i < inputs_; ++i) walks_.push_back(walk_of(loops, i));
  }

  /// When a value is read for the last time: by operation k, or by the stores behind all operations.
  void mark_last_uses() {
    last_use_.assign(inputs_ + ops_.size(), kUnused);
    for (const size_t result : results_) last_use_[result] = ops_.size();
    for (size_t k = ops_.size(); k-- > 0;) {
      if (last_use_[inputs_ + k] == kUnused) continue;
      for (size_t i = 0; i < ops_[k].arity; ++i)
        if (last_use_[ops_[k].source[i]] == kUnused) last_use_[ops_[k].source[i]] = k;
    }
  }

  uint16_t take_column() {
    if (free_.empty()) free_.push_back(static_cast<uint16_t>(columns_++));
    const uint16_t column = free_.back();
    free_.pop_back();
    return column;
  }

  void load(size_t input) {
    if (column_[input]) return;
    column_[input] = take_column();
    steps_.push_back({MicroOp::kLoad,
                      request_.inputs[input].dtype,
                      modes_[input],
                      0,
                      *column_[input],
                      {static_cast<uint16_t>(input), 0, 0},
                      0});
  }

  void schedule() {
    column_.assign(inputs_ + ops_.size(), std::nullopt);
    for (size_t k = 0; k < ops_.size(); ++k) {
      if (last_use_[inputs_ + k] == kUnused) continue;
      const ScalarOperation& op = ops_[k];
      Step step{op.op, DType::kF32, Mode::kDirect, static_cast<uint8_t>(op.arity), 0, {}, op.constant};
      for (size_t i = 0; i < op.arity; ++i)
        if (op.source[i] < inputs_) load(op.source[i]);
      for (size_t i = 0; i < op.arity; ++i) step.source[i] = *column_[op.source[i]];
      // A source that is not read again gives its column to the result: sources are read before it is written.
      for (size_t i = 0; i < op.arity; ++i) {
        if (last_use_[op.source[i]] != k) continue;
        last_use_[op.source[i]] = kUnused;
        free_.push_back(*column_[op.source[i]]);
      }
      step.destination = take_column();
      column_[inputs_ + k] = step.destination;
      steps_.push_back(step);
    }
    for (const size_t result : results_)
      if (result < inputs_) load(result);
    for (size_t j = 0; j < results_.size(); ++j)
      steps_.push_back({MicroOp::kStore,
                        request_.outputs[j].dtype,
                        Mode::kDirect,
                        1,
                        static_cast<uint16_t>(j),
                        {*column_[results_[j]], 0, 0},
                        0});
  }

  Kernel finish() {
    Kernel kernel;
    for (size_t i = 0; i < inputs_; ++i)
      for (size_t j = 0; j < results_.size(); ++j)
        if (request_.inputs[i].dtype == request_.outputs[j].dtype && request_.inputs[i].shape == shape_)
          kernel.in_place.emplace_back(i, j);
    kernel.run = is_double_ ? closure<double>() : closure<float>();
    return kernel;
  }

  template <class T>
  std::function<void(const Run&)> closure() {
    constexpr size_t kLimit = size_t{99} << 10;
    const bool few = inputs_ <= kFewOperands && results_.size() <= kFewOperands;
    // Wide units while their columns leave room for several blocks on a multiprocessor, then narrow ones in small
    // blocks.
    if (few && columns_ * kThreads * 16 <= kSharedWithoutLeave)
      return launcher<T, 16 / sizeof(T), kFewOperands>(kThreads);
    if (columns_ * kFewThreads * sizeof(T) > kLimit)
      unsupported(request_, "at most " + std::to_string(kLimit / kFewThreads / sizeof(T)) + " values at a time",
                  std::to_string(columns_));
    return few ? launcher<T, 1, kFewOperands>(kFewThreads) : launcher<T, 1, kManyOperands>(kFewThreads);
  }

  template <class T, int kWidth, int kOperands>
  std::function<void(const Run&)> launcher(unsigned threads) {
    const auto steps = std::make_shared<const DeviceTable<Step>>(steps_);
    const auto walks = std::make_shared<const DeviceTable<Walk>>(walks_);
    const auto count = static_cast<int64_t>(shape_.count());
    const Parameters parameters{steps->data(), walks->data(), static_cast<int>(steps_.size()),
                                static_cast<int>(columns_), count};
    const Grid grid{blocks_for(ceil_div(ceil_div(count, kWidth), threads)), threads,
                    columns_ * threads * sizeof(Values<T, kWidth>)};
    return [steps, walks, parameters, grid](const Run& run) {
      Pointers<kOperands> pointers{};
      for (size_t i = 0; i < run.in.size(); ++i) pointers.in[i] = run.in[i];
      for (size_t i = 0; i < run.out.size(); ++i) pointers.out[i] = run.out[i];
      launch(run, run_steps<T, kWidth, kOperands>, grid, parameters, pointers);
    };
  }

  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kFewThreads = 32;

  const KernelRequest& request_;
  size_t inputs_;
  Shape shape_;
  bool is_double_ = false;
  std::vector<ScalarOperation> ops_;
  std::vector<size_t> results_;
  std::vector<Mode> modes_;
  std::vector<Walk> walks_;
  /// By value id.
  std::vector<size_t> last_use_;
  std::vector<std::optional<uint16_t>> column_;
  std::vector<uint16_t> free_;
  size_t columns_ = 0;
  std::vector<Step> steps_;
};

Kernel compile_elementwise(const KernelRequest& request) { return Compiler(request).compile(); }

}  // namespace

void register_elementwise(KernelTable& table) { table["elementwise"] = compile_elementwise; }

}  // namespace heddle::cuda
