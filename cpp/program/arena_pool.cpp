#include "program/arena_pool.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "program/cpu_backend.h"

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

/// Smaller results come from the heap, which keeps its pages by itself.
constexpr size_t kBigResult = size_t{1} << 20;
constexpr size_t kResultBytes = size_t{64} << 20;

struct Rest {
  std::mutex mutex;
  Block block;
  /// Of results, the oldest first.
  std::vector<Block> results;
  size_t result_bytes = 0;
  size_t programs = 0;

  Rest() { results.reserve(kResultBytes / kBigResult); }

  void drop_oldest_result() noexcept {
    result_bytes -= results.front().size;
    results.front().release();
    results.erase(results.begin());
  }
};

Rest& rest() {
  static Rest kRest;
  return kRest;
}

std::byte* allocate(const heddle_backend& backend, size_t bytes) {
  void* memory = nullptr;
  heddle_error error;
  check_status(backend.allocate(backend.self, bytes, &memory, &error), error);
  return static_cast<std::byte*>(memory);
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
  data_ = allocate(backend, bytes);
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
  ++rest().programs;
}

void Arena::program_gone() noexcept {
  const std::lock_guard lock(rest().mutex);
  if (--rest().programs != 0) return;
  rest().block.release();
  while (!rest().results.empty()) rest().drop_oldest_result();
}

std::byte* allocate_result(const heddle_backend& backend, size_t bytes) {
  if (bytes >= kBigResult) {
    const std::lock_guard lock(rest().mutex);
    auto& results = rest().results;
    // The youngest is the likeliest to be in a cache still.
    const auto found = std::find_if(results.rbegin(), results.rend(), [&](const Block& block) {
      return block.backend == &backend && block.size == bytes;
    });
    if (found != results.rend()) {
      std::byte* const data = found->data;
      rest().result_bytes -= bytes;
      results.erase(std::next(found).base());
      return data;
    }
  }
  return allocate(backend, bytes);
}

void release_result(const heddle_backend& backend, std::byte* data, size_t bytes) noexcept {
  Block mine{&backend, data, bytes};
  const std::lock_guard lock(rest().mutex);
  if (rest().programs == 0 || bytes < kBigResult || bytes > kResultBytes) return mine.release();
  while (rest().result_bytes + bytes > kResultBytes) rest().drop_oldest_result();
  rest().result_bytes += bytes;
  rest().results.push_back(mine);
}

}  // namespace heddle
