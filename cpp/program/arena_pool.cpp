#include "program/arena_pool.h"

#include <mutex>
#include <utility>

#include "core/backend_status.h"
#include "core/resting_memory.h"

namespace heddle {

namespace {

struct Block {
  const heddle_backend* backend = nullptr;
  std::byte* data = nullptr;
  size_t size = 0;

  void release() noexcept {
    if (data != nullptr) backend->release(backend->self, data, size);
    *this = {};
  }
};

struct Rest {
  std::mutex mutex;
  Block block;
  size_t programs = 0;
};

Rest& rest() {
  static Rest kRest;
  return kRest;
}

}  // namespace

Arena::Arena(const heddle_backend& backend, size_t bytes) : backend_(backend) {
  {
    const std::lock_guard lock(rest().mutex);
    Block& block = rest().block;
    if (block.backend == &backend && block.size >= bytes) {
      data_ = std::exchange(block.data, nullptr);
      size_ = std::exchange(block.size, 0);
      return;
    }
    // Too small: gone before the bigger one comes, so that the peak is one arena.
    block.release();
  }
  void* memory = nullptr;
  heddle_error error;
  check_status(backend.allocate(backend.self, bytes, &memory, &error), error);
  data_ = static_cast<std::byte*>(memory);
  size_ = bytes;
}

Arena::~Arena() {
  Block mine{&backend_, data_, size_};
  const std::lock_guard lock(rest().mutex);
  if (rest().programs != 0 && mine.size > rest().block.size) std::swap(mine, rest().block);
  mine.release();
}

void Arena::program_born() noexcept {
  const std::lock_guard lock(rest().mutex);
  if (++rest().programs == 1) RestingMemory::shared().open();
}

void Arena::program_gone() noexcept {
  const std::lock_guard lock(rest().mutex);
  if (--rest().programs != 0) return;
  rest().block.release();
  RestingMemory::shared().close();
}

}  // namespace heddle
