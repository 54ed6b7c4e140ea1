// `sample_token`: temperature, top-k and top-p in the order Hugging Face transformers applies them, then one Philox
// draw per row. Both filters only ever remove the smallest logits, so together they come down to one threshold.
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

struct Settings {
  uint64_t seed, step;
  float temperature;
  int32_t top_k;
  float top_p;
};

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

/// `scratch`: 8 bytes per logit for candidates or the heap, behind 4 bytes per logit for weights.
size_t sample_row(std::span<const float> x, size_t row, const Settings& settings, float* weights,
                  Candidate* candidates) {
  const size_t best = argmax(x);
  if (!(settings.temperature > 0.0F) || !std::isfinite(x[best])) return best;
  double total = HWY_DYNAMIC_DISPATCH(exp_weights)(x.data(), x.size(), x[best], 1.0F / settings.temperature, weights);
  Threshold kept;
  if (settings.top_k > 0 && static_cast<size_t>(settings.top_k) < x.size()) {
    kept.value = kth_largest(x, static_cast<size_t>(settings.top_k), reinterpret_cast<float*>(candidates));
    total = kept_weight(x, weights, kept);
  }
  if (settings.top_p < 1.0F) {
    kept = top_p_threshold(x, weights, kept, total, std::max(0.0F, settings.top_p), candidates);
    total = kept_weight(x, weights, kept);
  }
  const float u = uniform_from_bits(philox(settings.seed, settings.step, row)[0]);
  return draw(x, weights, kept, static_cast<double>(u) * total);
}

/// Logarithm of the token's probability under the logits as they came.
float log_probability(std::span<const float> x, size_t token, float* weights) {
  const float top = x[argmax(x)];
  const double total = HWY_DYNAMIC_DISPATCH(exp_weights)(x.data(), x.size(), top, 1.0F, weights);
  return static_cast<float>(static_cast<double>(x[token]) - static_cast<double>(top) - std::log(total));
}

void require_scalar(const KernelRequest& request, size_t input, DType dtype, const char* what) {
  const Operand& operand = request.inputs[input];
  request.check(operand.present && operand.dtype == dtype && operand.shape.count() == 1,
                std::string(what) + " as one " + dtype_name(dtype), operand.shape.str());
}

CompiledKernel compile_sample_token(const KernelRequest& request) {
  request.check(request.inputs.size() == 6 && (request.outputs.size() == 1 || request.outputs.size() == 2),
                "6 inputs and 1 or 2 outputs", std::to_string(request.inputs.size()));
  const Operand& logits = request.inputs[0];
  const Operand& seed = request.inputs[1];
  request.check(logits.present && logits.dtype == DType::kF32 && logits.shape.rank() == 2,
                "f32 logits [batch, vocabulary]", logits.shape.str());
  request.check(seed.present && seed.dtype == DType::kU32 && seed.shape == Shape({2}), "a seed of u32 [2]",
                seed.shape.str());
  require_scalar(request, 2, DType::kI32, "step");
  require_scalar(request, 3, DType::kF32, "temperature");
  require_scalar(request, 4, DType::kI32, "top_k");
  require_scalar(request, 5, DType::kF32, "top_p");
  const Shape rows({logits.shape[0]});
  const Operand& token = request.outputs[0];
  request.check(token.present && token.dtype == DType::kI32 && token.shape == rows, "tokens i32 " + rows.str(),
                token.shape.str());
  const bool wants_probability = request.outputs.size() == 2 && request.outputs[1].present;
  if (wants_probability)
    request.check(request.outputs[1].dtype == DType::kF32 && request.outputs[1].shape == rows,
                  "logprob f32 " + rows.str(), request.outputs[1].shape.str());
  const auto batch = static_cast<size_t>(logits.shape[0]);
  const auto width = static_cast<size_t>(logits.shape[1]);
  request.check(batch == 0 || (width > 0 && width <= std::numeric_limits<int32_t>::max()),
                "a vocabulary of 1 to 2^31 - 1 tokens", logits.shape.str());

  CompiledKernel kernel;
  kernel.scratch_per_thread = batch == 0 ? 0 : checked_mul(width, sizeof(float) + sizeof(Candidate), "sample_token");
  kernel.run = [batch, width, wants_probability](const RunArguments& arguments) {
    if (batch == 0) return;
    const auto* seed_words = arguments.input<uint32_t>(1);
    const Settings settings{seed_words[0] | static_cast<uint64_t>(seed_words[1]) << 32,
                            static_cast<uint32_t>(*arguments.input<int32_t>(2)), *arguments.input<float>(3),
                            *arguments.input<int32_t>(4), *arguments.input<float>(5)};
    const auto run = [&](size_t row, size_t thread) {
      const std::span<const float> x(arguments.input<float>(0) + row * width, width);
      auto* candidates = arguments.thread_scratch<Candidate>(thread);
      auto* weights = reinterpret_cast<float*>(candidates + width);
      const size_t chosen = sample_row(x, row, settings, weights, candidates);
      arguments.output<int32_t>(0)[row] = static_cast<int32_t>(chosen);
      if (wants_probability) arguments.output<float>(1)[row] = log_probability(x, chosen, weights);
    };
    if (batch == 1)
      run(0, 0);
    else
      arguments.pool.run(batch, [r = &run](size_t row, size_t thread) { (*r)(row, thread); });
  };
  return kernel;
}

}  // namespace

void register_sample(KernelTable& table) { table["sample_token"] = compile_sample_token; }

}  // namespace heddle

#endif  // HWY_ONCE
