// The threads on which programs compile and run and files are written: own ones, because libuv's are few, shared with
// the file system and DNS, and a training step would hold one for seconds.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

namespace heddle {

class Runner {
 public:
  using Task = std::function<void()>;

  /// The process-wide runner.
  static Runner& shared();
  Runner();
  /// Waits for tasks that have started and drops the others.
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  void post(Task task);
  /// True once the process is on its way out: long tasks should stop.
  bool stopping() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Drops what may be big on a runner thread: giving gigabytes back to the system takes longer than an event loop has.
template <class T>
void drop_elsewhere(std::shared_ptr<T> object) noexcept {
  if (!object) return;
  try {
    Runner::shared().post([object = std::move(object)]() mutable { object.reset(); });
  } catch (...) {
    // No memory or thread for the detour: it was dropped here, which is only slower.
  }
}

/// Tasks that run one after the other without holding a thread while they wait.
class Strand {
 public:
  Strand();
  void post(Runner::Task task);

 private:
  struct State;
  static void next(const std::shared_ptr<State>& state);
  std::shared_ptr<State> state_;
};

}  // namespace heddle
