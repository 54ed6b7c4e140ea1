#include "structured/chain_kernel.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/rows.h"

namespace heddle {
namespace {

constexpr const char* kPlace = "structured product";

struct Described {
  ChainShape shape;
  std::vector<size_t> weight_of;
};

void check_floats(const KernelRequest& request, const Operand& operand, size_t least_rank) {
  request.check(operand.present, "no operand left out", "an absent operand");
  if (operand.dtype != DType::kF32)
    throw Error(ErrorCode::kDtype, std::string(request.op), "f32", dtype_name(operand.dtype));
  request.check(operand.shape.rank() >= least_rank, "rank " + std::to_string(least_rank) + " at least",
                operand.shape.str());
}

/// x, the weights and y or dy, in whatever lists the instruction has them.
Described describe(const KernelRequest& request, const Operand& x, std::span<const Operand> weights, const Operand& y,
                   ReadChain read) {
  check_floats(request, x, 1);
  check_floats(request, y, 1);
  for (const Operand& weight : weights) {
    check_floats(request, weight, 2);
    const auto dims = weight.shape.dims();
    request.check(std::all_of(dims.begin(), dims.end(), [](int64_t size) { return size > 0; }),
                  "weights without an empty dimension", weight.shape.str());
  }
  const size_t rank = x.shape.rank();
  const auto leading = x.shape.dims().first(rank - 1);
  request.check(y.shape.rank() == rank && std::equal(leading.begin(), leading.end(), y.shape.dims().begin()),
                "the leading dimensions of " + x.shape.str(), y.shape.str());
  Chain chain = read(request, weights);
  Described made;
  made.weight_of = std::move(chain.weight_of);
  made.shape = {.rows = static_cast<int64_t>(x.shape.count(0, rank - 1)),
                .in = x.shape.back(0),
                .out = y.shape.back(0),
                .stages = std::move(chain.stages),
                .precision = request.attributes.has("precision")
                                 ? precision_from_name(request.attributes.text("precision"), request.op)
                                 : Precision::kF32};
  made.shape.check(request);
  return made;
}

template <class Plan>
CompiledKernel with_scratch(const std::shared_ptr<const Plan>& plan) {
  CompiledKernel kernel;
  kernel.scratch_per_thread = (plan->scratch_per_thread() + 63) / 64 * 64;
  return kernel;
}

}  // namespace

CompiledKernel compile_chain(const KernelRequest& request, ReadChain read) {
  request.check(request.inputs.size() >= 2, "x and weights", std::to_string(request.inputs.size()) + " inputs");
  request.expect_counts(request.inputs.size(), 1);
  const Described made = describe(request, request.inputs[0], request.inputs.subspan(1), request.outputs[0], read);
  if (made.shape.rows == 0 || made.shape.out == 0) return {.run = [](const RunArguments&) {}};
  const auto plan = std::make_shared<const ChainProduct>(made.shape);
  CompiledKernel kernel = with_scratch(plan);
  kernel.run = [plan, weight_of = made.weight_of](const RunArguments& args) {
    std::vector<const float*> weights(weight_of.size());
    std::transform(weight_of.begin(), weight_of.end(), weights.begin(),
                   [&](size_t weight) { return args.input<float>(1 + weight); });
    plan->run(args.input<float>(0), weights, args.output<float>(0), args);
  };
  return kernel;
}

CompiledKernel compile_chain_vjp(const KernelRequest& request, ReadChain read) {
  request.check(request.inputs.size() >= 3, "x, weights and dy", std::to_string(request.inputs.size()) + " inputs");
  const size_t weights = request.inputs.size() - 2;
  request.expect_counts(weights + 2, weights + 1);
  const Described made =
      describe(request, request.inputs[0], request.inputs.subspan(1, weights), request.inputs.back(), read);
  std::vector<bool> wanted(made.weight_of.size() + 1);
  for (size_t i = 0; i <= weights; ++i)
    check_optional(request, request.outputs[i], "gradient", DType::kF32, request.inputs[i].shape);
  wanted[0] = request.outputs[0].present;
  for (size_t stage = 0; stage < made.weight_of.size(); ++stage)
    wanted[stage + 1] = request.outputs[1 + made.weight_of[stage]].present;
  std::vector<size_t> bytes;
  for (const Operand& output : request.outputs) bytes.push_back(output.present ? output.shape.bytes(DType::kF32) : 0);
  if (made.shape.rows == 0 || made.shape.in == 0 || made.shape.out == 0)
    return {.run = [bytes](const RunArguments& args) {
      for (size_t i = 0; i < bytes.size(); ++i)
        if (bytes[i] != 0) std::memset(args.out[i], 0, bytes[i]);
    }};
  const auto plan = std::make_shared<const ChainGradient>(made.shape, wanted);
  CompiledKernel kernel = with_scratch(plan);
  kernel.run = [plan, weights, weight_of = made.weight_of](const RunArguments& args) {
    std::vector<const float*> given;
    std::vector<float*> results{args.output<float>(0)};
    for (const size_t weight : weight_of) {
      given.push_back(args.input<float>(1 + weight));
      results.push_back(args.output<float>(1 + weight));
    }
    plan->run(args.input<float>(0), given, args.input<float>(1 + weights), results, args);
  };
  return kernel;
}

}  // namespace heddle
