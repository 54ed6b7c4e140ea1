// `elementwise`: a straight-line program of scalar operations, run block by block so that intermediate values stay in
// the L1 cache. Memory is touched once per input and once per output, whatever the number of operations. Values are
// f32, or f64 where an operand is f64; functions that have no exact vector form are then the C library's.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/vector_math-inl.h"

#ifndef HEDDLE_KERNELS_ELEMENTWISE_ONCE
#define HEDDLE_KERNELS_ELEMENTWISE_ONCE

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernel_table.h"
#include "kernels/micro_ops.h"
#include "kernels/strided.h"

namespace heddle {
namespace {

/// Values that do not vary along a block are kept as this many equal elements: at least one vector on any target used.
constexpr size_t kSplat = 16;
constexpr size_t kTileElements = 32768;

/// One step of the schedule. Locations index the table of block pointers; a source with mask 0 is a splat.
struct Step {
  MicroOp op;
  DType dtype = DType::kF32;  // of the operand that kLoad reads or kStore writes
  uint32_t destination = 0;
  std::array<uint32_t, 3> source{};
  std::array<size_t, 3> mask{};
  double constant = 0;
};

enum class InputMode : uint8_t { kUnused, kDirect, kRow, kGather, kRowScalar, kScalar };

struct ElementwiseProgram {
  /// What values are computed in.
  DType element = DType::kF32;
  StridedLoops loops;
  std::vector<InputMode> modes;
  std::vector<DType> input_dtypes;
  std::vector<DType> output_dtypes;
  /// Run once per tile, once per row, once per block.
  std::vector<Step> tile_steps, row_steps, block_steps;
  /// Inputs and outputs whose location is their own memory, moved at every block.
  std::vector<uint32_t> direct_inputs, direct_outputs;
  size_t outer_axes = 0;  // dimensions walked by rows; the rest is the inner, contiguous run
  size_t rows = 1, inner = 0, block = 0, blocks_per_row = 0, units = 0, units_per_tile = 1;
  // Locations: inputs, outputs, splats, block buffers.
  size_t splats = 0, buffers = 0;

  size_t first_splat() const noexcept { return input_dtypes.size() + output_dtypes.size(); }
  size_t first_buffer() const noexcept { return first_splat() + splats; }
  size_t locations() const noexcept { return first_buffer() + buffers; }
  size_t pointer_bytes() const noexcept { return (locations() * sizeof(void*) + 63) / 64 * 64; }
  size_t scratch_bytes() const noexcept {
    return pointer_bytes() + (splats * kSplat + buffers * block) * dtype_size(element);
  }
};

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_ELEMENTWISE_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace ::heddle::HWY_NAMESPACE;

template <class T>
using Tag = hn::CappedTag<T, kSplat>;
using DF = Tag<float>;
using VF = hn::Vec<DF>;

/// out[i] = function(source0[i & mask0], ...) for i in [0, n). The tail goes through a small copy, so that nothing
/// beyond n is read or written.
template <size_t kArity, class T, class Function>
HWY_INLINE void map_block(const Step& step, T* const* locations, size_t n, Function function) {
  const Tag<T> d;
  const size_t lanes = hn::Lanes(d);
  T* out = locations[step.destination];
  const T* a = locations[step.source[0]];
  const T* b = kArity > 1 ? locations[step.source[1]] : a;
  const T* c = kArity > 2 ? locations[step.source[2]] : a;
  const size_t ma = step.mask[0], mb = step.mask[1], mc = step.mask[2];
  const auto apply = [&](const T* pa, const T* pb, const T* pc) HWY_ATTR {
    if constexpr (kArity == 1) return function(hn::LoadU(d, pa));
    if constexpr (kArity == 2) return function(hn::LoadU(d, pa), hn::LoadU(d, pb));
    if constexpr (kArity == 3) return function(hn::LoadU(d, pa), hn::LoadU(d, pb), hn::LoadU(d, pc));
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(apply(a + (i & ma), b + (i & mb), c + (i & mc)), d, out + i);
  if (i == n) return;
  HWY_ALIGN T tail[4][kSplat] = {};
  for (size_t k = 0; k < n - i; ++k) {
    tail[0][k] = a[(i + k) & ma];
    if (kArity > 1) tail[1][k] = b[(i + k) & mb];
    if (kArity > 2) tail[2][k] = c[(i + k) & mc];
  }
  hn::Store(apply(tail[0], tail[1], tail[2]), d, tail[3]);
  for (size_t k = 0; k < n - i; ++k) out[i + k] = tail[3][k];
}

/// A function of one value that vectors have in f32 only.
template <class T, class Vector, class Scalar>
HWY_INLINE void map_function(const Step& step, T* const* locations, size_t n, Vector vector, Scalar scalar) {
  if constexpr (std::is_same_v<T, float>) {
    map_block<1>(step, locations, n, vector);
  } else {
    T* out = locations[step.destination];
    const T* x = locations[step.source[0]];
    for (size_t i = 0; i < n; ++i) out[i] = scalar(x[i & step.mask[0]]);
  }
}

/// x^y lane by lane, with the exponents that optimizers and norms use done exactly.
template <class T>
HWY_INLINE void pow_block(const Step& step, T* const* locations, size_t n) {
  T* out = locations[step.destination];
  const T* a = locations[step.source[0]];
  const T* b = locations[step.source[1]];
  const size_t ma = step.mask[0], mb = step.mask[1];
  if (ma == 0 && mb == 0) {
    std::fill_n(out, n, std::pow(a[0], b[0]));
    return;
  }
  const Tag<T> d;
  if (mb == 0 && b[0] == T{2}) {
    map_block<1>(step, locations, n, [](auto x) HWY_ATTR { return hn::Mul(x, x); });
  } else if (mb == 0 && b[0] == T{3}) {
    map_block<1>(step, locations, n, [](auto x) HWY_ATTR { return hn::Mul(hn::Mul(x, x), x); });
  } else if (mb == 0 && b[0] == T{-1}) {
    map_block<1>(step, locations, n, [d](auto x) HWY_ATTR { return hn::Div(hn::Set(d, T{1}), x); });
  } else {
    for (size_t i = 0; i < n; ++i) out[i] = std::pow(a[i & ma], b[i & mb]);
  }
}

void load_block(DType dtype, const void* source, float* out, size_t n) {
  switch (dtype) {
    case DType::kBF16: {
      const auto* from = static_cast<const uint16_t*>(source);
      for (size_t i = 0; i < n; ++i) out[i] = bf16_to_f32(from[i]);
      return;
    }
    case DType::kF16: {
      const DF d;
      const hn::Rebind<hwy::float16_t, DF> dh;
      const auto* from = static_cast<const uint16_t*>(source);
      size_t i = 0;
      for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d))
        hn::StoreU(hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(from + i))), d, out + i);
      for (; i < n; ++i) out[i] = f16_to_f32(from[i]);
      return;
    }
    case DType::kI32: {
      const auto* from = static_cast<const int32_t*>(source);
      for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(from[i]);
      return;
    }
    case DType::kU32: {
      const auto* from = static_cast<const uint32_t*>(source);
      for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(from[i]);
      return;
    }
    case DType::kU8: {
      const auto* from = static_cast<const uint8_t*>(source);
      for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(from[i]);
      return;
    }
    default: std::memcpy(out, source, n * sizeof(float));
  }
}

void load_block(DType dtype, const void* source, double* out, size_t n) {
  if (dtype == DType::kF64) {
    std::memcpy(out, source, n * sizeof(double));
    return;
  }
  HWY_ALIGN float narrow[kSplat];
  const auto* from = static_cast<const std::byte*>(source);
  for (size_t i = 0; i < n; i += kSplat) {
    const size_t run = std::min(kSplat, n - i);
    if (dtype == DType::kI32) {
      for (size_t k = 0; k < run; ++k) out[i + k] = reinterpret_cast<const int32_t*>(from)[i + k];
    } else if (dtype == DType::kU32) {
      for (size_t k = 0; k < run; ++k) out[i + k] = reinterpret_cast<const uint32_t*>(from)[i + k];
    } else {
      load_block(dtype, from + i * dtype_size(dtype), narrow, run);
      std::copy_n(narrow, run, out + i);
    }
  }
}

/// Truncation towards zero, saturating at the ends of the integer type; NaN gives 0.
template <class Integer, class T>
Integer saturate(T value) {
  // 2^bits, which every floating type has exactly.
  constexpr T kEnd = static_cast<T>(uint64_t{std::numeric_limits<Integer>::max()} + 1);
  constexpr T kLow = static_cast<T>(std::numeric_limits<Integer>::min());
  if (value != value) return 0;
  if (value >= kEnd) return std::numeric_limits<Integer>::max();
  return value < kLow ? std::numeric_limits<Integer>::min() : static_cast<Integer>(value);
}

/// Rounds to nearest even; NaN stays NaN.
void store_bf16(const float* source, size_t mask, uint16_t* out, size_t n) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<uint16_t, DF> dh;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
    const VF value = hn::LoadU(d, source + (i & mask));
    const auto bits = hn::BitCast(du, value);
    const auto high = hn::ShiftRight<16>(bits);
    const auto odd = hn::And(high, hn::Set(du, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fffU)), odd));
    const auto quiet = hn::Or(high, hn::Set(du, 0x40U));
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(value));
    hn::StoreU(hn::DemoteTo(dh, hn::BitCast(di, hn::IfThenElse(is_nan, quiet, rounded))), dh, out + i);
  }
  for (; i < n; ++i) out[i] = f32_to_bf16(source[i & mask]);
}

void store_block(DType dtype, const float* source, size_t mask, void* out, size_t n) {
  switch (dtype) {
    case DType::kBF16: store_bf16(source, mask, static_cast<uint16_t*>(out), n); return;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) static_cast<uint16_t*>(out)[i] = f32_to_f16(source[i & mask]);
      return;
    case DType::kI32:
      for (size_t i = 0; i < n; ++i) static_cast<int32_t*>(out)[i] = saturate<int32_t>(source[i & mask]);
      return;
    case DType::kU32:
      for (size_t i = 0; i < n; ++i) static_cast<uint32_t*>(out)[i] = saturate<uint32_t>(source[i & mask]);
      return;
    case DType::kU8:
      for (size_t i = 0; i < n; ++i) static_cast<uint8_t*>(out)[i] = saturate<uint8_t>(source[i & mask]);
      return;
    default:
      for (size_t i = 0; i < n; ++i) static_cast<float*>(out)[i] = source[i & mask];
  }
}

void store_block(DType dtype, const double* source, size_t mask, void* out, size_t n) {
  const auto each = [&]<class To>(To* to, auto convert) {
    for (size_t i = 0; i < n; ++i) to[i] = convert(source[i & mask]);
  };
  switch (dtype) {
    case DType::kF64: each(static_cast<double*>(out), [](double x) { return x; }); return;
    case DType::kI32: each(static_cast<int32_t*>(out), saturate<int32_t, double>); return;
    case DType::kU32: each(static_cast<uint32_t*>(out), saturate<uint32_t, double>); return;
    case DType::kU8: each(static_cast<uint8_t*>(out), saturate<uint8_t, double>); return;
    case DType::kF32: each(static_cast<float*>(out), [](double x) { return static_cast<float>(x); }); return;
    case DType::kBF16:
      each(static_cast<uint16_t*>(out), [](double x) { return f32_to_bf16(static_cast<float>(x)); });
      return;
    default: each(static_cast<uint16_t*>(out), [](double x) { return f32_to_f16(static_cast<float>(x)); });
  }
}

/// Where the current block lies.
struct Position {
  size_t row, column, n;
};

/// Collects a partially broadcast input whose rows are too short to be blocks of their own.
template <class T>
void gather_block(const StridedLoops& loops, size_t input, DType dtype, const std::byte* source, size_t begin, T* out,
                  size_t n) {
  const size_t size = dtype_size(dtype);
  const size_t last = loops.rank - 1;
  const auto& strides = loops.strides[input];
  std::array<size_t, Shape::kMaxRank> at{};
  size_t rest = begin;
  size_t offset = 0;
  for (size_t axis = loops.rank; axis-- > 0;) {
    at[axis] = axis == 0 ? rest : rest % loops.dims[axis];
    rest /= loops.dims[axis];
    offset += at[axis] * strides[axis];
  }
  while (n > 0) {
    const size_t run = std::min(n, loops.dims[last] - at[last]);
    if (strides[last] != 0) {
      load_block(dtype, source + offset * size, out, run);
    } else {
      T value;
      load_block(dtype, source + offset * size, &value, 1);
      std::fill_n(out, run, value);
    }
    out += run;
    n -= run;
    offset -= at[last] * strides[last];
    at[last] = 0;
    for (size_t axis = last; axis-- > 0;) {
      offset += strides[axis];
      if (++at[axis] < loops.dims[axis]) break;
      offset -= at[axis] * strides[axis];
      at[axis] = 0;
    }
  }
}

template <class T>
void load_input(const ElementwiseProgram& program, const RunArguments& arguments, const Step& step,
                const Position& position, T* out) {
  const size_t input = step.source[0];
  const auto* source = static_cast<const std::byte*>(arguments.in[input]);
  const size_t size = dtype_size(step.dtype);
  switch (program.modes[input]) {
    case InputMode::kScalar:
    case InputMode::kRowScalar: {
      const size_t offset = program.loops.offset(input, position.row, program.outer_axes);
      T value;
      load_block(step.dtype, source + offset * size, &value, 1);
      std::fill_n(out, kSplat, value);
      return;
    }
    case InputMode::kRow: {
      const size_t offset = program.loops.offset(input, position.row, program.outer_axes) + position.column;
      load_block(step.dtype, source + offset * size, out, position.n);
      return;
    }
    case InputMode::kGather:
      gather_block(program.loops, input, step.dtype, source, position.column, out, position.n);
      return;
    default: load_block(step.dtype, source + (position.row * program.inner + position.column) * size, out, position.n);
  }
}

template <class T>
void run_steps(const ElementwiseProgram& program, const RunArguments& arguments, const std::vector<Step>& steps,
               T* const* locations, const Position& position) {
  const Tag<T> d;
  const auto as_number = [d](auto mask) HWY_ATTR { return hn::IfThenElse(mask, hn::Set(d, T{1}), hn::Zero(d)); };
  const size_t n = position.n;
  for (const Step& step : steps) {
    switch (step.op) {
      case MicroOp::kConstant: std::fill_n(locations[step.destination], n, static_cast<T>(step.constant)); break;
      case MicroOp::kAdd:
        map_block<2>(step, locations, n, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); });
        break;
      case MicroOp::kSub:
        map_block<2>(step, locations, n, [](auto a, auto b) HWY_ATTR { return hn::Sub(a, b); });
        break;
      case MicroOp::kMul:
        map_block<2>(step, locations, n, [](auto a, auto b) HWY_ATTR { return hn::Mul(a, b); });
        break;
      case MicroOp::kDiv:
        map_block<2>(step, locations, n, [](auto a, auto b) HWY_ATTR { return hn::Div(a, b); });
        break;
      // A NaN on either side is the result, as in NumPy.
      case MicroOp::kMaximum:
        map_block<2>(step, locations, n,
                     [](auto a, auto b) HWY_ATTR { return hn::IfThenElse(hn::Or(hn::IsNaN(a), hn::Gt(a, b)), a, b); });
        break;
      case MicroOp::kMinimum:
        map_block<2>(step, locations, n,
                     [](auto a, auto b) HWY_ATTR { return hn::IfThenElse(hn::Or(hn::IsNaN(a), hn::Lt(a, b)), a, b); });
        break;
      case MicroOp::kPow: pow_block(step, locations, n); break;
      case MicroOp::kNeg: map_block<1>(step, locations, n, [](auto a) HWY_ATTR { return hn::Neg(a); }); break;
      case MicroOp::kAbs: map_block<1>(step, locations, n, [](auto a) HWY_ATTR { return hn::Abs(a); }); break;
      case MicroOp::kSign:
        map_block<1>(step, locations, n, [d](auto a) HWY_ATTR {
          const auto zero = hn::Zero(d);
          return hn::IfThenElse(hn::Gt(a, zero), hn::Set(d, T{1}),
                                hn::IfThenElse(hn::Lt(a, zero), hn::Set(d, T{-1}), a));
        });
        break;
      case MicroOp::kExp:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_exp(DF(), a); },
            [](double x) { return std::exp(x); });
        break;
      case MicroOp::kLog:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_log(DF(), a); },
            [](double x) { return std::log(x); });
        break;
      case MicroOp::kSqrt: map_block<1>(step, locations, n, [](auto a) HWY_ATTR { return hn::Sqrt(a); }); break;
      case MicroOp::kRsqrt:
        map_block<1>(step, locations, n, [d](auto a) HWY_ATTR { return hn::Div(hn::Set(d, T{1}), hn::Sqrt(a)); });
        break;
      case MicroOp::kReciprocal:
        map_block<1>(step, locations, n, [d](auto a) HWY_ATTR { return hn::Div(hn::Set(d, T{1}), a); });
        break;
      case MicroOp::kSquare: map_block<1>(step, locations, n, [](auto a) HWY_ATTR { return hn::Mul(a, a); }); break;
      case MicroOp::kSin:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_sin(DF(), a); },
            [](double x) { return std::sin(x); });
        break;
      case MicroOp::kCos:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_cos(DF(), a); },
            [](double x) { return std::cos(x); });
        break;
      case MicroOp::kTanh:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_tanh(DF(), a); },
            [](double x) { return std::tanh(x); });
        break;
      case MicroOp::kSigmoid:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_sigmoid(DF(), a); },
            [](double x) { return 1 / (1 + std::exp(-x)); });
        break;
      case MicroOp::kSilu:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_silu(DF(), a); },
            [](double x) { return x * (1 / (1 + std::exp(-x))); });
        break;
      case MicroOp::kRelu:
        map_block<1>(step, locations, n,
                     [d](auto a) HWY_ATTR { return hn::IfThenElse(hn::Lt(a, hn::Zero(d)), hn::Zero(d), a); });
        break;
      case MicroOp::kErf:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_erf(DF(), a); },
            [](double x) { return std::erf(x); });
        break;
      case MicroOp::kSoftplus:
        map_function(
            step, locations, n, [](auto a) HWY_ATTR { return vector_softplus(DF(), a); },
            [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); });
        break;
      case MicroOp::kFloor: map_block<1>(step, locations, n, [](auto a) HWY_ATTR { return hn::Floor(a); }); break;
      case MicroOp::kGreater:
        map_block<2>(step, locations, n, [=](auto a, auto b) HWY_ATTR { return as_number(hn::Gt(a, b)); });
        break;
      case MicroOp::kGreaterEqual:
        map_block<2>(step, locations, n, [=](auto a, auto b) HWY_ATTR { return as_number(hn::Ge(a, b)); });
        break;
      case MicroOp::kLess:
        map_block<2>(step, locations, n, [=](auto a, auto b) HWY_ATTR { return as_number(hn::Lt(a, b)); });
        break;
      case MicroOp::kEqual:
        map_block<2>(step, locations, n, [=](auto a, auto b) HWY_ATTR { return as_number(hn::Eq(a, b)); });
        break;
      case MicroOp::kNotEqual:
        map_block<2>(step, locations, n, [=](auto a, auto b) HWY_ATTR { return as_number(hn::Not(hn::Eq(a, b))); });
        break;
      case MicroOp::kSelect:
        map_block<3>(step, locations, n, [d](auto condition, auto a, auto b) HWY_ATTR {
          return hn::IfThenElse(hn::Eq(condition, hn::Zero(d)), b, a);
        });
        break;
      case MicroOp::kCopy: map_block<1>(step, locations, n, [](auto a) HWY_ATTR { return a; }); break;
      case MicroOp::kLoad: load_input(program, arguments, step, position, locations[step.destination]); break;
      case MicroOp::kStore: {
        auto* out = static_cast<std::byte*>(arguments.out[step.destination]);
        const size_t offset = (position.row * program.inner + position.column) * dtype_size(step.dtype);
        store_block(step.dtype, locations[step.source[0]], step.mask[0], out + offset, n);
        break;
      }
    }
  }
}

template <class T>
void run_tile_of(const ElementwiseProgram& program, const RunArguments& arguments, size_t tile, size_t thread) {
  auto* scratch = arguments.thread_scratch<std::byte>(thread);
  auto** locations = reinterpret_cast<T**>(scratch);
  auto* values = reinterpret_cast<T*>(scratch + program.pointer_bytes());
  for (size_t i = 0; i < program.splats; ++i) locations[program.first_splat() + i] = values + i * kSplat;
  values += program.splats * kSplat;
  for (size_t i = 0; i < program.buffers; ++i) locations[program.first_buffer() + i] = values + i * program.block;

  run_steps(program, arguments, program.tile_steps, locations, {0, 0, kSplat});
  const size_t inputs = program.input_dtypes.size();
  const size_t begin = tile * program.units_per_tile;
  const size_t end = std::min(begin + program.units_per_tile, program.units);
  size_t row = begin / program.blocks_per_row;
  size_t column = begin % program.blocks_per_row * program.block;
  bool new_row = true;
  for (size_t unit = begin; unit < end; ++unit) {
    if (new_row && !program.row_steps.empty())
      run_steps(program, arguments, program.row_steps, locations, {row, 0, kSplat});
    const size_t offset = row * program.inner + column;
    const size_t n = std::min(program.block, program.inner - column);
    for (const uint32_t input : program.direct_inputs) {
      const size_t from = program.modes[input] == InputMode::kDirect
                              ? offset
                              : program.loops.offset(input, row, program.outer_axes) + column;
      locations[input] = const_cast<T*>(arguments.input<T>(input)) + from;
    }
    for (const uint32_t output : program.direct_outputs)
      locations[inputs + output] = arguments.output<T>(output) + offset;
    run_steps(program, arguments, program.block_steps, locations, {row, column, n});
    column += program.block;
    new_row = column >= program.inner;
    if (new_row) {
      column = 0;
      ++row;
    }
  }
}

void run_tile(const ElementwiseProgram& program, const RunArguments& arguments, size_t tile, size_t thread) {
  if (program.element == DType::kF64)
    run_tile_of<double>(program, arguments, tile, thread);
  else
    run_tile_of<float>(program, arguments, tile, thread);
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(run_tile);

/// How often a value changes.
enum class Level : uint8_t { kTile, kRow, kBlock };

constexpr size_t kMaxOperands = 1024;
constexpr int64_t kNever = -1;
/// Rows shorter than this are gathered into blocks instead of being blocks themselves.
constexpr size_t kMinRow = 128;

class Compiler {
 public:
  explicit Compiler(const KernelRequest& request) : request_(request), inputs_(request.inputs.size()) {}

  CompiledKernel compile() {
    check_operands();
    read_operations();
    mark_needed();
    plan_loops();
    assign_levels();
    schedule();
    resolve_outputs();
    allocate();
    plan_blocks();
    return finish();
  }

 private:
  static bool supported(DType dtype) { return dtype != DType::kI64; }
  Level level(size_t value) const { return levels_[value]; }
  bool same_memory_layout(size_t input, size_t output) const {
    const Operand& in = request_.inputs[input];
    const Operand& out = request_.outputs[output];
    return in.dtype == out.dtype && in.shape == out.shape;
  }

  void check_operands() {
    request_.check(inputs_ <= kMaxOperands, "at most 1024 inputs", std::to_string(inputs_));
    const size_t outputs = request_.outputs.size();
    request_.check(outputs >= 1 && outputs <= kMaxOperands, "1 to 1024 outputs", std::to_string(outputs));
    const Operand* first = nullptr;
    for (const Operand& output : request_.outputs) {
      if (!output.present) continue;
      if (first == nullptr) first = &output;
      request_.check(output.shape == first->shape, "outputs of one shape", output.shape.str());
      request_.check(supported(output.dtype), "any dtype but i64", dtype_name(output.dtype));
      program_->output_dtypes.push_back(output.dtype);
      if (output.dtype == DType::kF64) program_->element = DType::kF64;
    }
    request_.check(first != nullptr && program_->output_dtypes.size() == outputs, "every output present", "none");
    shape_ = first->shape;
    for (const Operand& input : request_.inputs) {
      request_.check(input.present, "every input present", "an absent input");
      request_.check(supported(input.dtype), "any dtype but i64", dtype_name(input.dtype));
      program_->input_dtypes.push_back(input.dtype);
      if (input.dtype == DType::kF64) program_->element = DType::kF64;
    }
  }

  void read_operations() {
    ScalarProgram read = parse_scalar_program(request_);
    ops_ = std::move(read.ops);
    results_ = std::move(read.results);
  }

  void mark_needed() {
    needed_.assign(inputs_ + ops_.size(), false);
    for (const size_t result : results_) needed_[result] = true;
    for (size_t k = ops_.size(); k-- > 0;) {
      if (!needed_[inputs_ + k]) continue;
      for (size_t i = 0; i < ops_[k].arity; ++i) needed_[ops_[k].source[i]] = true;
    }
  }

  /// Decides between rows as blocks (each input contiguous or constant within a row) and one flat run in which
  /// partially broadcast inputs are gathered.
  void plan_loops() {
    StridedLoops& loops = program_->loops;
    loops.rank = shape_.rank();
    for (size_t axis = 0; axis < shape_.rank(); ++axis) loops.dims[axis] = static_cast<size_t>(shape_[axis]);
    for (const Operand& input : request_.inputs)
      loops.strides.push_back(broadcast_strides(request_, input.shape, shape_));
    // A scalar imposes no order on the loops, but strides of one-element dimensions are not all zero.
    for (size_t i = 0; i < inputs_; ++i)
      if (request_.inputs[i].shape.count() == 1) loops.strides[i] = {};
    loops.collapse();

    const auto full = [&](size_t i) { return request_.inputs[i].shape.count() == shape_.count(); };
    const auto scalar = [&](size_t i) { return request_.inputs[i].shape.count() == 1; };
    bool partial = false;
    for (size_t i = 0; i < inputs_; ++i) partial = partial || (needed_[i] && !full(i) && !scalar(i));
    const bool rows = partial && loops.rank > 1 && loops.dims[loops.rank - 1] >= kMinRow;
    program_->inner = rows && shape_.count() != 0 ? loops.dims[loops.rank - 1] : shape_.count();
    program_->outer_axes = rows ? loops.rank - 1 : 0;
    program_->rows = program_->inner == 0 ? 0 : shape_.count() / program_->inner;
    program_->modes.assign(inputs_, InputMode::kUnused);
    for (size_t i = 0; i < inputs_; ++i) {
      if (!needed_[i]) continue;
      InputMode& mode = program_->modes[i];
      if (scalar(i))
        mode = InputMode::kScalar;
      else if (full(i))
        mode = InputMode::kDirect;
      else if (!rows)
        mode = InputMode::kGather;
      else
        mode = loops.strides[i][loops.rank - 1] == 0 ? InputMode::kRowScalar : InputMode::kRow;
    }
  }

  void assign_levels() {
    levels_.assign(inputs_ + ops_.size(), Level::kTile);
    for (size_t i = 0; i < inputs_; ++i) {
      const InputMode mode = program_->modes[i];
      if (mode == InputMode::kRowScalar) levels_[i] = Level::kRow;
      if (mode == InputMode::kDirect || mode == InputMode::kRow || mode == InputMode::kGather)
        levels_[i] = Level::kBlock;
    }
    for (size_t k = 0; k < ops_.size(); ++k)
      for (size_t i = 0; i < ops_[k].arity; ++i)
        levels_[inputs_ + k] = std::max(levels_[inputs_ + k], level(ops_[k].source[i]));
  }

  /// True when blocks of the input are read where they lie.
  bool read_in_place(size_t input) const {
    const InputMode mode = program_->modes[input];
    return (mode == InputMode::kDirect || mode == InputMode::kRow) && request_.inputs[input].dtype == program_->element;
  }

  /// A step over virtual locations: value ids until allocate() replaces them.
  struct Draft {
    Step step;
    size_t arity;
  };

  std::vector<Draft>& list(Level level) { return drafts_[static_cast<size_t>(level)]; }

  void load(size_t input) {
    if (loaded_[input] || read_in_place(input)) return;
    loaded_[input] = true;
    Step step{.op = MicroOp::kLoad};
    step.dtype = request_.inputs[input].dtype;
    step.destination = static_cast<uint32_t>(input);
    step.source[0] = static_cast<uint32_t>(input);
    list(level(input)).push_back({step, 0});
  }

  void schedule() {
    loaded_.assign(inputs_, false);
    for (size_t k = 0; k < ops_.size(); ++k) {
      if (!needed_[inputs_ + k]) continue;
      const ScalarOperation& op = ops_[k];
      Step step{.op = op.op};
      step.constant = op.constant;
      step.destination = static_cast<uint32_t>(inputs_ + k);
      for (size_t i = 0; i < op.arity; ++i) {
        if (op.source[i] < inputs_) load(op.source[i]);
        step.source[i] = static_cast<uint32_t>(op.source[i]);
      }
      list(level(inputs_ + k)).push_back({step, op.arity});
    }
    for (const size_t result : results_)
      if (result < inputs_) load(result);
  }

  /// Per input, the last block step that reads its memory; kNever when only the steps before the blocks do.
  std::vector<int64_t> last_reads() {
    std::vector<int64_t> last(inputs_, kNever);
    const auto& steps = list(Level::kBlock);
    for (size_t t = 0; t < steps.size(); ++t) {
      const Draft& draft = steps[t];
      if (draft.step.op == MicroOp::kLoad) last[draft.step.source[0]] = static_cast<int64_t>(t);
      for (size_t i = 0; i < draft.arity; ++i) {
        const size_t source = draft.step.source[i];
        if (source < inputs_ && read_in_place(source)) last[source] = static_cast<int64_t>(t);
      }
    }
    return last;
  }

  bool shares_buffer(size_t input, size_t output) const {
    return same_memory_layout(input, output) && request_.inputs[input].buffer == request_.outputs[output].buffer;
  }

  /// Chooses for each output whether its value is computed in the output's own memory or moved there by a last step,
  /// such that no output is written before the last read of an input that the program gave the same buffer.
  void resolve_outputs() {
    auto& steps = list(Level::kBlock);
    const size_t outputs = results_.size();
    // Results that are inputs: saved first when another output overwrites that input.
    for (size_t j = 0; j < outputs; ++j) {
      const size_t result = results_[j];
      if (result >= inputs_ || !read_in_place(result)) continue;
      bool overwritten = false;
      for (size_t other = 0; other < outputs; ++other)
        overwritten = overwritten || (other != j && shares_buffer(result, other));
      if (!overwritten) continue;
      Step step{.op = MicroOp::kCopy};
      step.source[0] = static_cast<uint32_t>(result);
      step.destination = static_cast<uint32_t>(new_value(Level::kBlock));
      results_[j] = step.destination;
      steps.insert(steps.begin(), Draft{step, 1});
    }
    written_at_.assign(outputs, kNever);
    const size_t computed = steps.size();
    const std::vector<int64_t> last_read = last_reads();
    for (size_t j = 0; j < outputs; ++j) {
      const size_t result = results_[j];
      const bool claimable = result >= inputs_ && level(result) == Level::kBlock &&
                             request_.outputs[j].dtype == program_->element && direct_output_.count(result) == 0;
      if (!claimable) continue;
      const auto producer = std::find_if(steps.begin(), steps.begin() + static_cast<ptrdiff_t>(computed),
                                         [&](const Draft& draft) { return draft.step.destination == result; });
      const int64_t time = producer - steps.begin();
      bool safe = true;
      for (size_t i = 0; i < inputs_; ++i) safe = safe && !(shares_buffer(i, j) && last_read[i] > time);
      if (!safe) continue;
      direct_output_[result] = j;
      written_at_[j] = time;
    }
    for (size_t j = 0; j < outputs; ++j) {
      if (written_at_[j] != kNever) continue;
      Step step{.op = request_.outputs[j].dtype == program_->element ? MicroOp::kCopy : MicroOp::kStore};
      step.dtype = request_.outputs[j].dtype;
      step.source[0] = static_cast<uint32_t>(results_[j]);
      step.destination = static_cast<uint32_t>(j);
      written_at_[j] = static_cast<int64_t>(steps.size());
      moves_.push_back(steps.size());
      steps.push_back({step, 1});
    }
  }

  size_t new_value(Level level) {
    levels_.push_back(level);
    return levels_.size() - 1;
  }

  /// Gives every value a location: splats for what does not vary within a block, and as few block buffers as the
  /// lifetimes allow for the rest.
  void allocate() {
    ElementwiseProgram& program = *program_;
    const size_t values = levels_.size();
    std::vector<uint32_t> location(values, 0);
    for (const Level level : {Level::kTile, Level::kRow})
      for (const Draft& draft : list(level))
        location[draft.step.destination] = static_cast<uint32_t>(program.first_splat() + program.splats++);

    const auto& steps = list(Level::kBlock);
    std::vector<size_t> last_use(values, 0);
    for (size_t t = 0; t < steps.size(); ++t)
      for (size_t i = 0; i < steps[t].arity; ++i) last_use[steps[t].step.source[i]] = t;
    for (size_t i = 0; i < inputs_; ++i)
      if (read_in_place(i)) {
        location[i] = static_cast<uint32_t>(i);
        program.direct_inputs.push_back(static_cast<uint32_t>(i));
      }
    std::vector<bool> direct(results_.size(), false);
    for (const auto& [value, output] : direct_output_) {
      location[value] = static_cast<uint32_t>(inputs_ + output);
      direct[output] = true;
    }
    std::vector<uint32_t> free;
    std::vector<bool> buffered(values, false);
    std::vector<bool> is_move(steps.size(), false);
    for (const size_t move : moves_) is_move[move] = true;
    for (size_t t = 0; t < steps.size(); ++t) {
      for (size_t i = 0; i < steps[t].arity; ++i) {
        const size_t value = steps[t].step.source[i];
        if (!buffered[value] || last_use[value] != t) continue;
        buffered[value] = false;
        free.push_back(location[value]);
      }
      const size_t value = steps[t].step.destination;
      if (is_move[t] || direct_output_.count(value) != 0) continue;
      if (free.empty()) free.push_back(static_cast<uint32_t>(program.first_buffer() + program.buffers++));
      location[value] = free.back();
      free.pop_back();
      buffered[value] = true;
    }

    for (const Level level : {Level::kTile, Level::kRow, Level::kBlock}) {
      auto& target = level == Level::kTile  ? program.tile_steps
                     : level == Level::kRow ? program.row_steps
                                            : program.block_steps;
      for (size_t t = 0; t < list(level).size(); ++t) {
        const Draft& draft = list(level)[t];
        Step step = draft.step;
        for (size_t i = 0; i < draft.arity; ++i) {
          step.mask[i] = levels_[step.source[i]] == Level::kBlock ? ~size_t{0} : 0;
          step.source[i] = location[step.source[i]];
        }
        if (level == Level::kBlock && is_move[t]) {
          if (step.op == MicroOp::kCopy) {
            direct[step.destination] = true;
            step.destination += static_cast<uint32_t>(inputs_);
          }
        } else {
          step.destination = location[step.destination];
        }
        target.push_back(step);
      }
    }
    for (size_t j = 0; j < direct.size(); ++j)
      if (direct[j]) program.direct_outputs.push_back(static_cast<uint32_t>(j));
  }

  /// Blocks as long as the buffers and the streams leave room for in L1.
  void plan_blocks() {
    ElementwiseProgram& program = *program_;
    constexpr size_t kL1Floats = 6144;
    const size_t lines = program.buffers + program.direct_inputs.size() + program.direct_outputs.size();
    const size_t limit = std::clamp<size_t>(kL1Floats / std::max<size_t>(1, lines) / kSplat * kSplat, 256, 2048);
    const size_t count = std::max<size_t>(1, (program.inner + limit - 1) / limit);
    const size_t even = (program.inner + count - 1) / count;
    program.block = std::max(kSplat, (even + kSplat - 1) / kSplat * kSplat);
    program.blocks_per_row = (program.inner + program.block - 1) / program.block;
    program.units = program.rows * program.blocks_per_row;
    program.units_per_tile = std::max<size_t>(1, kTileElements / std::min(program.block, std::max<size_t>(1, even)));
  }

  CompiledKernel finish() {
    CompiledKernel kernel;
    kernel.scratch_per_thread = program_->scratch_bytes();
    const std::vector<int64_t> last_read = last_reads();
    for (size_t i = 0; i < inputs_; ++i)
      for (size_t j = 0; j < results_.size(); ++j)
        if (same_memory_layout(i, j) && last_read[i] <= written_at_[j]) kernel.in_place.emplace_back(i, j);
    kernel.run = [program = std::shared_ptr<const ElementwiseProgram>(program_)](const RunArguments& arguments) {
      if (program->units == 0) return;
      const size_t tiles = (program->units + program->units_per_tile - 1) / program->units_per_tile;
      const auto run = HWY_DYNAMIC_DISPATCH(run_tile);
      if (tiles == 1) {
        run(*program, arguments, 0, 0);
        return;
      }
      const struct {
        decltype(run) function;
        const ElementwiseProgram& program;
        const RunArguments& arguments;
      } context{run, *program, arguments};
      // One captured pointer: std::function then needs no allocation.
      arguments.pool.run(
          tiles, [c = &context](size_t tile, size_t thread) { c->function(c->program, c->arguments, tile, thread); });
    };
    return kernel;
  }

  const KernelRequest& request_;
  size_t inputs_;
  Shape shape_;
  std::shared_ptr<ElementwiseProgram> program_ = std::make_shared<ElementwiseProgram>();
  std::vector<ScalarOperation> ops_;
  std::vector<size_t> results_;
  std::vector<bool> needed_;
  std::vector<Level> levels_;
  std::vector<bool> loaded_;
  std::array<std::vector<Draft>, 3> drafts_;
  /// Values computed in the memory of an output.
  std::map<size_t, size_t> direct_output_;
  std::vector<int64_t> written_at_;
  /// Block steps that move a value into an output.
  std::vector<size_t> moves_;
};

CompiledKernel compile_elementwise(const KernelRequest& request) { return Compiler(request).compile(); }

}  // namespace

void register_elementwise(KernelTable& table) { table["elementwise"] = compile_elementwise; }

}  // namespace heddle

#endif  // HWY_ONCE
