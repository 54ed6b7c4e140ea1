// Big blocks between runs: results that are gone and what kernels needed during a run wait for the next block of their
// size, so that a loop does not fault in fresh pages at every step.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace heddle {

class RestingMemory {
 public:
  struct Block {
    /// Who allocates such blocks: only the same one gets it again.
    const void* owner = nullptr;
    std::byte* data = nullptr;
    size_t size = 0;
    void (*release)(const Block& block) noexcept = nullptr;
  };

  /// The process-wide one.
  static RestingMemory& shared();

  /// A block of exactly this size, contents as they come; null where none is at rest.
  std::byte* take(const void* owner, size_t size) noexcept;
  /// Keeps the block, or releases it where it is small or nobody runs programs; kLimit bytes in all.
  void give(const Block& block) noexcept;

  /// Blocks are kept between the two.
  void open() noexcept;
  void close() noexcept;

 private:
  /// Smaller blocks come from the heap, which keeps its pages by itself.
  static constexpr size_t kBigBlock = size_t{1} << 20;
  static constexpr size_t kLimit = size_t{64} << 20;

  RestingMemory();
  void drop_oldest() noexcept;

  std::mutex mutex_;
  /// The oldest first.
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
  bool open_ = false;
};

/// Memory for one run of a kernel, 64-byte aligned, contents as they come; throws kOutOfMemory.
class RunBuffer {
 public:
  RunBuffer() = default;
  explicit RunBuffer(size_t bytes);
  RunBuffer(RunBuffer&& other) noexcept;
  RunBuffer& operator=(RunBuffer&& other) noexcept;
  RunBuffer(const RunBuffer&) = delete;
  RunBuffer& operator=(const RunBuffer&) = delete;
  ~RunBuffer();

  std::byte* data() const noexcept { return data_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace heddle
