// `sample_token`, in the order in which Hugging Face transformers applies its processors: bias, repetition penalty,
// presence and frequency penalties, mask; then temperature, top-k, top-p, min-p and one Philox draw per row. The three
// filters only ever remove the smallest logits, so together they come down to one threshold.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sample.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/vector_math-inl.h"

#ifndef HEDDLE_KERNELS_SAMPLE_ONCE
#define HEDDLE_KERNELS_SAMPLE_ONCE

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/random.h"
#include "kernels/kernel_table.h"

namespace heddle {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

}  // namespace
}  // namespace heddle

#endif  // HEDDLE_KERNELS_SAMPLE_ONCE

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace ::heddle::HWY_NAMESPACE;

/// weights[i] = e^((x[i] - top) * factor), 0 for NaN; returns their sum.
double exp_weights(const float* x, size_t n, float top, float factor, float* weights) {
  const hn::CappedTag<float, 16> d;
  const size_t lanes = hn::Lanes(d);
  const auto weigh = [&](const float* from) HWY_ATTR {
    const auto w = vector_exp(d, hn::Mul(hn::Sub(hn::LoadU(d, from), hn::Set(d, top)), hn::Set(d, factor)));
    return hn::IfThenZeroElse(hn::IsNaN(w), w);
  };
  double total = 0;
  size_t i = 0;
  // Short f32 runs added up in double: exact enough for vocabularies of any size.
  constexpr size_t kRun = 1024;
  while (i + lanes <= n) {
    auto sum = hn::Zero(d);
    for (const size_t end = std::min(n, i + kRun); i + lanes <= end; i += lanes) {
      const auto w = weigh(x + i);
      hn::StoreU(w, d, weights + i);
      sum = hn::Add(sum, w);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  if (i < n) {
    HWY_ALIGN float tail[2][16];
    std::fill_n(tail[0], 16, kLowest);
    std::copy(x + i, x + n, tail[0]);
    hn::Store(weigh(tail[0]), d, tail[1]);
    for (size_t k = 0; i + k < n; ++k) {
      weights[i + k] = tail[1][k];
      total += static_cast<double>(tail[1][k]);
    }
  }
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace heddle {
namespace {

HWY_EXPORT(exp_weights);

/// A row of the settings.
struct Settings {
  float temperature;
  float top_k;
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
};
constexpr size_t kSettings = 7;
static_assert(sizeof(Settings) == kSettings * sizeof(float));

/// A row of the draw: 64 bits of seed, the index of the token in its text, and the number of the text.
struct Draw {
  uint32_t seed[2];
  uint32_t step;
  uint32_t stream;
};
constexpr size_t kDraw = 4;

/// Tokens at or above it stay; among equal logits those with an index up to `last` do.
struct Threshold {
  float value = kLowest;
  size_t last = std::numeric_limits<size_t>::max();

  bool keeps(float logit, size_t index) const noexcept { return logit > value || (logit == value && index <= last); }
};

struct Candidate {
  float weight;
  int32_t index;
};

/// First maximum; NaN counts as minus infinity.
size_t argmax(std::span<const float> x) {
  size_t best = 0;
  float top = kLowest;
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i] > top) {
      top = x[i];
      best = i;
    }
  return best;
}

/// The k-th largest logit. The k largest so far are kept as a heap with the least on top, which few logits beat.
float kth_largest(std::span<const float> x, size_t k, float* heap) {
  size_t size = 0;
  for (const float value : x) {
    if (value != value) continue;
    if (size < k) {
      heap[size++] = value;
      std::push_heap(heap, heap + size, std::greater<>());
    } else if (value > heap[0]) {
      std::pop_heap(heap, heap + k, std::greater<>());
      heap[k - 1] = value;
      std::push_heap(heap, heap + k, std::greater<>());
    }
  }
  return size < k ? kLowest : heap[0];
}

/// Keeps the largest tokens up to and including the one with which their probability reaches top_p.
Threshold top_p_threshold(std::span<const float> x, const float* weights, const Threshold& kept, double total,
                          float top_p, Candidate* candidates) {
  // All tokens of at most this weight together weigh no more than what is to go: they need no sorting.
  const double negligible = (1.0 - static_cast<double>(top_p)) * total / static_cast<double>(x.size());
  size_t count = 0;
  for (size_t i = 0; i < x.size(); ++i)
    if (static_cast<double>(weights[i]) > negligible && kept.keeps(x[i], i))
      candidates[count++] = {weights[i], static_cast<int32_t>(i)};
  if (count == 0) {
    const size_t best = argmax(x);
    return {x[best], best};
  }
  const auto before = [&](const Candidate& a, const Candidate& b) {
    const float left = x[static_cast<size_t>(a.index)];
    const float right = x[static_cast<size_t>(b.index)];
    return left > right || (left == right && a.index < b.index);
  };
  // Usually a short prefix suffices, so sort piece by piece.
  double sum = 0;
  size_t sorted = 0;
  size_t last = 0;
  for (size_t piece = 128; sorted < count; piece *= 8) {
    const size_t end = std::min(count, sorted + piece);
    if (end < count) std::nth_element(candidates + sorted, candidates + end, candidates + count, before);
    std::sort(candidates + sorted, candidates + end, before);
    for (; sorted < end; ++sorted) {
      last = static_cast<size_t>(candidates[sorted].index);
      sum += static_cast<double>(candidates[sorted].weight);
      if (sum >= static_cast<double>(top_p) * total) return {x[last], last};
    }
  }
  return {x[last], last};
}

size_t draw(std::span<const float> x, const float* weights, const Threshold& kept, double target) {
  double sum = 0;
  size_t chosen = x.size();
  for (size_t i = 0; i < x.size(); ++i) {
    if (!kept.keeps(x[i], i) || weights[i] == 0.0F) continue;
    chosen = i;
    sum += static_cast<double>(weights[i]);
    if (sum > target) break;
  }
  return chosen == x.size() ? argmax(x) : chosen;
}

double kept_weight(std::span<const float> x, const float* weights, const Threshold& kept) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i)
    if (kept.keeps(x[i], i)) sum += static_cast<double>(weights[i]);
  return sum;
}

/// Calls apply(token, times) for every different token of `history`, sorting it in `sorted`.
template <class Apply>
void each_token(std::span<const int32_t> history, size_t width, int32_t* sorted, const Apply& apply) {
  size_t count = 0;
  for (const int32_t token : history)
    if (token >= 0 && static_cast<size_t>(token) < width) sorted[count++] = token;
  std::sort(sorted, sorted + count);
  for (size_t i = 0; i < count;) {
    const int32_t* const end = std::upper_bound(sorted + i, sorted + count, sorted[i]);
    const auto times = static_cast<size_t>(end - (sorted + i));
    apply(static_cast<size_t>(sorted[i]), times);
    i += times;
  }
}

/// What a row's logits are changed by before they are sampled; null where there is nothing.
struct Edits {
  const float* bias = nullptr;
  const uint32_t* mask = nullptr;
  std::span<const int32_t> history;
  /// Tokens of the history that were not generated.
  size_t prompt = 0;
};

void apply_edits(const Edits& edits, const Settings& settings, std::span<float> x, int32_t* sorted) {
  if (edits.bias != nullptr)
    for (size_t i = 0; i < x.size(); ++i) x[i] += edits.bias[i];
  if (const float penalty = settings.repetition_penalty; penalty > 0.0F && penalty != 1.0F)
    each_token(edits.history, x.size(), sorted,
               [&](size_t token, size_t) { x[token] = x[token] < 0.0F ? x[token] * penalty : x[token] / penalty; });
  if (settings.presence_penalty != 0.0F || settings.frequency_penalty != 0.0F)
    each_token(edits.history.subspan(std::min(edits.prompt, edits.history.size())), x.size(), sorted,
               [&](size_t token, size_t times) {
                 x[token] -= settings.presence_penalty + settings.frequency_penalty * static_cast<float>(times);
               });
  if (edits.mask != nullptr)
    for (size_t i = 0; i < x.size(); ++i)
      if ((edits.mask[i / 32] >> (i % 32) & 1U) == 0) x[i] = kLowest;
}

/// `candidates` also has room for the heap: 8 bytes per logit.
size_t sample_row(std::span<const float> x, const Draw& random, const Settings& settings, float* weights,
                  Candidate* candidates) {
  const size_t best = argmax(x);
  if (!(settings.temperature > 0.0F) || !std::isfinite(x[best])) return best;
  double total = HWY_DYNAMIC_DISPATCH(exp_weights)(x.data(), x.size(), x[best], 1.0F / settings.temperature, weights);
  Threshold kept;
  if (settings.top_k >= 1.0F && settings.top_k < static_cast<float>(x.size())) {
    kept.value = kth_largest(x, static_cast<size_t>(settings.top_k), reinterpret_cast<float*>(candidates));
    total = kept_weight(x, weights, kept);
  }
  if (settings.top_p < 1.0F) {
    kept = top_p_threshold(x, weights, kept, total, std::max(0.0F, settings.top_p), candidates);
    total = kept_weight(x, weights, kept);
  }
  if (settings.min_p > 0.0F) {
    const float least = x[best] + settings.temperature * std::log(std::min(1.0F, settings.min_p));
    if (least > kept.value) kept = {least};
    total = kept_weight(x, weights, kept);
  }
  const uint64_t seed = random.seed[0] | static_cast<uint64_t>(random.seed[1]) << 32;
  const float u = uniform_from_bits(philox(seed, random.step, random.stream)[0]);
  return draw(x, weights, kept, static_cast<double>(u) * total);
}

/// Logarithms of probabilities under the logits as they came.
class LogProbabilities {
 public:
  LogProbabilities(std::span<const float> x, float* weights) : x_(x), top_(x[argmax(x)]) {
    total_ = std::log(HWY_DYNAMIC_DISPATCH(exp_weights)(x.data(), x.size(), top_, 1.0F, weights));
  }
  float operator()(size_t token) const {
    return static_cast<float>(static_cast<double>(x_[token]) - static_cast<double>(top_) - total_);
  }

 private:
  std::span<const float> x_;
  float top_;
  double total_;
};

/// The `count` largest logits, the first of equal ones first; NaN counts as minus infinity.
void largest(std::span<const float> x, std::span<int32_t> tokens, Candidate* candidates) {
  for (size_t i = 0; i < x.size(); ++i) candidates[i] = {x[i] == x[i] ? x[i] : kLowest, static_cast<int32_t>(i)};
  std::partial_sort(candidates, candidates + tokens.size(), candidates + x.size(),
                    [](const Candidate& a, const Candidate& b) {
                      return a.weight > b.weight || (a.weight == b.weight && a.index < b.index);
                    });
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = candidates[i].index;
}

enum Input : uint8_t { kLogits, kDraws, kAllSettings, kBias, kMask, kHistory, kPrompt, kInputs };
enum Output : uint8_t { kToken, kLogProbability, kTop, kTopLogProbability, kOutputs };

struct SamplePlan {
  size_t batch = 0;
  size_t width = 0;
  /// Distance of the biases of two rows: 0 where they share one.
  size_t bias_stride = 0;
  size_t mask_words = 0;
  size_t history = 0;
  size_t top = 0;

  size_t scratch() const {
    const size_t logits = checked_mul(width, sizeof(Candidate) + 2 * sizeof(float), "sample_token");
    return checked_add(logits, checked_mul(history, sizeof(int32_t), "sample_token"), "sample_token");
  }
};

Edits edits_of(const SamplePlan& plan, const RunArguments& arguments, size_t row) {
  Edits edits;
  if (const auto* bias = arguments.input<float>(kBias)) edits.bias = bias + row * plan.bias_stride;
  if (const auto* mask = arguments.input<uint32_t>(kMask)) edits.mask = mask + row * plan.mask_words;
  if (const auto* history = arguments.input<int32_t>(kHistory)) {
    edits.history = {history + row * plan.history, plan.history};
    edits.prompt = static_cast<size_t>(std::max(0, arguments.input<int32_t>(kPrompt)[row]));
  }
  return edits;
}

void run_row(const SamplePlan& plan, const RunArguments& arguments, size_t row, size_t thread) {
  const std::span<const float> x(arguments.input<float>(kLogits) + row * plan.width, plan.width);
  const auto& settings = reinterpret_cast<const Settings*>(arguments.in[kAllSettings])[row];
  const auto& draw = reinterpret_cast<const Draw*>(arguments.in[kDraws])[row];
  auto* const candidates = arguments.thread_scratch<Candidate>(thread);
  auto* const weights = reinterpret_cast<float*>(candidates + plan.width);
  std::span<float> edited(weights + plan.width, plan.width);
  const Edits edits = edits_of(plan, arguments, row);
  const bool changes = edits.bias != nullptr || edits.mask != nullptr || !edits.history.empty();
  if (changes) {
    std::copy(x.begin(), x.end(), edited.begin());
    apply_edits(edits, settings, edited, reinterpret_cast<int32_t*>(edited.data() + plan.width));
  }
  const size_t chosen = sample_row(changes ? edited : x, draw, settings, weights, candidates);
  arguments.output<int32_t>(kToken)[row] = static_cast<int32_t>(chosen);
  float* const probability = arguments.output<float>(kLogProbability);
  auto* const top = arguments.output<int32_t>(kTop);
  auto* const top_probability = arguments.output<float>(kTopLogProbability);
  if (probability == nullptr && top == nullptr && top_probability == nullptr) return;
  const LogProbabilities of(x, weights);
  if (probability != nullptr) probability[row] = of(chosen);
  if (top == nullptr || top_probability == nullptr) return;
  const std::span<int32_t> tokens(top + row * plan.top, plan.top);
  largest(x, tokens, candidates);
  for (size_t i = 0; i < plan.top; ++i) top_probability[row * plan.top + i] = of(static_cast<size_t>(tokens[i]));
}

void check_operand(const KernelRequest& request, const Operand& operand, DType dtype, const Shape& shape,
                   const char* what) {
  request.check(operand.present && operand.dtype == dtype && operand.shape == shape,
                std::string(what) + " " + dtype_name(dtype) + " " + shape.str(), operand.shape.str());
}

void check_edits(const KernelRequest& request, SamplePlan& plan) {
  const Operand& history = request.inputs[kHistory];
  const auto batch = static_cast<int64_t>(plan.batch);
  if (const Operand& bias = request.inputs[kBias]; bias.present) {
    const auto width = static_cast<int64_t>(plan.width);
    const bool has_rows = bias.shape.rank() == 2;
    check_operand(request, bias, DType::kF32, has_rows ? Shape({batch, width}) : Shape({width}), "a bias");
    plan.bias_stride = has_rows ? plan.width : 0;
  }
  plan.mask_words = (plan.width + 31) / 32;
  if (request.inputs[kMask].present)
    check_operand(request, request.inputs[kMask], DType::kU32, Shape({batch, static_cast<int64_t>(plan.mask_words)}),
                  "a mask");
  request.check(history.present == request.inputs[kPrompt].present, "a history with the lengths of its prompts",
                "one without the other");
  if (!history.present) return;
  request.check(history.dtype == DType::kI32 && history.shape.rank() == 2 && history.shape[0] == batch,
                "a history i32 [batch, length]", history.shape.str());
  check_operand(request, request.inputs[kPrompt], DType::kI32, Shape({batch}), "lengths of prompts");
  plan.history = static_cast<size_t>(history.shape[1]);
}

CompiledKernel compile_sample_token(const KernelRequest& request) {
  request.expect_counts(kInputs, kOutputs);
  const Operand& logits = request.inputs[kLogits];
  request.check(logits.present && logits.dtype == DType::kF32 && logits.shape.rank() == 2,
                "f32 logits [batch, vocabulary]", logits.shape.str());
  const int64_t batch = logits.shape[0];
  SamplePlan plan{.batch = static_cast<size_t>(batch), .width = static_cast<size_t>(logits.shape[1])};
  request.check(batch == 0 || (plan.width > 0 && plan.width <= std::numeric_limits<int32_t>::max()),
                "a vocabulary of 1 to 2^31 - 1 tokens", logits.shape.str());
  check_operand(request, request.inputs[kDraws], DType::kU32, Shape({batch, kDraw}), "draws");
  check_operand(request, request.inputs[kAllSettings], DType::kF32, Shape({batch, kSettings}), "settings");
  check_edits(request, plan);
  check_operand(request, request.outputs[kToken], DType::kI32, Shape({batch}), "tokens");
  if (request.outputs[kLogProbability].present)
    check_operand(request, request.outputs[kLogProbability], DType::kF32, Shape({batch}), "log-probabilities");
  const int64_t top = request.attributes.integer("top");
  request.check(top >= 1 && (batch == 0 || static_cast<size_t>(top) <= plan.width),
                "top from 1 to the vocabulary's size", std::to_string(top));
  plan.top = static_cast<size_t>(top);
  request.check(request.outputs[kTop].present == request.outputs[kTopLogProbability].present,
                "the most likely tokens with their log-probabilities", "one without the other");
  if (request.outputs[kTop].present) {
    check_operand(request, request.outputs[kTop], DType::kI32, Shape({batch, top}), "the most likely tokens");
    check_operand(request, request.outputs[kTopLogProbability], DType::kF32, Shape({batch, top}), "log-probabilities");
  }

  CompiledKernel kernel;
  kernel.scratch_per_thread = batch == 0 ? 0 : plan.scratch();
  kernel.run = [plan](const RunArguments& arguments) {
    const auto run = [&](size_t row, size_t thread) { run_row(plan, arguments, row, thread); };
    arguments.pool.run(plan.batch, [r = &run](size_t row, size_t thread) { (*r)(row, thread); });
  };
  return kernel;
}

}  // namespace

void register_sample(KernelTable& table) { table["sample_token"] = compile_sample_token; }

}  // namespace heddle

#endif  // HWY_ONCE
