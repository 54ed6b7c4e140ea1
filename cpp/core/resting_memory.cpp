#include "core/resting_memory.h"

#include <algorithm>
#include <utility>

#include "core/storage.h"

namespace heddle {

RestingMemory& RestingMemory::shared() {
  static RestingMemory kShared;
  return kShared;
}

RestingMemory::RestingMemory() { blocks_.reserve(kLimit / kBigBlock); }

std::byte* RestingMemory::take(const void* owner, size_t size) noexcept {
  if (size < kBigBlock) return nullptr;
  const std::lock_guard lock(mutex_);
  // The youngest is the likeliest to be in a cache still.
  const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(),
                                  [&](const Block& block) { return block.owner == owner && block.size == size; });
  if (found == blocks_.rend()) return nullptr;
  std::byte* const data = found->data;
  bytes_ -= size;
  blocks_.erase(std::next(found).base());
  return data;
}

void RestingMemory::give(const Block& block) noexcept {
  const std::lock_guard lock(mutex_);
  if (!open_ || block.size < kBigBlock || block.size > kLimit) return block.release(block);
  while (bytes_ + block.size > kLimit) drop_oldest();
  bytes_ += block.size;
  blocks_.push_back(block);
}

void RestingMemory::open() noexcept {
  const std::lock_guard lock(mutex_);
  open_ = true;
}

void RestingMemory::close() noexcept {
  const std::lock_guard lock(mutex_);
  open_ = false;
  while (!blocks_.empty()) drop_oldest();
}

void RestingMemory::drop_oldest() noexcept {
  const Block block = blocks_.front();
  blocks_.erase(blocks_.begin());
  bytes_ -= block.size;
  block.release(block);
}

RunBuffer::RunBuffer(size_t bytes) : data_(RestingMemory::shared().take(nullptr, bytes)), size_(bytes) {
  if (data_ == nullptr) data_ = allocate_aligned(bytes);
}

RunBuffer::RunBuffer(RunBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

RunBuffer& RunBuffer::operator=(RunBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

RunBuffer::~RunBuffer() {
  const auto release = [](const RestingMemory::Block& block) noexcept { release_aligned(block.data, block.size); };
  if (data_ != nullptr) RestingMemory::shared().give({nullptr, data_, size_, release});
}

}  // namespace heddle
