// What a CUDA kernel is to the backend table: `compile` looks at one instruction and returns a closure that starts it.
// The CPU's kernel of the same name has checked the instruction before (cpp/program/executor.cpp), so that shapes,
// dtypes and attributes can be relied on; the contents of operands cannot.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/backend.h"
#include "core/status.h"
#include "program/kernel.h"

namespace heddle::cuda {

/// What contents should have been, and what they are: a number, or "<before><a number><after>", or `before` alone. The
/// texts are the host's, and live as long as the kernel that says them.
struct Complaint {
  const char* expected = nullptr;
  const char* before = nullptr;
  const char* after = nullptr;
  ErrorCode code = ErrorCode::kArgument;
};

/// What a kernel found wrong with the contents of an operand, in memory that both sides see.
struct Fault {
  unsigned raised;
  /// Without words an index in [begin, end) was expected.
  Complaint complaint;
  long long begin, end;
  long long got;
  /// An address of the host.
  const char* operation;
};

/// Passed to kernels that check contents; see within() and holds() in launch.cuh.
struct Report {
  Fault* fault;
  const char* operation;
  Complaint complaint = {};

  /// The same, with other words than "an index in [begin, end)".
  Report in_words(const char* text) const { return {fault, operation, {.expected = text}}; }
};

/// Where things lie in a kernel's scratch memory, one behind the other, each 256-byte aligned.
struct ScratchLayout {
  size_t bytes = 0;

  /// Room for elements of a size. @returns where it begins
  size_t take(int64_t count, size_t element) {
    const size_t at = bytes;
    bytes += (static_cast<size_t>(count) * element + 255) / 256 * 256;
    return at;
  }
};

/// What a started kernel gets.
struct Run {
  std::span<const void* const> in;
  std::span<void* const> out;
  /// Kernel::scratch_bytes, 256-byte aligned.
  std::byte* scratch;
  cudaStream_t stream;
  Report report;

  /// Null where the operand is absent.
  template <class T>
  const T* input(size_t i) const noexcept {
    return static_cast<const T*>(in[i]);
  }
  template <class T>
  T* output(size_t i) const noexcept {
    return static_cast<T*>(out[i]);
  }
  template <class T>
  T* scratch_at(size_t byte) const noexcept {
    return reinterpret_cast<T*>(scratch + byte);
  }
};

struct Kernel {
  /// Starts work on the stream and returns; throws what a launch throws. Must choose the shape of its grids, and so the
  /// order of every sum, by the operands' shapes alone.
  std::function<void(const Run&)> run;
  size_t scratch_bytes = 0;
  /// Inputs whose frozen contents now live in another form inside `run`, which gets null for them.
  std::vector<size_t> consumed_inputs = {};
  /// (input, output) pairs that may share memory.
  std::vector<std::pair<size_t, size_t>> in_place = {};
  /// Frozen inputs that `run` gets in another form than their elements.
  std::vector<std::pair<size_t, heddle_form>> forms = {};
  /// False where `run` calls a library that may wait for the stream: a CUDA graph cannot hold that.
  bool recordable = true;
};

using Compile = Kernel (*)(const KernelRequest&);
using KernelTable = std::map<std::string, Compile, std::less<>>;

/// Every CUDA kernel by operator name; built in kernels/kernel_table.cpp from one register_* function per family.
const KernelTable& kernels();

/// Thrown by a kernel that has no form for these dtypes or attributes: kDevice, naming the operator.
[[noreturn]] void unsupported(const KernelRequest& request, const std::string& expected, const std::string& got);

/// A kernel that does nothing: of operands without elements.
inline Kernel nothing() {
  return {.run = [](const Run&) {}};
}

}  // namespace heddle::cuda
