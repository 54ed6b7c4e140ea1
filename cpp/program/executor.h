// A compiled program: an instruction list, checked, planned and compiled on one backend, ready to run many times.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/backend.h"
#include "core/memory_plan.h"
#include "core/tensor.h"
#include "program/instruction_list.h"
#include "program/recorded_runs.h"

namespace heddle {

struct ProfileEntry {
  std::string op;
  size_t calls = 0;
  double seconds = 0;
};

class Program {
 public:
  /// Asked between instructions; true stops the work with kAborted.
  using Aborted = std::function<bool()>;

  /// Checks everything, plans memory, packs frozen weights. `bound[i]` is the tensor behind bound index i. With
  /// `record`, a backend that can record runs replays them (program/recorded_runs.h).
  Program(const heddle_backend& backend, std::span<const std::byte> list, std::vector<Tensor> bound,
          const Aborted& aborted, bool record = false);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  /// Runs of one program wait for each other. After an abort or a failure, state may be half updated. Where the backend
  /// has a clock of its own, only runs that are to be `profiled` are part of profile(); they are never replayed.
  std::vector<Tensor> run(std::span<const Tensor> inputs, const Aborted& aborted, bool profiled = false);

  size_t arena_bytes() const noexcept { return plan_.bytes; }
  /// Arena, scratch and outputs: what a run takes beside bound tensors and packed weights.
  size_t peak_bytes() const noexcept { return peak_bytes_; }
  std::vector<ProfileEntry> profile() const;
  /// Runs so far that were replayed.
  size_t replays() const noexcept { return replays_; }

 private:
  class Kernel;
  struct Step;
  struct Consumed;
  struct Addresses;
  struct Pointers;

  void check_bound() const;
  void compile_steps(const Aborted& aborted);
  std::vector<std::vector<uint32_t>> group_by_frozen() const;
  void compile_step(uint32_t index);
  void take_forms(Step& step, const Instruction& instruction, std::span<const heddle_operand> inputs);
  void check_overlaps(uint32_t index) const;
  void release_consumed(std::span<const uint32_t> group, std::vector<uint32_t>& uses_left);
  void plan();
  void pin_bound();
  void recompile_stale();
  void check_inputs(std::span<const Tensor> inputs) const;
  std::vector<Tensor> allocate_outputs() const;
  void place_buffers(Addresses& addresses, std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                     std::byte* arena) const;
  void place_forms(Addresses& addresses) const;
  std::byte* address_of(Addresses& addresses, const std::shared_ptr<Storage>& storage, bool written) const;
  size_t scratch_bytes(size_t threads) const;
  void execute(const Addresses& addresses, std::byte* scratch, const Aborted& aborted, bool profiled);
  void announce(size_t index, std::span<std::byte* const> addresses, Pointers& pointers) const;
  void start(size_t index, std::span<std::byte* const> addresses, std::byte* scratch, Pointers& pointers) const;
  void wait() const;
  void add_to_profile(std::span<const double> seconds);
  std::unique_ptr<RecordedRuns> recorded_runs() const;
  bool replay(const Addresses& addresses, std::byte* scratch);
  /// Neither absent nor another form of a tensor.
  bool is_root(uint32_t number) const { return number < list_.buffers.size(); }
  bool frozen(uint32_t root) const;
  const std::shared_ptr<Storage>& storage(uint32_t root) const { return bound_[list_.buffers[root].index].storage; }

  const heddle_backend& backend_;
  InstructionList list_;
  std::vector<Tensor> bound_;
  std::vector<Step> steps_;
  std::vector<Consumed> consumed_;
  /// Roots whose dense contents some step reads at run time.
  std::vector<bool> read_dense_;
  /// Roots of frozen tensors and the other forms in which some step reads them.
  std::vector<std::pair<uint32_t, heddle_form>> formed_;
  std::vector<Storage::Pin> pins_;
  /// By root: its place in the arena.
  std::vector<size_t> offsets_;
  /// By root: bound buffers whose contents are passed to kernels as they are.
  std::vector<bool> dense_;
  MemoryPlan plan_;
  size_t peak_bytes_ = 0;
  /// Null where runs are not recorded.
  std::unique_ptr<RecordedRuns> recorded_;
  std::atomic<size_t> replays_{0};

  std::mutex run_mutex_;
  mutable std::mutex profile_mutex_;
  std::map<std::string, ProfileEntry, std::less<>> profile_;
};

}  // namespace heddle
