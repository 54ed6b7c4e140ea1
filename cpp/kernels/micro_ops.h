// The scalar operations of `elementwise`, as an instruction names them, whatever device computes them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "program/kernel.h"

namespace heddle {

enum class MicroOp : uint8_t {
  kConstant,
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMaximum,
  kMinimum,
  kPow,
  kNeg,
  kAbs,
  kSign,
  kExp,
  kLog,
  kSqrt,
  kRsqrt,
  kReciprocal,
  kSquare,
  kSin,
  kCos,
  kTanh,
  kSigmoid,
  kSilu,
  kRelu,
  kErf,
  kSoftplus,
  kFloor,
  kGreater,
  kGreaterEqual,
  kLess,
  kEqual,
  kNotEqual,
  kSelect,
  // Not in the wire format: moving values between operands and blocks.
  kCopy,
  kLoad,
  kStore,
};

/// One operation as the request states it: sources are value ids, inputs first.
struct ScalarOperation {
  MicroOp op = MicroOp::kConstant;
  size_t arity = 0;
  std::array<size_t, 3> source{};
  double constant = 0;
};

/// Operations in order, each with the id `inputs + its place`, and the id of each output's value.
struct ScalarProgram {
  std::vector<ScalarOperation> ops;
  std::vector<size_t> results;
};

/// Reads the attributes `ops`, `operands`, `constants` and `results`. Throws kArgument for what is no such program.
ScalarProgram parse_scalar_program(const KernelRequest& request);

}  // namespace heddle
