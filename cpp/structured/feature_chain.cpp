#include "structured/feature_chain.h"

#include <algorithm>
#include <utility>

#include "structured/feature_tile.h"

namespace heddle {
namespace {

constexpr const char* kPlace = "structured product";
// With fewer tiles than this, stages are cut into blocks instead.
constexpr int64_t kWantedTiles = 8;
constexpr int64_t kWantedParts = 16;
constexpr int64_t kMaxRanges = 16;
constexpr int64_t kManyFeatures = 2048;
constexpr int64_t kShortSum = 256;
/// Periods of places are multiples of this.
constexpr int64_t kPlaceLine = 16;
// Sums of weight gradients that are kept apart take no more memory than this, if one range does not need more.
constexpr size_t kSumFloats = size_t{1} << 25;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t floats(int64_t a, int64_t b) { return checked_mul(static_cast<size_t>(a), static_cast<size_t>(b), kPlace); }

size_t padded(size_t count) { return checked_add(count, 15, kPlace) / 16 * 16; }

/// Wide tiles read the weights less often; where weights are small and features many, what counts is that two tiles fit
/// into the second cache.
int64_t lanes_for(const ChainShape& shape) {
  if (shape.rows <= kFewLanes) return kFewLanes;
  int64_t features = 0;
  int64_t longest = 0;
  for (const Stage& stage : shape.stages) {
    features = std::max({features, stage.in_features, stage.out_features});
    longest = std::max(longest, stage.k);
  }
  return features > kManyFeatures && longest <= kShortSum ? kFewLanes : kTileLanes;
}

int64_t gradient_columns(const Stage& stage) { return ceil_div(stage.k, kGradientColumns) * kGradientColumns; }

/// Panels of a stage's blocks, [first, last) of all of them: block by block along term, pre, post.
void run_panels(const Stage& stage, size_t index, const PackedStages& packed, int64_t lanes, bool round,
                const float* in, float* out, int64_t first, int64_t last) {
  const int64_t panels = ceil_div(stage.m, kChainPanelRows);
  while (first < last) {
    const int64_t block = first / panels;
    const int64_t panel = first % panels;
    const int64_t end = std::min(panels, panel + last - first);
    const int64_t post = block % stage.post;
    const int64_t pre = block / stage.post % stage.pre;
    const int64_t term = block / stage.post / stage.pre;
    multiply_panels({.w = packed.block(index, term, pre),
                     .m = stage.m,
                     .terms = stage.sums_terms() ? stage.terms : 1,
                     .k = stage.k,
                     .in = in + stage.in.at(term, pre, post) * lanes,
                     .in_term = stage.in.term_step() * lanes,
                     .in_item = stage.in.item_step() * lanes,
                     .out = out + stage.out.at(term, pre, post) * lanes,
                     .out_item = stage.out.item_step() * lanes,
                     .lanes = lanes,
                     .round = round},
                    panel, end);
    first += end - panel;
  }
}

int64_t panel_count(const Stage& stage) {
  return (stage.sums_terms() ? 1 : stage.terms) * stage.pre * stage.post * ceil_div(stage.m, kChainPanelRows);
}

/// Items of a block stay at equal distances: whole periods, or all within one.
bool keeps_distances(const FeatureStrides& strides, int64_t count, int64_t posts, int64_t period) {
  if (strides.term % period != 0) return false;
  if (strides.item % period == 0) return true;
  const int64_t span = strides.item * count;
  return period % span == 0 && strides.pre % span == 0 && (posts - 1) * strides.post < strides.item;
}

}  // namespace

ChainShape ChainShape::transposed() const {
  ChainShape turned{.rows = rows, .in = out, .out = in, .stages = {}, .precision = precision};
  for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) turned.stages.push_back(stage->transposed());
  return turned;
}

void ChainShape::check(const KernelRequest& request) const {
  int64_t features = stages.front().in_features;
  request.check(in <= features, "at most " + std::to_string(features) + " input features", std::to_string(in));
  for (const Stage& stage : stages) {
    request.check(stage.in_features == features, "stages that fit onto each other", std::to_string(stage.in_features));
    features = stage.out_features;
    // With room for gaps.
    for (const int64_t size : {stage.in_features, stage.out_features})
      checked_mul(floats(size, 2 * kTileLanes), sizeof(float), kPlace);
  }
  request.check(out <= features, "at most " + std::to_string(features) + " output features", std::to_string(out));
}

void ChainShape::spread() {
  int64_t period = 0;
  for (const Stage& stage : stages)
    for (const int64_t item : {stage.in.item, stage.out.item})
      if (item % kPlaceLine == 0 && (period == 0 || item < period)) period = item;
  const auto keeps = [&](const Stage& stage) {
    return keeps_distances(stage.in, stage.k, stage.post, period) &&
           keeps_distances(stage.out, stage.m, stage.post, period);
  };
  if (period == 0 || !std::all_of(stages.begin(), stages.end(), keeps)) return;
  for (Stage& stage : stages) stage.in.places = stage.out.places = {period};
}

PackedStages::PackedStages(const ChainShape& shape, std::span<const float* const> weights, TilePool& pool) {
  struct Job {
    size_t stage;
    int64_t term, pre;
  };
  std::vector<Job> jobs;
  size_t size = 0;
  for (size_t i = 0; i < shape.stages.size(); ++i) {
    const Stage& s = shape.stages[i];
    const int64_t block = ceil_div(s.m, kChainPanelRows) * kChainPanelRows * s.k * (s.sums_terms() ? s.terms : 1);
    const int64_t pres = s.w_pre == 0 ? 1 : s.pre;
    const int64_t terms = s.sums_terms() || s.w_term == 0 ? 1 : s.terms;
    parts_.push_back({size, block, terms == 1 ? 0 : pres * block, pres == 1 ? 0 : block});
    for (int64_t term = 0; term < terms; ++term)
      for (int64_t pre = 0; pre < pres; ++pre) jobs.push_back({i, term, pre});
    size = checked_add(size, padded(floats(block, terms * pres)), kPlace);
  }
  bytes_ = RunBuffer(checked_mul(size, sizeof(float), kPlace));
  auto* const base = reinterpret_cast<float*>(bytes_.data());
  const bool round = shape.precision == Precision::kBF16;
  pool.run(jobs.size(), [&](size_t tile, size_t) {
    const Job& job = jobs[tile];
    const Stage& s = shape.stages[job.stage];
    const Part& part = parts_[job.stage];
    const float* from = weights[job.stage] + job.term * s.w_term + job.pre * s.w_pre;
    float* to = base + part.offset + job.term * part.term_stride + job.pre * part.pre_stride;
    for (int64_t first = 0; first < s.m; first += kChainPanelRows) {
      const int64_t rows = std::min(kChainPanelRows, s.m - first);
      for (int64_t term = 0; term < (s.sums_terms() ? s.terms : 1); ++term) {
        for (int64_t j = 0; j < s.k; ++j, to += kChainPanelRows) {
          const float* column = from + term * s.w_term + first * s.w_m + j * s.w_k;
          for (int64_t i = 0; i < rows; ++i)
            to[i] = round ? bf16_to_f32(f32_to_bf16(column[i * s.w_m])) : column[i * s.w_m];
          std::fill(to + rows, to + kChainPanelRows, 0.0F);
        }
      }
    }
  });
}

const float* PackedStages::block(size_t stage, int64_t term, int64_t pre) const {
  const Part& part = parts_[stage];
  return reinterpret_cast<const float*>(bytes_.data()) + part.offset + term * part.term_stride + pre * part.pre_stride;
}

ChainProduct::ChainProduct(ChainShape shape)
    : shape_(std::move(shape)), lanes_(lanes_for(shape_)), tiles_(ceil_div(shape_.rows, lanes_)) {
  shape_.spread();
  for (const Stage& stage : shape_.stages)
    buffer_ = std::max(buffer_, floats(std::max(stage.in_places(), stage.out_places()), lanes_));
  apart_ = tiles_ < kWantedTiles;
  scratch_ = apart_ ? 0 : checked_mul(2 * sizeof(float), buffer_, kPlace);
}

void ChainProduct::run(const float* x, std::span<const float* const> weights, float* y,
                       const RunArguments& args) const {
  const PackedStages packed(shape_, weights, args.pool);
  if (apart_) return run_stages_apart(packed, x, y, args);
  args.pool.run(static_cast<size_t>(tiles_), [&](size_t tile, size_t thread) {
    run_tile(packed, x, y, static_cast<int64_t>(tile), args.thread_scratch<float>(thread));
  });
}

void ChainProduct::run_tile(const PackedStages& packed, const float* x, float* y, int64_t tile, float* scratch) const {
  const int64_t row = tile * lanes_;
  const int64_t rows = std::min(lanes_, shape_.rows - row);
  const bool round = shape_.precision == Precision::kBF16;
  float* from = scratch;
  float* to = scratch + buffer_;
  rows_to_features({x + row * shape_.in, rows, shape_.in, shape_.in, shape_.stages.front().in_features, lanes_, round,
                    from, shape_.places()});
  for (size_t i = 0; i < shape_.stages.size(); ++i) {
    const Stage& stage = shape_.stages[i];
    run_panels(stage, i, packed, lanes_, round && i + 1 < shape_.stages.size(), from, to, 0, panel_count(stage));
    std::swap(from, to);
  }
  features_to_rows({from, lanes_, rows, shape_.out, shape_.out, y + row * shape_.out,
                    passes_caches(shape_.rows, shape_.out), shape_.places()});
}

void ChainProduct::run_stages_apart(const PackedStages& packed, const float* x, float* y,
                                    const RunArguments& args) const {
  const bool round = shape_.precision == Precision::kBF16;
  const size_t per_tile = 2 * buffer_;
  RunBuffer bytes(checked_mul(floats(tiles_, static_cast<int64_t>(per_tile)), sizeof(float), kPlace));
  auto* const base = reinterpret_cast<float*>(bytes.data());
  const auto rows_of = [&](int64_t tile) { return std::min(lanes_, shape_.rows - tile * lanes_); };
  args.pool.run(static_cast<size_t>(tiles_), [&](size_t index, size_t) {
    const auto tile = static_cast<int64_t>(index);
    rows_to_features({x + tile * lanes_ * shape_.in, rows_of(tile), shape_.in, shape_.in,
                      shape_.stages.front().in_features, lanes_, round, base + index * per_tile, shape_.places()});
  });
  size_t from = 0;
  for (size_t i = 0; i < shape_.stages.size(); ++i) {
    const Stage& stage = shape_.stages[i];
    const int64_t panels = panel_count(stage);
    const int64_t parts = std::min(panels, kWantedParts);
    args.pool.run(static_cast<size_t>(parts * tiles_), [&](size_t index, size_t) {
      const auto part = static_cast<int64_t>(index) % parts;
      float* tile = base + index / static_cast<size_t>(parts) * per_tile;
      run_panels(stage, i, packed, lanes_, round && i + 1 < shape_.stages.size(), tile + from, tile + buffer_ - from,
                 panels * part / parts, panels * (part + 1) / parts);
    });
    from = buffer_ - from;
  }
  args.pool.run(static_cast<size_t>(tiles_), [&](size_t index, size_t) {
    const auto tile = static_cast<int64_t>(index);
    features_to_rows({base + index * per_tile + from, lanes_, rows_of(tile), shape_.out, shape_.out,
                      y + tile * lanes_ * shape_.out, false, shape_.places()});
  });
}

ChainGradient::ChainGradient(ChainShape shape, std::vector<bool> wanted)
    : shape_(std::move(shape)),
      wanted_(std::move(wanted)),
      lanes_(lanes_for(shape_)),
      tiles_(ceil_div(shape_.rows, lanes_)) {
  shape_.spread();
  turned_ = shape_.transposed();
  size_t size = 0;
  int64_t columns = 0;
  size_t widest = 0;
  for (size_t i = 0; i < shape_.stages.size(); ++i) {
    const Stage& stage = shape_.stages[i];
    sum_offsets_.push_back(sum_size_);
    if (wanted_[i + 1])
      sum_size_ = checked_add(
          sum_size_, checked_mul(floats(stage.weight_blocks(), stage.m), gradient_columns(stage), kPlace), kPlace);
    input_offsets_.push_back(size);
    size = checked_add(size, floats(stage.in_places(), lanes_), kPlace);
    columns = std::max(columns, gradient_columns(stage));
    widest = std::max(widest, floats(std::max(stage.in_places(), stage.out_places()), lanes_));
  }
  for (size_t& offset : gradient_offset_) {
    offset = size;
    size = checked_add(size, widest, kPlace);
  }
  columns_offset_ = size;
  size = checked_add(size, floats(columns, lanes_), kPlace);
  scratch_ = checked_mul(size, sizeof(float), kPlace);
  const auto affordable = static_cast<int64_t>(sum_size_ == 0 ? kMaxRanges : kSumFloats / sum_size_);
  ranges_ = std::clamp<int64_t>(std::min(affordable, kMaxRanges), 2, tiles_ < 2 ? 2 : tiles_);
  range_tiles_ = ceil_div(tiles_, ranges_);
  ranges_ = ceil_div(tiles_, range_tiles_);
}

void ChainGradient::run(const float* x, std::span<const float* const> weights, const float* dy,
                        std::span<float* const> results, const RunArguments& args) const {
  const PackedStages packed(shape_, weights, args.pool);
  const std::vector<const float*> backwards(weights.rbegin(), weights.rend());
  const PackedStages turned(turned_, backwards, args.pool);
  RunBuffer bytes(checked_mul(checked_mul(sum_size_, static_cast<size_t>(ranges_), kPlace), sizeof(float), kPlace));
  auto* const sums = reinterpret_cast<float*>(bytes.data());
  args.pool.run(static_cast<size_t>(ranges_), [&](size_t range, size_t thread) {
    float* own = sums + range * sum_size_;
    std::fill_n(own, sum_size_, 0.0F);
    const int64_t first = static_cast<int64_t>(range) * range_tiles_;
    for (int64_t tile = first; tile < std::min(tiles_, first + range_tiles_); ++tile)
      run_tile(packed, turned, x, dy, results[0], own, tile, args.thread_scratch<float>(thread));
  });
  reduce(sums, results, args.pool);
}

void ChainGradient::run_tile(const PackedStages& packed, const PackedStages& turned, const float* x, const float* dy,
                             float* dx, float* sums, int64_t tile, float* scratch) const {
  const int64_t row = tile * lanes_;
  const int64_t rows = std::min(lanes_, shape_.rows - row);
  const size_t count = shape_.stages.size();
  const bool round = shape_.precision == Precision::kBF16;
  // The first stage whose weight gradient is wanted decides how far back to go.
  size_t needed = 0;
  while (needed < count && !wanted_[needed + 1]) ++needed;
  const auto input = [&](size_t stage) { return scratch + input_offsets_[stage]; };
  if (needed < count) {
    rows_to_features({x + row * shape_.in, rows, shape_.in, shape_.in, shape_.stages.front().in_features, lanes_, round,
                      input(0), shape_.places()});
    for (size_t i = 0; i + 1 < count; ++i)
      run_panels(shape_.stages[i], i, packed, lanes_, round, input(i), input(i + 1), 0, panel_count(shape_.stages[i]));
  }
  float* from = scratch + gradient_offset_[0];
  float* to = scratch + gradient_offset_[1];
  rows_to_features({dy + row * shape_.out, rows, shape_.out, shape_.out, shape_.stages.back().out_features, lanes_,
                    round, from, shape_.places()});
  for (size_t i = count; i-- > 0;) {
    if (wanted_[i + 1]) add_weight_gradient(i, input(i), from, sums + sum_offsets_[i], scratch + columns_offset_);
    if (i <= needed && !wanted_[0]) return;
    const size_t turn = count - 1 - i;
    const Stage& stage = turned_.stages[turn];
    run_panels(stage, turn, turned, lanes_, round && i > 0, from, to, 0, panel_count(stage));
    std::swap(from, to);
  }
  features_to_rows({from, lanes_, rows, shape_.in, shape_.in, dx + row * shape_.in,
                    passes_caches(shape_.rows, shape_.in), shape_.places()});
}

void ChainGradient::add_weight_gradient(size_t index, const float* in, const float* dout, float* sums,
                                        float* columns) const {
  const Stage& s = shape_.stages[index];
  const int64_t width = gradient_columns(s);
  for (int64_t term = 0; term < s.terms; ++term) {
    for (int64_t pre = 0; pre < s.pre; ++pre) {
      const int64_t block = (s.w_term == 0 ? 0 : term) * (s.w_pre == 0 ? 1 : s.pre) + (s.w_pre == 0 ? 0 : pre);
      for (int64_t post = 0; post < s.post; ++post) {
        for (int64_t t = 0; t < lanes_ && width > s.k; ++t)
          std::fill(columns + t * width + s.k, columns + (t + 1) * width, 0.0F);
        features_to_rows(
            {in + s.in.at(term, pre, post) * lanes_, s.in.item_step() * lanes_, lanes_, s.k, width, columns});
        accumulate_outer({dout + s.out.at(term, pre, post) * lanes_, s.out.item_step() * lanes_, s.m, width, lanes_,
                          columns, sums + block * s.m * width});
      }
    }
  }
}

void ChainGradient::reduce(const float* sums, std::span<float* const> results, TilePool& pool) const {
  for (size_t i = 0; i < shape_.stages.size(); ++i) {
    if (!wanted_[i + 1]) continue;
    const Stage& s = shape_.stages[i];
    const int64_t width = gradient_columns(s);
    const int64_t pres = s.w_pre == 0 ? 1 : s.pre;
    pool.run(static_cast<size_t>(s.weight_blocks()), [&](size_t index, size_t) {
      const auto block = static_cast<int64_t>(index);
      const float* from = sums + sum_offsets_[i] + block * s.m * width;
      float* to = results[i + 1] + block / pres * s.w_term + block % pres * s.w_pre;
      for (int64_t row = 0; row < s.m; ++row) {
        for (int64_t column = 0; column < s.k; ++column) {
          float total = 0.0F;
          for (int64_t range = 0; range < ranges_; ++range)
            total += from[range * static_cast<int64_t>(sum_size_) + row * width + column];
          to[row * s.w_m + column * s.w_k] = total;
        }
      }
    });
  }
}

}  // namespace heddle
