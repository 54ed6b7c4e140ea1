#include "kernels/micro_ops.h"

#include <functional>
#include <map>
#include <string>

namespace heddle {
namespace {

constexpr size_t kMaxOps = 1024;

struct MicroOpInfo {
  MicroOp op;
  size_t arity;
};

const std::map<std::string, MicroOpInfo, std::less<>>& micro_ops() {
  static const std::map<std::string, MicroOpInfo, std::less<>> kTable = {
      {"constant", {MicroOp::kConstant, 0}},
      {"add", {MicroOp::kAdd, 2}},
      {"sub", {MicroOp::kSub, 2}},
      {"mul", {MicroOp::kMul, 2}},
      {"div", {MicroOp::kDiv, 2}},
      {"maximum", {MicroOp::kMaximum, 2}},
      {"minimum", {MicroOp::kMinimum, 2}},
      {"pow", {MicroOp::kPow, 2}},
      {"neg", {MicroOp::kNeg, 1}},
      {"abs", {MicroOp::kAbs, 1}},
      {"sign", {MicroOp::kSign, 1}},
      {"exp", {MicroOp::kExp, 1}},
      {"log", {MicroOp::kLog, 1}},
      {"sqrt", {MicroOp::kSqrt, 1}},
      {"rsqrt", {MicroOp::kRsqrt, 1}},
      {"reciprocal", {MicroOp::kReciprocal, 1}},
      {"square", {MicroOp::kSquare, 1}},
      {"sin", {MicroOp::kSin, 1}},
      {"cos", {MicroOp::kCos, 1}},
      {"tanh", {MicroOp::kTanh, 1}},
      {"sigmoid", {MicroOp::kSigmoid, 1}},
      {"silu", {MicroOp::kSilu, 1}},
      {"relu", {MicroOp::kRelu, 1}},
      {"erf", {MicroOp::kErf, 1}},
      {"softplus", {MicroOp::kSoftplus, 1}},
      {"floor", {MicroOp::kFloor, 1}},
      {"greater", {MicroOp::kGreater, 2}},
      {"greater_equal", {MicroOp::kGreaterEqual, 2}},
      {"less", {MicroOp::kLess, 2}},
      {"equal", {MicroOp::kEqual, 2}},
      {"not_equal", {MicroOp::kNotEqual, 2}},
      {"select", {MicroOp::kSelect, 3}},
  };
  return kTable;
}

size_t value_id(const KernelRequest& request, int64_t id, size_t limit) {
  request.check(id >= 0 && static_cast<uint64_t>(id) < limit, "the id of an earlier value", std::to_string(id));
  return static_cast<size_t>(id);
}

}  // namespace

ScalarProgram parse_scalar_program(const KernelRequest& request) {
  const auto& names = request.attributes.texts("ops");
  const auto& operands = request.attributes.integers("operands");
  const auto& constants = request.attributes.numbers("constants");
  const size_t inputs = request.inputs.size();
  request.check(names.size() <= kMaxOps, "at most 1024 operations", std::to_string(names.size()));
  ScalarProgram program;
  size_t next_operand = 0;
  size_t next_constant = 0;
  for (const std::string& name : names) {
    const auto found = micro_ops().find(name);
    request.check(found != micro_ops().end(), "a known elementwise operation", name);
    ScalarOperation op{.op = found->second.op, .arity = found->second.arity};
    request.check(operands.size() - next_operand >= op.arity, "an operand for every operation", "too few operands");
    for (size_t i = 0; i < op.arity; ++i)
      op.source[i] = value_id(request, operands[next_operand++], inputs + program.ops.size());
    if (op.op == MicroOp::kConstant) {
      request.check(next_constant < constants.size(), "a number for every constant", "too few constants");
      op.constant = constants[next_constant++];
    }
    program.ops.push_back(op);
  }
  request.check(next_operand == operands.size(), "no operand left over", std::to_string(operands.size()));
  request.check(next_constant == constants.size(), "no constant left over", std::to_string(constants.size()));
  const auto& results = request.attributes.integers("results");
  request.check(results.size() == request.outputs.size(), "one result per output", std::to_string(results.size()));
  for (const int64_t result : results)
    program.results.push_back(value_id(request, result, inputs + program.ops.size()));
  return program;
}

}  // namespace heddle
