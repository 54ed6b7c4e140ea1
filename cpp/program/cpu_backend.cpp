#include "program/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

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

std::string_view view(const heddle_string& text) { return {text.text, text.length}; }

template <class T>
std::vector<T> list_of(const heddle_attribute& attribute) {
  const T* const values = static_cast<const T*>(attribute.values);
  return std::vector<T>(values, values + attribute.count);
}

AttributeValue value_of(const heddle_attribute& attribute) {
  switch (attribute.type) {
    case HEDDLE_I64: return *static_cast<const int64_t*>(attribute.values);
    case HEDDLE_F64: return *static_cast<const double*>(attribute.values);
    case HEDDLE_STRING: return std::string(view(*static_cast<const heddle_string*>(attribute.values)));
    case HEDDLE_I64_ARRAY: return list_of<int64_t>(attribute);
    case HEDDLE_F64_ARRAY: return list_of<double>(attribute);
    case HEDDLE_STRING_ARRAY: {
      std::vector<std::string> texts;
      for (const heddle_string& text : list_of<heddle_string>(attribute)) texts.emplace_back(view(text));
      return texts;
    }
  }
  throw Error(ErrorCode::kInternal, "attribute " + std::string(view(attribute.name)), "a known type", "another");
}

std::vector<Operand> operands_of(const heddle_operand* operands, size_t count) {
  std::vector<Operand> result;
  result.reserve(count);
  for (const heddle_operand& operand : std::span(operands, count)) {
    std::shared_ptr<Storage> frozen;
    if (operand.frozen != nullptr) frozen = *static_cast<std::shared_ptr<Storage>*>(operand.frozen->storage);
    result.push_back({static_cast<DType>(operand.dtype), Shape(std::span(operand.dims, operand.rank)),
                      operand.present != 0, operand.buffer, std::move(frozen)});
  }
  return result;
}

std::unique_ptr<CpuKernel> compile_kernel(const heddle_instruction& instruction) {
  const std::string_view op = view(instruction.op);
  const auto found = cpu_kernels().find(op);
  if (found == cpu_kernels().end())
    throw Error(ErrorCode::kFormat, std::string(op), "an operator that the CPU has a kernel for", "none of this name");

  Attributes attributes;
  for (const heddle_attribute& attribute : std::span(instruction.attributes, instruction.attribute_count))
    attributes.values.emplace(view(attribute.name), value_of(attribute));
  const std::vector<Operand> inputs = operands_of(instruction.inputs, instruction.input_count);
  const std::vector<Operand> outputs = operands_of(instruction.outputs, instruction.output_count);

  keep_libraries_single_threaded();
  auto kernel = std::make_unique<CpuKernel>();
  kernel->compiled = found->second(KernelRequest{op, inputs, outputs, attributes});
  kernel->inputs = inputs.size();
  kernel->outputs = outputs.size();
  // Each thread's region starts on its own cache line.
  kernel->compiled.scratch_per_thread = checked_add(kernel->compiled.scratch_per_thread, 63, "scratch") / 64 * 64;
  for (const size_t input : kernel->compiled.consumed_inputs) kernel->consumed.push_back(static_cast<uint32_t>(input));
  for (const auto& [input, output] : kernel->compiled.in_place)
    kernel->in_place.push_back({static_cast<uint32_t>(input), static_cast<uint32_t>(output)});
  return kernel;
}

template <class Call>
heddle_status guarded(heddle_error* error, const Call& call) noexcept {
  try {
    call();
    return 0;
  } catch (...) {
    return store_current_exception(error);
  }
}

heddle_status cpu_allocate(void*, uint64_t bytes, void** memory, heddle_error* error) {
  return guarded(error, [&] { *memory = allocate_aligned(bytes); });
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
  return guarded(error, [&] {
    std::unique_ptr<CpuKernel> made = compile_kernel(*instruction);
    *kernel = {made.get(),
               made->compiled.scratch_per_thread,
               made->consumed.data(),
               made->consumed.size(),
               made->in_place.data(),
               made->in_place.size()};
    // Given to the caller, who hands it back to destroy().
    static_cast<void>(made.release());
  });
}

void cpu_destroy(void*, heddle_kernel* kernel) {
  const std::unique_ptr<CpuKernel> owned(static_cast<CpuKernel*>(kernel->implementation));
}

heddle_status cpu_run(void*, const heddle_kernel* kernel, const void* const* inputs, void* const* outputs,
                      void* scratch, heddle_error* error) {
  return guarded(error, [&] {
    const CpuKernel& cpu = *static_cast<const CpuKernel*>(kernel->implementation);
    cpu.compiled.run(RunArguments{std::span(inputs, cpu.inputs), std::span(outputs, cpu.outputs), TilePool::shared(),
                                  static_cast<std::byte*>(scratch), cpu.compiled.scratch_per_thread});
  });
}

heddle_status cpu_wait(void*, heddle_error*) { return 0; }

void store_text(char* target, size_t capacity, std::string_view text) noexcept {
  const size_t length = std::min(text.size(), capacity - 1);
  std::memcpy(target, text.data(), length);
  target[length] = '\0';
}

void store_fields(heddle_error* target, std::string_view place, std::string_view expected,
                  std::string_view got) noexcept {
  store_text(target->place, sizeof target->place, place);
  store_text(target->expected, sizeof target->expected, expected);
  store_text(target->got, sizeof target->got, got);
}

heddle_status status_of(ErrorCode code) noexcept { return 1 + static_cast<heddle_status>(code); }

}  // namespace

const heddle_backend& cpu_backend() {
  static const heddle_backend kBackend = {.version = HEDDLE_BACKEND_VERSION,
                                          .name = "cpu",
                                          .self = nullptr,
                                          .allocate = cpu_allocate,
                                          .release = cpu_release,
                                          .copy = cpu_copy,
                                          .begin = cpu_begin,
                                          .end = cpu_end,
                                          .compile = cpu_compile,
                                          .destroy = cpu_destroy,
                                          .run = cpu_run,
                                          .wait = cpu_wait};
  return kBackend;
}

heddle_status store_error(const Error& error, heddle_error* target) noexcept {
  store_fields(target, error.place(), error.expected(), error.got());
  return status_of(error.code());
}

heddle_status store_current_exception(heddle_error* target) noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return store_error(error, target);
  } catch (const std::bad_alloc&) {
    store_fields(target, "memory", "enough memory", "an allocation that failed");
    return status_of(ErrorCode::kOutOfMemory);
  } catch (const std::exception& error) {
    store_fields(target, "kernel", "no failure", error.what());
  } catch (...) {
    store_fields(target, "kernel", "no failure", "an unknown exception");
  }
  return status_of(ErrorCode::kInternal);
}

void check_status(heddle_status status, const heddle_error& error) {
  if (status != 0) throw Error(static_cast<ErrorCode>(status - 1), error.place, error.expected, error.got);
}

}  // namespace heddle
