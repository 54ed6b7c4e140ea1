// Runs of a program that its backend has by heart. A recording holds addresses: in the place of inputs and outputs,
// which lie elsewhere at every run, it has slots of its own, copied to and from; when another address changes, it is
// made anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/backend.h"
#include "core/device_memory.h"

namespace heddle {

class RecordedRuns {
 public:
  /// A root whose memory is another one at every run.
  struct Operand {
    uint32_t root;
    size_t bytes;
  };
  /// Hands every instruction to the backend, with the memory of each root.
  using StartAll = std::function<void(std::span<std::byte* const> addresses)>;

  RecordedRuns(const heddle_backend& backend, std::vector<Operand> inputs, std::vector<Operand> outputs)
      : backend_(backend), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {}
  ~RecordedRuns() { forget(); }
  RecordedRuns(const RecordedRuns&) = delete;
  RecordedRuns& operator=(const RecordedRuns&) = delete;

  /// Bytes of all slots.
  size_t slot_bytes() const;
  /// Starts a replay, recorded first where the run before this one had the same `fixed` addresses, which are all that
  /// the instructions get beside inputs and outputs. False where there is nothing to replay: the caller starts
  /// everything himself.
  bool replay(std::vector<std::byte*> fixed, std::span<std::byte* const> addresses, const StartAll& start_all);
  /// A kernel in the recording is gone.
  void forget() noexcept;

 private:
  bool record(std::span<std::byte* const> addresses, const StartAll& start_all);
  void make_slots();
  void copy(void* target, const void* source, size_t bytes) const;

  const heddle_backend& backend_;
  std::vector<Operand> inputs_, outputs_;
  /// Of inputs, then of outputs; made by the first recording.
  std::vector<std::unique_ptr<DeviceMemory>> slots_;
  /// Fixed addresses of the last run that was not replayed, and of the recording.
  std::vector<std::byte*> last_, recorded_;
  void* recording_ = nullptr;
  bool hopeless_ = false;
};

}  // namespace heddle
