#include "cuda/host/emulation.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/host/fibre.h"

namespace heddle::cuda::host {

namespace {

constexpr size_t kMaxThreads = 1024;

/// Lanes of one warp that meet under one mask. A lane is at most one meeting ahead of the others, so two buffers do.
struct Meeting {
  std::array<std::array<uint64_t, kWarp>, 2> words{};
  uint32_t arrived = 0;
  uint32_t number = 0;
};

struct Warp {
  /// Of all lanes together, and of those that a mask names.
  Meeting whole;
  std::map<uint32_t, Meeting> partial;
  uint32_t ended = 0;
  uint32_t lanes = 0;
  /// Grows at every __syncwarp of all lanes.
  uint32_t epoch = 0;
};

enum class State : uint8_t { kNew, kReady, kAtBarrier, kInWarp, kEnded };

struct Thread {
  Index3 index;
  State state = State::kNew;
  Fibre* fibre = nullptr;
};

/// Threads that can go on, each of them once.
class Ready {
 public:
  bool empty() const { return count_ == 0; }
  void clear() { count_ = 0; }
  void push(size_t thread) { threads_[count_++] = static_cast<uint16_t>(thread); }
  /// The last one pushed: a warp goes on as long as it can, while its stacks are in the cache.
  size_t take() { return threads_[--count_]; }

 private:
  std::array<uint16_t, kMaxThreads> threads_{};
  size_t count_ = 0;
};

class Machine {
 public:
  void run(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& thread);
  void sync_block(int value);
  int last_count() const { return last_count_; }
  const uint64_t* exchange(uint32_t mask, uint64_t word, bool orders_memory);
  void touch(Shadow& shadow, Access access) const;
  unsigned lane() const { return static_cast<unsigned>(current_ % kWarp); }
  void fail_with(const std::exception_ptr& error) { error_ = error; }

  std::vector<std::byte> memory;
  std::vector<Shadow> shadows;

 private:
  static void fibre_main(void* argument) { static_cast<Machine*>(argument)->run_threads(); }

  void run_block();
  void run_threads();
  void enter(size_t thread);
  void end_current();
  void wait(State state);
  void go_on();
  void release(State state, size_t first, size_t last, uint32_t mask);
  void release_barrier_if_full();
  size_t next_new();
  [[noreturn]] void report_standstill() const;
  Warp& warp() { return warps_[current_ / kWarp]; }

  const std::function<void()>* thread_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<Fibre*> idle_;
  Ready ready_;
  size_t started_ = 0, ended_ = 0, waiting_ = 0, current_ = 0;
  uint32_t epoch_ = 0;
  uint32_t block_serial_ = 0;
  int count_ = 0, last_count_ = 0;
  bool reverse_ = false;
  std::exception_ptr error_;
};

Machine& machine() {
  static Machine kMachine;
  return kMachine;
}

std::mutex& grid_mutex() {
  static std::mutex kMutex;
  return kMutex;
}

void Machine::run(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  if (block.count() == 0 || block.count() > kMaxThreads || grid.count() == 0)
    fail("a grid of at least one block of 1 to 1024 threads",
         std::to_string(grid.count()) + " blocks of " + std::to_string(block.count()));
  const char* const order = std::getenv("HEDDLE_CUDA_HOST_ORDER");
  reverse_ = order != nullptr && std::strcmp(order, "reverse") == 0;
  thread_ = &thread;
  grid_dim = grid;
  block_dim = block;
  memory.assign(shared_bytes, std::byte{0xff});
  shadows.assign(shared_bytes, {});
  for (size_t i = 0; i < grid.count(); ++i) {
    const size_t at = reverse_ ? grid.count() - 1 - i : i;
    block_index = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                   static_cast<unsigned>(at / grid.x / grid.y)};
    run_block();
  }
}

void Machine::run_block() {
  ++block_serial_;
  epoch_ = 0;
  started_ = ended_ = waiting_ = 0;
  count_ = last_count_ = 0;
  error_ = nullptr;
  ready_.clear();
  const size_t n = block_dim.count();
  threads_.assign(n, {});
  warps_.assign((n + kWarp - 1) / kWarp, {});
  for (size_t i = 0; i < n; ++i) {
    threads_[i].index = {static_cast<unsigned>(i % block_dim.x), static_cast<unsigned>(i / block_dim.x % block_dim.y),
                         static_cast<unsigned>(i / block_dim.x / block_dim.y)};
    warps_[i / kWarp].lanes |= 1U << (i % kWarp);
  }
  while (ended_ < n) {
    if (error_ == nullptr && !ready_.empty()) {
      const size_t next = ready_.take();
      enter(next);
      threads_[next].fibre->resume();
    } else if (error_ == nullptr && started_ < n) {
      if (idle_.empty()) idle_.push_back(fibres_.emplace_back(std::make_unique<Fibre>(fibre_main, this)).get());
      Fibre* const fibre = idle_.back();
      idle_.pop_back();
      const size_t next = next_new();
      threads_[next].fibre = fibre;
      enter(next);
      fibre->resume();
    } else {
      // Fibres in the middle of a thread cannot be used again.
      const std::exception_ptr error = error_;
      fibres_.clear();
      idle_.clear();
      if (error) std::rethrow_exception(error);
      report_standstill();
    }
  }
  // The last thread's end may be the error.
  if (error_) std::rethrow_exception(error_);
}

size_t Machine::next_new() {
  const size_t position = started_++;
  return reverse_ ? threads_.size() - 1 - position : position;
}

void Machine::enter(size_t thread) {
  current_ = thread;
  thread_index = threads_[thread].index;
  threads_[thread].state = State::kReady;
}

/// On a fibre: the threads that never wait run one after the other without a switch.
void Machine::run_threads() {
  for (;;) {
    try {
      (*thread_)();
    } catch (...) {
      error_ = std::current_exception();
    }
    Fibre* const fibre = threads_[current_].fibre;
    end_current();
    if (error_ == nullptr && started_ < threads_.size() && ready_.empty()) {
      const size_t next = next_new();
      threads_[next].fibre = fibre;
      enter(next);
      continue;
    }
    idle_.push_back(fibre);
    fibre->suspend();
  }
}

void Machine::end_current() {
  threads_[current_].state = State::kEnded;
  warp().ended |= 1U << lane();
  ++ended_;
  release_barrier_if_full();
}

void Machine::wait(State state) {
  threads_[current_].state = state;
  go_on();
}

/// The current thread waits: straight on with one that is ready, where there is one.
void Machine::go_on() {
  Fibre* const own = threads_[current_].fibre;
  if (ready_.empty() || error_ != nullptr) return own->suspend();
  const size_t next = ready_.take();
  enter(next);
  if (threads_[next].fibre != own) own->switch_to(*threads_[next].fibre);
}

void Machine::release(State state, size_t first, size_t last, uint32_t mask) {
  const size_t count = std::min(last, threads_.size()) - first;
  for (size_t position = 0; position < count; ++position) {
    const size_t i = reverse_ ? first + position : first + count - 1 - position;
    if (threads_[i].state != state || (mask >> (i % kWarp) & 1U) == 0) continue;
    threads_[i].state = State::kReady;
    ready_.push(i);
  }
}

void Machine::release_barrier_if_full() {
  if (waiting_ == 0 || waiting_ + ended_ < threads_.size()) return;
  waiting_ = 0;
  last_count_ = std::exchange(count_, 0);
  ++epoch_;
  release(State::kAtBarrier, 0, threads_.size(), ~0U);
}

void Machine::sync_block(int value) {
  ++waiting_;
  count_ += value != 0 ? 1 : 0;
  threads_[current_].state = State::kAtBarrier;
  release_barrier_if_full();
  go_on();
}

const uint64_t* Machine::exchange(uint32_t mask, uint64_t word, bool orders_memory) {
  Warp& own = warp();
  const uint32_t bit = 1U << lane();
  // A whole mask in a block of fewer threads means the lanes that there are.
  const uint32_t wanted = mask == ~0U ? own.lanes : mask;
  if ((wanted & bit) == 0) fail("a lane that its mask names", "lane " + std::to_string(lane()));
  if ((wanted & ~own.lanes) != 0) fail("a mask of lanes that there are", "one that names others");
  if ((wanted & own.ended) != 0) fail("lanes that still run", "a mask with one that has ended");
  Meeting& meeting = wanted == own.lanes ? own.whole : own.partial[wanted];
  const auto number = meeting.number;
  meeting.words[number % 2][lane()] = word;
  meeting.arrived |= bit;
  if (meeting.arrived == wanted) {
    meeting.arrived = 0;
    ++meeting.number;
    if (orders_memory && wanted == own.lanes) ++own.epoch;
    const size_t first = current_ / kWarp * kWarp;
    release(State::kInWarp, first, first + kWarp, wanted);
  } else {
    wait(State::kInWarp);
  }
  return meeting.words[number % 2].data();
}

void Machine::report_standstill() const {
  size_t at_barrier = 0, in_warp = 0;
  for (const Thread& thread : threads_) {
    at_barrier += thread.state == State::kAtBarrier ? 1 : 0;
    in_warp += thread.state == State::kInWarp ? 1 : 0;
  }
  fail("threads that all meet the same barrier", std::to_string(at_barrier) + " at a barrier of the block and " +
                                                     std::to_string(in_warp) + " at one of their warp");
}

void Machine::touch(Shadow& shadow, Access access) const {
  if (shadow.block != block_serial_) {
    shadow = {};
    shadow.block = block_serial_;
  }
  const auto self = static_cast<uint16_t>(current_);
  const uint32_t warp_epoch = warps_[current_ / kWarp].epoch;
  const auto same_warp = [self](uint16_t other) { return self / kWarp == other / kWarp; };
  const auto race = [&](uint16_t other, const char* what) {
    fail("a barrier between two threads that share memory", "thread " + std::to_string(self) +
                                                                (access == Access::kRead ? " reading" : " writing") +
                                                                " what thread " + std::to_string(other) + what);
  };
  if (access != Access::kWrite && !shadow.written) fail("shared memory that was written before it is read", "garbage");
  if (shadow.written && shadow.write_epoch == epoch_ && shadow.writer != self &&
      !(access == Access::kAtomic && shadow.atomic) &&
      !(same_warp(shadow.writer) && shadow.write_warp_epoch != warp_epoch))
    race(shadow.writer, " has written");
  if (access == Access::kRead) {
    const bool current = shadow.read && shadow.read_epoch == epoch_;
    if (current && shadow.reader != self) {
      shadow.many_readers = true;
      if (!same_warp(shadow.reader)) shadow.many_warps = true;
    } else if (!current) {
      shadow.many_readers = shadow.many_warps = false;
    }
    shadow.read = true;
    shadow.reader = self;
    shadow.read_epoch = epoch_;
    shadow.read_warp_epoch = warp_epoch;
    return;
  }
  if (shadow.read && shadow.read_epoch == epoch_ && (shadow.many_readers || shadow.reader != self) &&
      (shadow.many_warps || !same_warp(shadow.reader) || shadow.read_warp_epoch == warp_epoch))
    race(shadow.reader, " has read");
  shadow.written = true;
  shadow.writer = self;
  shadow.write_epoch = epoch_;
  shadow.write_warp_epoch = warp_epoch;
  shadow.atomic = access == Access::kAtomic;
}

}  // namespace

void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const std::lock_guard lock(grid_mutex());
  machine().run(grid, block, shared_bytes, thread);
}

void fail(const std::string& expected, const std::string& got) {
  throw Error(ErrorCode::kInternal,
              "kernel, block " + std::to_string(block_index.x) + "." + std::to_string(block_index.y) + "." +
                  std::to_string(block_index.z),
              expected, got);
}

void sync_block() { machine().sync_block(0); }

int sync_block_count(int value) {
  machine().sync_block(value);
  return machine().last_count();
}

void sync_warp(uint32_t mask) { machine().exchange(mask, 0, true); }
const uint64_t* exchange(uint32_t mask, uint64_t word) { return machine().exchange(mask, word, false); }
unsigned lane() { return machine().lane(); }
void touch(Shadow& shadow, Access access) { machine().touch(shadow, access); }
std::byte* dynamic_memory() { return machine().memory.data(); }
Shadow* dynamic_shadow() { return machine().shadows.data(); }
size_t dynamic_bytes() { return machine().memory.size(); }

}  // namespace heddle::cuda::host
