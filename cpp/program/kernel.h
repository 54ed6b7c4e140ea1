// What a kernel is to the executor: `compile` checks one instruction's operands and attributes as if a stranger had
// written them, and returns a closure that runs it on raw pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/fetch_region.h"
#include "core/shape.h"
#include "core/storage.h"
#include "core/tile_pool.h"

namespace heddle {

struct Operand {
  DType dtype = DType::kF32;
  Shape shape;
  /// False for an optional operand that was left out; its pointer is then null at run time.
  bool present = true;
  /// Buffer id within the program; equal ids mean equal memory.
  uint32_t buffer = 0;
  /// Set when the buffer is a bound tensor that no instruction of the program writes: its contents may be packed.
  /// A kernel that packs returns `consumed` so that the dense copy can be evicted.
  std::shared_ptr<Storage> frozen;
  /// Of the rows that frozen contents are decoded from; empty where they are no such rows. For other devices' kernels.
  std::string_view encoding = {};
};

using AttributeValue =
    std::variant<int64_t, double, std::string, std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;

/// Attributes of one instruction. Getters throw kFormat when the attribute is missing or of another type.
class Attributes {
 public:
  std::map<std::string, AttributeValue, std::less<>> values;

  int64_t integer(std::string_view name) const;
  int64_t integer(std::string_view name, int64_t fallback) const;
  double number(std::string_view name) const;
  double number(std::string_view name, double fallback) const;
  const std::string& text(std::string_view name) const;
  const std::vector<int64_t>& integers(std::string_view name) const;
  const std::vector<double>& numbers(std::string_view name) const;
  const std::vector<std::string>& texts(std::string_view name) const;
  bool has(std::string_view name) const { return values.find(name) != values.end(); }
};

struct KernelRequest {
  std::string_view op;
  std::span<const Operand> inputs;
  std::span<const Operand> outputs;
  const Attributes& attributes;

  /// Throws kShape naming the operator.
  [[noreturn]] void reject(const std::string& expected, const std::string& got) const;
  void check(bool condition, const std::string& expected, const std::string& got) const {
    if (!condition) reject(expected, got);
  }
  void expect_counts(size_t inputs, size_t outputs) const;
};

/// Raw operand pointers for one run. Contiguous, row-major, 64-byte aligned (views into files: 8-byte aligned at
/// least). in[i] may equal out[j] only where the instruction was allowed to work in place.
struct RunArguments {
  std::span<const void* const> in;
  std::span<void* const> out;
  TilePool& pool;
  /// threads() regions of CompiledKernel::scratch_per_thread bytes each, 64-byte aligned.
  std::byte* scratch;
  size_t scratch_per_thread;
  /// What the next instruction will read, for kernels that wait for arithmetic; often nothing.
  std::span<const FetchRegion> ahead = {};

  template <class T>
  const T* input(size_t i) const noexcept {
    return static_cast<const T*>(in[i]);
  }
  template <class T>
  T* output(size_t i) const noexcept {
    return static_cast<T*>(out[i]);
  }
  template <class T>
  T* thread_scratch(size_t thread) const noexcept {
    return reinterpret_cast<T*>(scratch + thread * scratch_per_thread);
  }
};

struct CompiledKernel {
  std::function<void(const RunArguments&)> run;
  size_t scratch_per_thread = 0;
  /// Inputs whose frozen contents now live in packed form inside `run`; the executor passes null for them.
  std::vector<size_t> consumed_inputs = {};
  /// (input, output) pairs that may share memory; the executor refuses any other overlap.
  std::vector<std::pair<size_t, size_t>> in_place = {};
  /// Adds what a run with these inputs will read, in the order in which it will. They may not be computed yet: what
  /// they say is checked, and nothing is thrown. Absent where the operands themselves say it, or little is read.
  std::function<void(std::span<const void* const> in, std::vector<FetchRegion>& regions)> reads = nullptr;
};

using CompileKernel = CompiledKernel (*)(const KernelRequest&);
using KernelTable = std::map<std::string, CompileKernel, std::less<>>;

/// Every CPU kernel by operator name; built in kernels/kernel_table.cpp from one register_* function per family.
const KernelTable& cpu_kernels();

}  // namespace heddle
