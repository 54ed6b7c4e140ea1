#include "structured/chain.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "core/status.h"

namespace heddle {
namespace {

constexpr size_t kMaxFactors = 16;

int64_t product(std::span<const int64_t> sizes) {
  size_t count = 1;
  for (const int64_t size : sizes) count = checked_mul(count, static_cast<size_t>(size), "kronecker");
  return static_cast<int64_t>(checked_mul(count, sizeof(float), "kronecker") / sizeof(float));
}

std::vector<size_t> read_order(const KernelRequest& request, size_t factors) {
  std::vector<size_t> order;
  for (const int64_t factor : request.attributes.integers("order")) {
    const bool known = factor >= 0 && factor < static_cast<int64_t>(factors);
    request.check(known && std::find(order.begin(), order.end(), factor) == order.end(),
                  "every factor once in the order", std::to_string(factor));
    order.push_back(static_cast<size_t>(factor));
  }
  request.check(order.size() == factors, "every factor once in the order", std::to_string(order.size()));
  return order;
}

/// Blocks [blocks, m, k] side by side.
Stage stage_of_blocks(const Shape& weight) {
  Stage stage;
  stage.pre = weight[0];
  stage.m = weight[1];
  stage.k = weight[2];
  stage.in = {.pre = stage.k, .item = 1};
  stage.out = {.pre = stage.m, .item = 1};
  stage.in_features = stage.pre * stage.k;
  stage.out_features = stage.pre * stage.m;
  stage.w_pre = stage.m * stage.k;
  stage.w_m = stage.k;
  stage.w_k = 1;
  return stage;
}

}  // namespace

Stage Stage::transposed() const {
  Stage turned = *this;
  std::swap(turned.m, turned.k);
  std::swap(turned.in, turned.out);
  std::swap(turned.in_features, turned.out_features);
  std::swap(turned.w_m, turned.w_k);
  return turned;
}

Chain read_block_diagonal(const KernelRequest& request, std::span<const Operand> weights) {
  request.check(weights.size() == 1 && weights[0].shape.rank() == 3, "one weight [blocks, out, in]",
                weights[0].shape.str());
  return {{stage_of_blocks(weights[0].shape)}, {0}};
}

Chain read_kronecker(const KernelRequest& request, std::span<const Operand> weights) {
  request.check(weights.size() <= kMaxFactors, "at most 16 factors", std::to_string(weights.size()));
  std::vector<int64_t> sizes;
  for (const Operand& factor : weights) {
    request.check(factor.shape.rank() == 3 && factor.shape[0] == weights[0].shape[0], "factors [terms, m, n]",
                  factor.shape.str());
    sizes.push_back(factor.shape[2]);
  }
  const int64_t terms = weights[0].shape[0];
  Chain chain;
  chain.weight_of = read_order(request, weights.size());
  for (size_t i = 0; i < chain.weight_of.size(); ++i) {
    const size_t axis = chain.weight_of[i];
    const bool last = i + 1 == chain.weight_of.size();
    Stage stage;
    stage.terms = terms;
    stage.pre = product(std::span(sizes).first(axis));
    stage.post = product(std::span(sizes).subspan(axis + 1));
    stage.m = weights[axis].shape[1];
    stage.k = weights[axis].shape[2];
    const int64_t features = product(sizes);
    sizes[axis] = stage.m;
    const int64_t results = product(sizes);
    stage.in = {.term = i == 0 ? 0 : features, .pre = stage.k * stage.post, .post = 1, .item = stage.post};
    stage.out = {.term = last ? 0 : results, .pre = stage.m * stage.post, .post = 1, .item = stage.post};
    const std::array<int64_t, 2> all_in{i == 0 ? 1 : terms, features};
    const std::array<int64_t, 2> all_out{last ? 1 : terms, results};
    stage.in_features = product(all_in);
    stage.out_features = product(all_out);
    stage.w_term = stage.m * stage.k;
    stage.w_m = stage.k;
    stage.w_k = 1;
    chain.stages.push_back(stage);
  }
  return chain;
}

Chain read_monarch(const KernelRequest& request, std::span<const Operand> weights) {
  request.check(weights.size() == 2 && weights[0].shape.rank() == 3 && weights[1].shape.rank() == 3,
                "weights [K, q, p] and [L, s, r]", std::to_string(weights.size()) + " weights");
  Stage second = stage_of_blocks(weights[1].shape);
  second.in = second.out = {.pre = 1, .item = second.pre};
  return {{stage_of_blocks(weights[0].shape), second}, {0, 1}};
}

}  // namespace heddle
