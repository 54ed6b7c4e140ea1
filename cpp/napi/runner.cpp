#include "napi/runner.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/tile_pool.h"

namespace heddle {

namespace {

/// Enough for a training run, an evaluation, generation and a file at once; the tile pool holds the cores.
constexpr size_t kMaxThreads = 4;

}  // namespace

struct Runner::State {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Task> tasks;
  std::vector<std::thread> threads;
  size_t idle = 0;
  std::atomic<bool> stop{false};

  void work() {
    std::unique_lock lock(mutex);
    for (;;) {
      ++idle;
      changed.wait(lock, [&] { return stop || !tasks.empty(); });
      --idle;
      if (stop) return;
      Task task = std::move(tasks.front());
      tasks.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
    }
  }
};

Runner& Runner::shared() {
  // Made first so that it goes last: tasks run tiles.
  TilePool::shared();
  static Runner runner;
  return runner;
}

Runner::Runner() : state_(std::make_unique<State>()) {}

Runner::~Runner() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->tasks.clear();
  }
  state_->changed.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

bool Runner::stopping() const noexcept { return state_->stop; }

void Runner::post(Task task) {
  const std::lock_guard lock(state_->mutex);
  state_->tasks.push_back(std::move(task));
  if (state_->idle < state_->tasks.size() && state_->threads.size() < kMaxThreads) {
    try {
      state_->threads.emplace_back([state = state_.get()] { state->work(); });
    } catch (...) {
      // Without any thread nobody would ever take the task; with some it only waits longer.
      if (state_->threads.empty()) {
        state_->tasks.pop_back();
        throw;
      }
    }
  }
  state_->changed.notify_one();
}

struct Strand::State {
  std::mutex mutex;
  std::deque<Runner::Task> tasks;
  bool running = false;
};

Strand::Strand() : state_(std::make_shared<State>()) {}

void Strand::post(Runner::Task task) {
  {
    const std::lock_guard lock(state_->mutex);
    state_->tasks.push_back(std::move(task));
    if (std::exchange(state_->running, true)) return;
  }
  Runner::shared().post([state = state_] { next(state); });
}

void Strand::next(const std::shared_ptr<State>& state) {
  Runner::Task task;
  {
    const std::lock_guard lock(state->mutex);
    task = std::move(state->tasks.front());
    state->tasks.pop_front();
  }
  task();
  task = nullptr;
  const std::lock_guard lock(state->mutex);
  state->running = !state->tasks.empty();
  // Back to the end of the queue: another program's run may be waiting for a thread.
  if (state->running) Runner::shared().post([state] { next(state); });
}

}  // namespace heddle
