// `sample_token` as the CPU has it (cpp/kernels/sample.cpp): edits of the logits, then temperature, top-k, top-p, min-p
// and one Philox draw per row. A block has a row. Nothing is sorted: each threshold is the largest number, bit after
// bit, above which enough still stands, and the drawn token is found by halving.
#include <algorithm>

#include "cuda/core/launch.cuh"
#include "cuda/core/philox.cuh"
#include "cuda/core/warp.cuh"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 512;
constexpr int64_t kRowsAtOnce = 128;

enum Input : uint8_t { kLogits, kDraws, kAllSettings, kBias, kMask, kHistory, kPrompt };
enum Output : uint8_t { kToken, kLogProbability, kTop, kTopLogProbability };

struct SamplePlan {
  int64_t batch = 0, width = 0, bias_stride = 0, mask_words = 0, history = 0, top = 0;
  /// Of a row's scratch memory: edited logits, weights, and how often the history and its generated part have a token.
  size_t weights = 0, counts = 0, bytes = 0;
};

struct Operands {
  const float* logits;
  const uint32_t* draws;
  const float* settings;
  const float* bias;
  const uint32_t* mask;
  const int32_t* history;
  const int32_t* prompt;
  int32_t* token;
  float* log_probability;
  int32_t* top;
  float* top_log_probability;
};

/// A row of the settings.
struct Settings {
  float temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
};

/// Grows with the value; -0 is 0, and NaN is below all.
__device__ unsigned order_of(float value) {
  if (value != value) return 0;
  const unsigned bits = __float_as_uint(value == 0.0F ? 0.0F : value);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ float value_of(unsigned order) {
  return __uint_as_float((order & 0x80000000U) != 0 ? order & 0x7fffffffU : ~order);
}

__device__ float lowest() { return -INFINITY; }

/// Tokens above `value` stay, and of those equal to it the ones up to `last`.
struct Threshold {
  float value;
  int64_t last;

  __device__ bool keeps(float logit, int64_t index) const { return logit > value || (logit == value && index <= last); }
};

/// What the threads of a block share.
struct Workspace {
  Shared<double, kWarpSize>& sums;
  Shared<float, kWarpSize>& values;
  Shared<int, kWarpSize>& places;
};

/// Σ of term(i) for i below width, in every thread.
template <class Term>
__device__ double sum_over(int64_t width, const Workspace& shared, const Term& term) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) sum += term(i);
  return block_reduce(sum, 0.0, Sum(), shared.sums);
}

struct Place {
  float value;
  int at;
};

__device__ bool larger(const Place& a, const Place& b) {
  return a.value > b.value || (a.value == b.value && a.at < b.at);
}

/// The largest number behind `before` in the order of falling numbers, the first of equal ones; NaN counts as minus
/// infinity.
__device__ Place next_largest(const float* x, int64_t width, const Place* before, const Workspace& shared) {
  Place best{lowest(), static_cast<int>(width)};
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    const Place own{x[i] == x[i] ? x[i] : lowest(), static_cast<int>(i)};
    if ((before == nullptr || larger(*before, own)) && larger(own, best)) best = own;
  }
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    const Place other{__shfl_xor_sync(kWholeWarp, best.value, bits), __shfl_xor_sync(kWholeWarp, best.at, bits)};
    if (larger(other, best)) best = other;
  }
  if (threadIdx.x % kWarpSize == 0) {
    shared.values[threadIdx.x / kWarpSize] = best.value;
    shared.places[threadIdx.x / kWarpSize] = best.at;
  }
  __syncthreads();
  for (unsigned warp = 0; warp < kThreads / kWarpSize; ++warp) {
    const Place other{shared.values[warp], shared.places[warp]};
    if (larger(other, best)) best = other;
  }
  __syncthreads();
  return best;
}

/// The largest number whose predicate holds, of a predicate that holds up to some number.
template <class Predicate>
__device__ unsigned largest_order(const Predicate& holds_at) {
  unsigned order = 0;
  for (int bit = 31; bit >= 0; --bit)
    if (holds_at(order | 1U << bit)) order |= 1U << bit;
  return order;
}

/// The first index whose predicate holds, of a predicate that holds from some index on; width where it never does.
template <class Predicate>
__device__ int64_t first_index(int64_t width, const Predicate& holds_at) {
  int64_t low = 0, high = width;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (holds_at(middle))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

/// weights[i] = e^((x[i] - top) factor), 0 for NaN; their sum.
__device__ double weigh(const float* x, int64_t width, float top, float factor, float* weights,
                        const Workspace& shared) {
  return sum_over(width, shared, [&](int64_t i) {
    const float weight = expf((x[i] - top) * factor);
    weights[i] = weight == weight ? weight : 0.0F;
    return static_cast<double>(weights[i]);
  });
}

__device__ double kept_weight(const float* x, const float* weights, int64_t width, const Threshold& kept,
                              const Workspace& shared) {
  return sum_over(width, shared,
                  [&](int64_t i) { return kept.keeps(x[i], i) ? static_cast<double>(weights[i]) : 0.0; });
}

__device__ float kth_largest(const float* x, int64_t width, double k, const Workspace& shared) {
  const unsigned order = largest_order([&](unsigned least) {
    return sum_over(width, shared, [&](int64_t i) { return order_of(x[i]) >= least ? 1.0 : 0.0; }) >= k;
  });
  return order == 0 ? lowest() : value_of(order);
}

/// Keeps the largest tokens up to and including the one with which their probability reaches top_p.
__device__ Threshold top_p_threshold(const float* x, const float* weights, int64_t width, const Threshold& kept,
                                     double total, float top_p, const Place& best, const Workspace& shared) {
  // As on the CPU, which sorts no tokens that together weigh less than what is to go.
  const double negligible = (1.0 - static_cast<double>(top_p)) * total / static_cast<double>(width);
  const auto weight_of = [&](int64_t i) {
    const double weight = weights[i];
    return weight > negligible && kept.keeps(x[i], i) ? weight : 0.0;
  };
  const double all = sum_over(width, shared, weight_of);
  if (all == 0.0) return {best.value, best.at};
  const double wanted = fmin(static_cast<double>(top_p) * total, all);
  const auto enough = [&](double weight) { return weight > 0.0 && weight >= wanted; };
  const unsigned order = largest_order([&](unsigned least) {
    return enough(sum_over(width, shared, [&](int64_t i) { return order_of(x[i]) >= least ? weight_of(i) : 0.0; }));
  });
  const int64_t last = first_index(width, [&](int64_t end) {
    return enough(sum_over(width, shared, [&](int64_t i) {
      const unsigned own = order_of(x[i]);
      return own > order || (own == order && i <= end) ? weight_of(i) : 0.0;
    }));
  });
  return {value_of(order), last};
}

/// The first token at which the weights before and of it exceed the target, the last one that has weight if none does.
__device__ int64_t draw(const float* x, const float* weights, int64_t width, const Threshold& kept, double target,
                        const Place& best, const Workspace& shared) {
  const auto up_to = [&](int64_t end) {
    return sum_over(width, shared,
                    [&](int64_t i) { return i <= end && kept.keeps(x[i], i) ? static_cast<double>(weights[i]) : 0.0; });
  };
  const double all = up_to(width);
  if (all == 0.0) return best.at;
  if (all > target) return first_index(width, [&](int64_t end) { return up_to(end) > target; });
  return first_index(width, [&](int64_t end) { return up_to(end) >= all; });
}

/// x = the row's logits with bias, penalties and mask.
__device__ void edit_row(const SamplePlan& plan, const Operands& given, int64_t row, const Settings& settings, float* x,
                         int32_t* counts) {
  const int64_t width = plan.width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) counts[i] = counts[width + i] = 0;
  __syncthreads();
  if (given.history != nullptr)
    for (int64_t i = threadIdx.x; i < plan.history; i += kThreads) {
      const int32_t token = given.history[row * plan.history + i];
      if (token < 0 || token >= width) continue;
      atomicAdd(&counts[token], 1);
      if (i >= given.prompt[row]) atomicAdd(&counts[width + token], 1);
    }
  __syncthreads();
  const float penalty = settings.repetition_penalty;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    float value = given.logits[row * width + i];
    if (given.bias != nullptr) value += given.bias[row * plan.bias_stride + i];
    if (penalty > 0.0F && penalty != 1.0F && counts[i] > 0) value = value < 0.0F ? value * penalty : value / penalty;
    if (counts[width + i] > 0)
      value -= settings.presence_penalty + settings.frequency_penalty * static_cast<float>(counts[width + i]);
    if (given.mask != nullptr && (given.mask[row * plan.mask_words + i / 32] >> (i % 32) & 1U) == 0) value = lowest();
    x[i] = value;
  }
  __syncthreads();
}

__device__ int64_t sample_row(const float* x, float* weights, int64_t width, const Settings& settings,
                              const uint32_t* random, const Workspace& shared) {
  Place best = next_largest(x, width, nullptr, shared);
  best.value = x[best.at];
  if (!(settings.temperature > 0.0F) || !(best.value - best.value == 0.0F)) return best.at;
  double total = weigh(x, width, best.value, 1.0F / settings.temperature, weights, shared);
  Threshold kept{lowest(), width};
  if (settings.top_k >= 1.0F && settings.top_k < static_cast<float>(width)) {
    kept.value = kth_largest(x, width, floor(static_cast<double>(settings.top_k)), shared);
    total = kept_weight(x, weights, width, kept, shared);
  }
  if (settings.top_p < 1.0F) {
    kept = top_p_threshold(x, weights, width, kept, total, settings.top_p > 0.0F ? settings.top_p : 0.0F, best, shared);
    total = kept_weight(x, weights, width, kept, shared);
  }
  if (settings.min_p > 0.0F) {
    const float least = best.value + settings.temperature * logf(settings.min_p < 1.0F ? settings.min_p : 1.0F);
    if (least > kept.value) kept = {least, width};
    total = kept_weight(x, weights, width, kept, shared);
  }
  const uint64_t seed = random[0] | static_cast<uint64_t>(random[1]) << 32;
  const float u = unit_interval(philox_word(seed, random[2], 4 * static_cast<uint64_t>(random[3])));
  return draw(x, weights, width, kept, static_cast<double>(u) * total, best, shared);
}

/// Logarithms of probabilities under the logits as they came.
__device__ void store_log_probabilities(const SamplePlan& plan, const Operands& given, int64_t row, float* weights,
                                        int64_t token, const Workspace& shared) {
  const float* const x = given.logits + row * plan.width;
  Place best = next_largest(x, plan.width, nullptr, shared);
  const double top = x[best.at];
  const double all = log(weigh(x, plan.width, x[best.at], 1.0F, weights, shared));
  const auto probability_of = [&](int64_t at) { return static_cast<float>(static_cast<double>(x[at]) - top - all); };
  if (threadIdx.x == 0 && given.log_probability != nullptr) given.log_probability[row] = probability_of(token);
  if (given.top == nullptr) return;
  for (int64_t rank = 0; rank < plan.top; ++rank) {
    if (threadIdx.x == 0) {
      given.top[row * plan.top + rank] = best.at;
      given.top_log_probability[row * plan.top + rank] = probability_of(best.at);
    }
    if (rank + 1 < plan.top) best = next_largest(x, plan.width, &best, shared);
  }
}

__global__ void __launch_bounds__(kThreads, 1) sample_rows(SamplePlan plan, Operands given, std::byte* scratch) {
  __shared__ Shared<double, kWarpSize> sums;
  __shared__ Shared<float, kWarpSize> values;
  __shared__ Shared<int, kWarpSize> places;
  const Workspace shared{sums, values, places};
  scratch += blockIdx.x * plan.bytes;
  auto* const edited = reinterpret_cast<float*>(scratch);
  auto* const weights = reinterpret_cast<float*>(scratch + plan.weights);
  for (int64_t row = blockIdx.x; row < plan.batch; row += gridDim.x) {
    const float* const own = given.settings + row * 7;
    const Settings settings{own[0], own[1], own[2], own[3], own[4], own[5], own[6]};
    const bool changes = given.bias != nullptr || given.mask != nullptr || given.history != nullptr;
    if (changes) edit_row(plan, given, row, settings, edited, reinterpret_cast<int32_t*>(scratch + plan.counts));
    const float* const x = changes ? edited : given.logits + row * plan.width;
    const int64_t token = sample_row(x, weights, plan.width, settings, given.draws + row * 4, shared);
    if (threadIdx.x == 0) given.token[row] = static_cast<int32_t>(token);
    if (given.log_probability != nullptr || given.top != nullptr)
      store_log_probabilities(plan, given, row, weights, token, shared);
    __syncthreads();
  }
}

Kernel compile_sample_token(const KernelRequest& request) {
  const Operand& logits = request.inputs[kLogits];
  SamplePlan plan;
  plan.batch = logits.shape[0];
  plan.width = logits.shape[1];
  if (plan.batch == 0) return nothing();
  plan.bias_stride = request.inputs[kBias].present && request.inputs[kBias].shape.rank() == 2 ? plan.width : 0;
  plan.mask_words = ceil_div(plan.width, 32);
  plan.history = request.inputs[kHistory].present ? request.inputs[kHistory].shape[1] : 0;
  plan.top = request.attributes.integer("top");
  const auto row_bytes = static_cast<size_t>(ceil_div(plan.width, 64) * 64) * sizeof(float);
  plan.weights = row_bytes;
  plan.counts = 2 * row_bytes;
  plan.bytes = 4 * row_bytes;
  const int64_t blocks = std::min(plan.batch, kRowsAtOnce);
  Kernel kernel;
  kernel.scratch_bytes = static_cast<size_t>(blocks) * plan.bytes;
  kernel.run = [plan, blocks](const Run& run) {
    const Operands given{
        run.input<float>(kLogits),   run.input<uint32_t>(kDraws),          run.input<float>(kAllSettings),
        run.input<float>(kBias),     run.input<uint32_t>(kMask),           run.input<int32_t>(kHistory),
        run.input<int32_t>(kPrompt), run.output<int32_t>(kToken),          run.output<float>(kLogProbability),
        run.output<int32_t>(kTop),   run.output<float>(kTopLogProbability)};
    launch(run, sample_rows, {static_cast<unsigned>(blocks), kThreads}, plan, given, run.scratch);
  };
  return kernel;
}

}  // namespace

void register_sample(KernelTable& table) { table["sample_token"] = compile_sample_token; }

}  // namespace heddle::cuda
