// Stacks that take turns on one thread of the operating system: what the threads of an emulated block run on.
#pragma once

#include <cstddef>
#include <memory>

namespace heddle::cuda::host {

/// Runs an endless `entry` on a stack of its own, whenever it is resumed, until that suspends itself.
class Fibre {
 public:
  using Entry = void (*)(void* argument);

  Fibre(Entry entry, void* argument);
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  /// By the thread's own stack.
  void resume();
  /// By the fibre that runs: goes back to resume().
  void suspend();
  /// By the fibre that runs: goes on with another one that has suspended itself, at half the price.
  void switch_to(Fibre& other);

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace heddle::cuda::host
