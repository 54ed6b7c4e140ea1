#include "cuda/core/table.h"

#include <memory>
#include <string>
#include <vector>

#include "core/backend_status.h"
#include "cuda/core/device.h"
#include "cuda/core/kernel.h"
#include "cuda/core/recording.h"
#include "program/decoded_instruction.h"

namespace heddle::cuda {

namespace {

constexpr size_t kScratchAlignment = 256;

struct CompiledInstruction {
  Kernel kernel;
  const char* operation;
  size_t inputs;
  size_t outputs;
  std::vector<uint32_t> consumed;
  std::vector<heddle_pair> in_place;
  std::vector<heddle_input_form> forms;
};

std::unique_ptr<CompiledInstruction> compile_instruction(const heddle_instruction& instruction) {
  const DecodedInstruction decoded(instruction);
  const auto found = kernels().find(decoded.op());
  if (found == kernels().end())
    throw Error(ErrorCode::kDevice, std::string(decoded.op()), "an operator that CUDA devices have a kernel for",
                "one that runs on the CPU only");
  Device::get().enter();
  auto compiled = std::make_unique<CompiledInstruction>();
  compiled->kernel = found->second(decoded.request());
  compiled->operation = found->first.c_str();
  compiled->inputs = instruction.input_count;
  compiled->outputs = instruction.output_count;
  for (const size_t input : compiled->kernel.consumed_inputs)
    compiled->consumed.push_back(static_cast<uint32_t>(input));
  for (const auto& [input, output] : compiled->kernel.in_place)
    compiled->in_place.push_back({static_cast<uint32_t>(input), static_cast<uint32_t>(output)});
  for (const auto& [input, form] : compiled->kernel.forms)
    compiled->forms.push_back({static_cast<uint32_t>(input), static_cast<uint32_t>(form)});
  return compiled;
}

/// The executor aligns scratch to 64 bytes.
size_t padded(size_t scratch) {
  return scratch == 0 ? 0
                      : checked_add(scratch, kScratchAlignment, "scratch") / kScratchAlignment * kScratchAlignment +
                            kScratchAlignment;
}

std::byte* aligned(void* scratch) {
  const auto address = reinterpret_cast<uintptr_t>(scratch);
  return reinterpret_cast<std::byte*>((address + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment);
}

heddle_status allocate(void*, uint64_t bytes, void** memory, heddle_error* error) {
  return status_of_call(error, [&] { *memory = Device::get().allocate(bytes); });
}

void release(void*, void* memory, uint64_t) { Device::get().release(memory); }

heddle_status copy(void*, void* target, const void* source, uint64_t bytes, heddle_error* error) {
  return status_of_call(error, [&] { Device::get().copy(target, source, bytes); });
}

/// The device's own threads share one region of scratch.
uint32_t begin(void*) {
  Device::get().begin_run();
  return 1;
}

void end(void*) { Device::get().end_run(); }

heddle_status compile(void*, const heddle_instruction* instruction, heddle_kernel* kernel, heddle_error* error) {
  return status_of_call(error, [&] {
    std::unique_ptr<CompiledInstruction> made = compile_instruction(*instruction);
    *kernel = {made.get(),
               padded(made->kernel.scratch_bytes),
               made->consumed.data(),
               made->consumed.size(),
               made->in_place.data(),
               made->in_place.size(),
               made->forms.data(),
               made->forms.size(),
               made->kernel.recordable ? 1U : 0U,
               0};
    // Given to the caller, who hands it back to destroy().
    static_cast<void>(made.release());
  });
}

void destroy(void*, heddle_kernel* kernel) {
  const std::unique_ptr<CompiledInstruction> owned(static_cast<CompiledInstruction*>(kernel->implementation));
}

heddle_status run(void*, const heddle_kernel* kernel, const void* const* inputs, void* const* outputs, void* scratch,
                  heddle_error* error) {
  return status_of_call(error, [&] {
    Device& device = Device::get();
    device.enter();
    const auto& compiled = *static_cast<const CompiledInstruction*>(kernel->implementation);
    compiled.kernel.run(Run{std::span(inputs, compiled.inputs), std::span(outputs, compiled.outputs), aligned(scratch),
                            device.run_stream(), Report{device.fault(), compiled.operation}});
  });
}

heddle_status wait(void*, heddle_error* error) {
  return status_of_call(error, [] { Device::get().wait(); });
}

heddle_status mark(void*, void** mark, heddle_error* error) {
  return status_of_call(error, [&] { *mark = Device::get().mark(); });
}

heddle_status elapsed(void*, void* from, void* to, double* seconds, heddle_error* error) {
  return status_of_call(
      error, [&] { *seconds = Device::get().elapsed(static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)); });
}

void unmark(void*, void* mark) { Device::get().unmark(static_cast<cudaEvent_t>(mark)); }

heddle_status record(void*, heddle_error* error) {
  return status_of_call(error, [] { Device::get().record(); });
}

heddle_status recorded(void*, void** recording, heddle_error* error) {
  // Given to the caller, who hands it back to forget().
  return status_of_call(error, [&] { *recording = Device::get().recorded().release(); });
}

heddle_status replay(void*, void* recording, heddle_error* error) {
  return status_of_call(error, [&] { Device::get().replay(*static_cast<Recording*>(recording)); });
}

void forget(void*, void* recording) { const std::unique_ptr<Recording> owned(static_cast<Recording*>(recording)); }

}  // namespace

void unsupported(const KernelRequest& request, const std::string& expected, const std::string& got) {
  throw Error(ErrorCode::kDevice, std::string(request.op), expected + " on a CUDA device", got);
}

const heddle_backend& backend() {
  static const heddle_backend kBackend = {.version = HEDDLE_BACKEND_VERSION,
                                          .name = "cuda",
                                          .self = nullptr,
                                          .host_memory = 0,
                                          .allocate = allocate,
                                          .release = release,
                                          .copy = copy,
                                          .begin = begin,
                                          .end = end,
                                          .compile = compile,
                                          .destroy = destroy,
                                          .announce = nullptr,
                                          .run = run,
                                          .wait = wait,
                                          .mark = mark,
                                          .elapsed = elapsed,
                                          .unmark = unmark,
                                          .record = record,
                                          .recorded = recorded,
                                          .replay = replay,
                                          .forget = forget};
  return kBackend;
}

}  // namespace heddle::cuda
