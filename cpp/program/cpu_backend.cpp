#include "program/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "core/backend_status.h"
#include "program/decoded_instruction.h"
#include "program/kernel.h"

namespace heddle {

namespace {

struct CpuKernel {
  CompiledKernel compiled;
  size_t inputs;
  size_t outputs;
  std::vector<uint32_t> consumed;
  std::vector<heddle_pair> in_place;
};

std::unique_ptr<CpuKernel> compile_kernel(const heddle_instruction& instruction) {
  const DecodedInstruction decoded(instruction);
  const std::string_view op = decoded.op();
  const auto found = cpu_kernels().find(op);
  if (found == cpu_kernels().end())
    throw Error(ErrorCode::kFormat, std::string(op), "an operator that the CPU has a kernel for", "none of this name");

  keep_libraries_single_threaded();
  auto kernel = std::make_unique<CpuKernel>();
  kernel->compiled = found->second(decoded.request());
  kernel->inputs = instruction.input_count;
  kernel->outputs = instruction.output_count;
  // Each thread's region starts on its own cache line.
  kernel->compiled.scratch_per_thread = checked_add(kernel->compiled.scratch_per_thread, 63, "scratch") / 64 * 64;
  for (const size_t input : kernel->compiled.consumed_inputs) kernel->consumed.push_back(static_cast<uint32_t>(input));
  for (const auto& [input, output] : kernel->compiled.in_place)
    kernel->in_place.push_back({static_cast<uint32_t>(input), static_cast<uint32_t>(output)});
  return kernel;
}

heddle_status cpu_allocate(void*, uint64_t bytes, void** memory, heddle_error* error) {
  return status_of_call(error, [&] { *memory = allocate_aligned(bytes); });
}

void cpu_release(void*, void* memory, uint64_t bytes) { release_aligned(static_cast<std::byte*>(memory), bytes); }

heddle_status cpu_copy(void*, void* target, const void* source, uint64_t bytes, heddle_error*) {
  if (bytes != 0) std::memcpy(target, source, bytes);
  return 0;
}

uint32_t cpu_begin(void*) {
  TilePool::shared().open_session();
  return static_cast<uint32_t>(TilePool::shared().threads());
}

void cpu_end(void*) { TilePool::shared().close_session(); }

heddle_status cpu_compile(void*, const heddle_instruction* instruction, heddle_kernel* kernel, heddle_error* error) {
  return status_of_call(error, [&] {
    std::unique_ptr<CpuKernel> made = compile_kernel(*instruction);
    *kernel = {made.get(),
               made->compiled.scratch_per_thread,
               made->consumed.data(),
               made->consumed.size(),
               made->in_place.data(),
               made->in_place.size(),
               nullptr,
               0,
               0,
               made->compiled.reads ? 1U : 0U};
    // Given to the caller, who hands it back to destroy().
    static_cast<void>(made.release());
  });
}

void cpu_destroy(void*, heddle_kernel* kernel) {
  const std::unique_ptr<CpuKernel> owned(static_cast<CpuKernel*>(kernel->implementation));
}

/// What the kernel after the next one of this thread will read.
thread_local std::vector<FetchRegion> ahead;

/// Forgets it when the next one is over.
struct Told {
  ~Told() { ahead.clear(); }
};

void cpu_announce(void*, const heddle_kernel* kernel, const void* const* inputs) {
  const CpuKernel& cpu = *static_cast<const CpuKernel*>(kernel->implementation);
  try {
    ahead.clear();
    cpu.compiled.reads(std::span(inputs, cpu.inputs), ahead);
  } catch (...) {
    // Short of memory: what nobody asks for is read all the same.
    ahead.clear();
  }
}

heddle_status cpu_run(void*, const heddle_kernel* kernel, const void* const* inputs, void* const* outputs,
                      void* scratch, heddle_error* error) {
  return status_of_call(error, [&] {
    const CpuKernel& cpu = *static_cast<const CpuKernel*>(kernel->implementation);
    const Told told;
    cpu.compiled.run(RunArguments{std::span(inputs, cpu.inputs), std::span(outputs, cpu.outputs), TilePool::shared(),
                                  static_cast<std::byte*>(scratch), cpu.compiled.scratch_per_thread, ahead});
  });
}

heddle_status cpu_wait(void*, heddle_error*) { return 0; }

}  // namespace

const heddle_backend& cpu_backend() {
  static const heddle_backend kBackend = {.version = HEDDLE_BACKEND_VERSION,
                                          .name = "cpu",
                                          .self = nullptr,
                                          .host_memory = 1,
                                          .allocate = cpu_allocate,
                                          .release = cpu_release,
                                          .copy = cpu_copy,
                                          .begin = cpu_begin,
                                          .end = cpu_end,
                                          .compile = cpu_compile,
                                          .destroy = cpu_destroy,
                                          .announce = cpu_announce,
                                          .run = cpu_run,
                                          .wait = cpu_wait,
                                          .mark = nullptr,
                                          .elapsed = nullptr,
                                          .unmark = nullptr,
                                          .record = nullptr,
                                          .recorded = nullptr,
                                          .replay = nullptr,
                                          .forget = nullptr};
  return kBackend;
}

}  // namespace heddle
