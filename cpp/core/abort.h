// How long kernels learn that their run should stop: the executor says so between instructions, a kernel that takes
// longer than that asks between its own phases.
#pragma once

#include <functional>

namespace heddle {

using Aborted = std::function<bool()>;

/// Throws kAborted if it says so; null never does.
void check_aborted(const Aborted* aborted);

/// While it lives, current_abort() on this thread is `aborted`.
class AbortScope {
 public:
  explicit AbortScope(const Aborted& aborted) noexcept;
  ~AbortScope();
  AbortScope(const AbortScope&) = delete;
  AbortScope& operator=(const AbortScope&) = delete;

 private:
  const Aborted* outer_;
};

/// Of the run that this thread executes; null outside of one. Tiles on other threads are given it.
const Aborted* current_abort() noexcept;

}  // namespace heddle
