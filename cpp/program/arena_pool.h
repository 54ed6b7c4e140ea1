// Arenas between runs: a training step and an evaluation that alternate share one, and a loop does not fault in fresh
// pages at every step.
#pragma once

#include <cstddef>

#include "core/backend.h"

namespace heddle {

class Arena {
 public:
  /// At least `bytes` of the backend's memory; contents are whatever the last run left.
  Arena(const heddle_backend& backend, size_t bytes);
  /// Keeps the memory for the next run when it is the biggest at rest.
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::byte* data() const noexcept { return data_; }

  /// Programs that exist; the last one to go takes all memory at rest with it.
  static void program_born() noexcept;
  static void program_gone() noexcept;

 private:
  const heddle_backend& backend_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace heddle
