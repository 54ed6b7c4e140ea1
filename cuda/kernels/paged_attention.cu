// Attention of a step that holds tokens of many sequences, whose keys and values lie in pages of one pool (Kwon et al.
// 2023, "PagedAttention"), and the writing of those pages. A step is checked before anything reads or writes by it.
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/core/launch.cuh"
#include "cuda/core/numbers.cuh"
#include "cuda/core/warp.cuh"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/kernel_table.h"

namespace heddle::cuda {
namespace {

constexpr unsigned kThreads = 256;

enum Input : size_t { kQ, kKeyPages, kValuePages, kTables, kStarts, kPositions };

/// What may be wrong with a step, in words; they live as long as the kernel.
struct StepWords {
  std::string rising, positions, pages;
};

struct StepReports {
  Report start, rising, positions, pages;
};

/// What is wrong with a sequence, in the order in which it is looked at.
enum class Wrong : int { kNothing, kRising, kPosition, kPage };

struct Step {
  const int32_t *tables, *starts, *position;
  int64_t batch, queries, keys, window, table_width, page, pages;
};

/// The first wrong page of those that the tokens of sequence b see, or -1. In every lane of a warp.
__device__ int64_t wrong_page(const Step& step, int64_t b) {
  const int64_t end = step.position[b] + step.starts[b + 1] - step.starts[b];
  const int64_t seen = step.position[b] + 1;
  const int64_t last = ceil_div(end, step.page);
  for (int64_t first = (seen - min(seen, step.window)) / step.page; first < last; first += kWarpSize) {
    const int64_t at = first + threadIdx.x;
    const int64_t page = at < last ? step.tables[b * step.table_width + at] : 0;
    const unsigned wrong = __ballot_sync(kWholeWarp, page < 0 || page >= step.pages ? 1 : 0);
    if (wrong != 0) return first + __ffs(static_cast<int>(wrong)) - 1;
  }
  return -1;
}

__device__ Wrong look_at(const Step& step, int64_t b) {
  const int64_t begin = step.starts[b], end = step.starts[b + 1];
  if (end < begin || end > step.queries) return Wrong::kRising;
  if (end == begin) return Wrong::kNothing;
  if (step.position[b] < 0 || step.position[b] + end - begin > step.keys) return Wrong::kPosition;
  return wrong_page(step, b) >= 0 ? Wrong::kPage : Wrong::kNothing;
}

/// valid = whether the packed sequences lie one behind the other and every page that a token sees is one of the pool;
/// otherwise the first sequence that is wrong is reported. One block, a warp for each sequence in turn.
__global__ void check_step(Step step, int32_t* valid, StepReports reports) {
  constexpr int kNone = INT32_MIN;
  __shared__ Shared<int, kWarpSize> partial;
  // Its number with the sign turned.
  int first = kNone;
  if (step.starts[0] == 0)
    for (int64_t b = threadIdx.y; b < step.batch && first == kNone; b += blockDim.y)
      if (look_at(step, b) != Wrong::kNothing) first = -static_cast<int>(b);
  if (threadIdx.x == 0) partial[threadIdx.y] = first;
  __syncthreads();
  if (threadIdx.y != 0) return;
  first = kNone;
  if (threadIdx.x < blockDim.y) first = partial[threadIdx.x];
  first = warp_reduce(first, Maximum());
  const bool starts = step.starts[0] == 0;
  const bool good = starts && first == kNone;
  if (threadIdx.x == 0) *valid = good ? 1 : 0;
  if (!starts && threadIdx.x == 0) within(reports.start, step.starts[0], 0, 1);
  if (good || !starts) return;
  const int64_t b = -first;
  const Wrong wrong = look_at(step, b);
  const int64_t page = wrong == Wrong::kPage ? wrong_page(step, b) : 0;
  if (threadIdx.x != 0) return;
  // What is told is outside of these empty ranges.
  if (wrong == Wrong::kRising) within(reports.rising, step.starts[b + 1], 0, 0);
  if (wrong == Wrong::kPosition) within(reports.positions, step.position[b], 0, 0);
  if (wrong == Wrong::kPage) within(reports.pages, step.tables[b * step.table_width + page], 0, 0);
}

/// Rows of tokens that belong to no sequence.
__global__ void clear_rest(const int32_t* tokens, const int32_t* valid, int64_t count, int64_t width, float* o) {
  if (*valid == 0) return;
  for (int64_t at = *tokens * width + first_unit(); at < count * width; at += unit_step()) o[at] = 0.0F;
}

Kernel compile_paged_attention(const KernelRequest& request) {
  AttentionProblem problem = read_attention(request);
  const Shape &pool = request.inputs[kKeyPages].shape, &tables = request.inputs[kTables].shape;
  problem.causal = true;
  problem.batch = tables[0];
  problem.table_width = tables[1];
  problem.page = pool[1];
  problem.keys = tables[1] * pool[1];
  const int64_t pages = pool[0];
  const DType dtype = request.inputs[kKeyPages].dtype;
  const size_t partial = split_keys(problem);
  const auto words = std::make_shared<const StepWords>(
      StepWords{"starts that rise to at most " + std::to_string(problem.queries),
                "positions within the " + std::to_string(problem.keys) + " rows of a page table",
                "pages in [0, " + std::to_string(pages) + ")"});
  Kernel kernel;
  kernel.scratch_bytes = partial + sizeof(int32_t);
  kernel.run = [=](const Run& run) {
    AttentionProblem p = problem;
    p.q = run.input<float>(kQ);
    p.k = run.in[kKeyPages];
    p.v = run.in[kValuePages];
    p.tables = run.input<int32_t>(kTables);
    p.starts = run.input<int32_t>(kStarts);
    p.position = run.input<int32_t>(kPositions);
    p.o = run.output<float>(0);
    p.partial = run.scratch_at<float>(0);
    auto* const valid = run.scratch_at<int32_t>(partial);
    p.valid = valid;
    const Step step{p.tables, p.starts, p.position, p.batch, p.queries, p.keys, p.window, p.table_width, p.page, pages};
    const Report& report = run.report;
    launch(run, check_step, {1, dim3(kWarpSize, kThreads / kWarpSize)}, step, valid,
           StepReports{report.in_words("starts from 0 on"), report.in_words(words->rising.c_str()),
                       report.in_words(words->positions.c_str()), report.in_words(words->pages.c_str())});
    const int64_t width = p.heads * p.dim;
    if (p.queries * width == 0) return;
    launch(run, clear_rest, grid_of(p.queries * width), p.starts + p.batch, valid, p.queries, width, p.o);
    const bool few = p.queries * p.group <= 2 * p.batch * static_cast<int64_t>(kWarpSize);
    if (p.batch > 0) start_attention(run, p, dtype, few);
  };
  return kernel;
}

__device__ inline void store(float value, float& to) { to = value; }
__device__ inline void store(float value, Bf16& to) { to = to_bf16(value); }

/// valid = whether each slot is within the cache, and named once, or is -1. One block.
__global__ void check_slots(const int32_t* slot, int64_t rows, int64_t slots, int32_t* valid, Report range,
                            Report twice) {
  int wrong = 0;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x)
    if (!within(range, slot[i], -1, slots)) wrong = 1;
  wrong = __syncthreads_or(wrong);
  if (wrong == 0)
    for (int64_t i = threadIdx.x; i < rows; i += blockDim.x)
      for (int64_t j = 0; j < i && slot[i] >= 0; ++j)
        if (slot[j] == slot[i]) {
          // Outside of this empty range.
          within(twice, slot[i], 0, 0);
          wrong = 1;
          break;
        }
  wrong = __syncthreads_or(wrong);
  if (threadIdx.x == 0) *valid = wrong == 0 ? 1 : 0;
}

template <class T>
__global__ void write_rows(const float* fresh, const int32_t* slot, const int32_t* valid, int64_t rows, int64_t width,
                           T* cache) {
  if (*valid == 0) return;
  for (int64_t at = first_unit(); at < rows * width; at += unit_step()) {
    const int64_t to = slot[at / width];
    if (to >= 0) store(fresh[at], cache[to * width + at % width]);
  }
}

Kernel compile_paged_cache_update(const KernelRequest& request) {
  const Operand& cache = request.inputs[0];
  const int64_t rows = request.inputs[1].shape[0];
  const auto slots = static_cast<int64_t>(cache.shape.count(0, 2)),
             width = static_cast<int64_t>(cache.shape.count(2, 4));
  const bool half = cache.dtype == DType::kBF16;
  Kernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.scratch_bytes = sizeof(int32_t);
  const auto words = std::make_shared<const std::string>("slots in [0, " + std::to_string(slots) + "), or -1");
  kernel.run = [=](const Run& run) {
    if (rows == 0) return;
    const auto* const slot = run.input<int32_t>(2);
    auto* const valid = run.scratch_at<int32_t>(0);
    launch(run, check_slots, {1, 1024}, slot, rows, slots, valid, run.report.in_words(words->c_str()),
           run.report.in_words("slots that differ"));
    if (width == 0) return;
    if (half)
      launch(run, write_rows<Bf16>, grid_of(rows * width), run.input<float>(1), slot, valid, rows, width,
             run.output<Bf16>(0));
    else
      launch(run, write_rows<float>, grid_of(rows * width), run.input<float>(1), slot, valid, rows, width,
             run.output<float>(0));
  };
  return kernel;
}

}  // namespace

void register_paged_attention(KernelTable& table) {
  table["paged_attention"] = compile_paged_attention;
  table["paged_cache_update"] = compile_paged_cache_update;
}

}  // namespace heddle::cuda
