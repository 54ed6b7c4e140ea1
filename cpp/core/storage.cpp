#include "core/storage.h"

#include <cstring>
#include <new>
#include <utility>

#include "core/dtype.h"
#include "core/status.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define HEDDLE_HAS_MMAP 1
#endif

namespace heddle {

namespace {

constexpr std::align_val_t kAlignment{64};
/// From here on a block is its own mapping: it is zero without a memset, and freeing it gives the memory back.
constexpr size_t kMappedBytes = size_t{1} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

[[noreturn]] void fail_allocation(size_t bytes) {
  throw Error(ErrorCode::kOutOfMemory, "memory", std::to_string(bytes) + " bytes", "no more memory from the system");
}

#ifdef HEDDLE_HAS_MMAP
/// A mapping that starts on a huge page, so that the OS can back all of it with huge pages.
std::byte* map_zeroed(size_t bytes) {
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  if (bytes > SIZE_MAX - slack - kHugePage) fail_allocation(bytes);
  void* const base = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) fail_allocation(bytes);
  std::byte* const begin = static_cast<std::byte*>(base);
  if (slack == 0) return begin;

  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t used = (bytes + page - 1) / page * page;
  const size_t skip = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  const size_t total = (bytes + slack + page - 1) / page * page;
  if (skip != 0) munmap(begin, skip);
  if (total > skip + used) munmap(begin + skip + used, total - skip - used);
#ifdef MADV_HUGEPAGE
  madvise(begin + skip, used, MADV_HUGEPAGE);
#endif
  return begin + skip;
}

#endif

}  // namespace

void drop_file_pages([[maybe_unused]] std::span<const std::byte> bytes) noexcept {
#ifdef HEDDLE_HAS_MMAP
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t head = (page - reinterpret_cast<uintptr_t>(bytes.data()) % page) % page;
  if (head >= bytes.size()) return;
  const size_t whole = (bytes.size() - head) / page * page;
  if (whole != 0) madvise(const_cast<std::byte*>(bytes.data()) + head, whole, MADV_DONTNEED);
#endif
}

std::byte* allocate_aligned(size_t bytes) {
  if (bytes == 0) return nullptr;
#ifdef HEDDLE_HAS_MMAP
  if (bytes >= kMappedBytes) return map_zeroed(bytes);
#endif
  void* const data = ::operator new(bytes, kAlignment, std::nothrow);
  if (data == nullptr) fail_allocation(bytes);
  std::memset(data, 0, bytes);
  return static_cast<std::byte*>(data);
}

void release_aligned(std::byte* data, size_t bytes) noexcept {
  if (data == nullptr) return;
#ifdef HEDDLE_HAS_MMAP
  if (bytes >= kMappedBytes) {
    munmap(data, bytes);
    return;
  }
#endif
  ::operator delete(data, kAlignment);
}

AlignedBuffer::AlignedBuffer(size_t bytes) : data_(allocate_aligned(bytes)), size_(bytes) {}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() { release_aligned(data_, size_); }

std::shared_ptr<Storage> Storage::owned(size_t bytes) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kOwned, bytes));
  storage->buffer_ = AlignedBuffer(bytes);
  return storage;
}

std::shared_ptr<Storage> Storage::view(std::span<const std::byte> bytes, std::shared_ptr<const void> keep_alive) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kView, bytes.size()));
  storage->view_ = bytes;
  storage->keep_alive_ = std::move(keep_alive);
  return storage;
}

std::shared_ptr<Storage> Storage::decoded(size_t bytes, Decoder decoder, std::shared_ptr<const EncodedRows> rows) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kDecoded, bytes));
  storage->rows_ = std::move(rows);
  storage->decoder_ = std::move(decoder);
  return storage;
}

std::shared_ptr<Storage> Storage::adopted(std::span<std::byte> bytes, std::function<void()> release) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kOwned, bytes.size()));
  storage->adopted_ = bytes;
  storage->release_ = std::move(release);
  return storage;
}

std::shared_ptr<Storage> Storage::of_device(std::shared_ptr<DeviceMemory> memory) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kOwned, memory->size()));
  storage->device_ = std::move(memory);
  storage->host_stale_ = true;
  return storage;
}

Storage::~Storage() {
  if (release_) release_();
}

size_t Storage::resident() const noexcept {
  const std::lock_guard lock(mutex_);
  const size_t host = buffer_.size() + adopted_.size();
  return host == 0 && host_stale_ ? size_ : host;
}

const std::byte* Storage::data() {
  const std::lock_guard lock(mutex_);
  return load();
}

const std::byte* Storage::load() {
  if (host_stale_) fetch();
  if (kind_ == Kind::kView) return view_.data();
  if (adopted_.data() != nullptr) return adopted_.data();
  if (kind_ == Kind::kDecoded && buffer_.size() != size_) {
    AlignedBuffer fresh(size_);
    decoder_(0, {fresh.data(), size_});
    buffer_ = std::move(fresh);
  }
  return buffer_.data();
}

/// Only what a program may write is ever changed on a device, so it is of kind kOwned.
void Storage::fetch() {
  if (adopted_.data() == nullptr && buffer_.size() != size_) buffer_ = AlignedBuffer(size_);
  device_->read(adopted_.data() != nullptr ? adopted_.data() : buffer_.data());
  host_stale_ = false;
}

std::shared_ptr<DeviceMemory> Storage::on_device(const heddle_backend& backend) {
  const std::lock_guard lock(mutex_);
  if (device_ && &device_->backend() == &backend) return device_;
  const bool decodes = kind_ == Kind::kDecoded && buffer_.size() != size_;
  const std::byte* const bytes = load();
  auto memory = std::make_shared<DeviceMemory>(backend, size_);
  memory->fill(bytes);
  device_ = std::move(memory);
  let_go(decodes);
  return device_;
}

std::shared_ptr<DeviceMemory> Storage::on_device(const heddle_backend& backend, heddle_form form) {
  if (form == HEDDLE_ELEMENTS) return on_device(backend);
  const bool blocks = form == HEDDLE_BLOCKS;
  const auto made = derived(std::string(backend.name) + (blocks ? " blocks" : " bf16"), [&]() -> std::shared_ptr<void> {
    const AlignedBuffer bytes = blocks ? rows_->planes() : rounded_to_bf16();
    auto memory = std::make_shared<DeviceMemory>(backend, bytes.size());
    memory->fill(bytes.data());
    return memory;
  });
  return std::static_pointer_cast<DeviceMemory>(made);
}

AlignedBuffer Storage::rounded_to_bf16() {
  const std::lock_guard lock(mutex_);
  const bool decodes = kind_ == Kind::kDecoded && buffer_.size() != size_;
  const auto* const from = reinterpret_cast<const float*>(load());
  AlignedBuffer rounded(size_ / 2);
  auto* const to = reinterpret_cast<uint16_t*>(rounded.data());
  for (size_t i = 0; i < size_ / sizeof(float); ++i) to[i] = f32_to_bf16(from[i]);
  let_go(decodes);
  return rounded;
}

/// Of what was read for a copy on a device alone.
void Storage::let_go(bool decoded_for_it) {
  if (pins_ != 0) return;
  if (decoded_for_it) buffer_ = AlignedBuffer();
  if (kind_ == Kind::kView) drop_file_pages(view_);
}

void Storage::changed_on_device() {
  {
    const std::lock_guard lock(mutex_);
    if (device_) host_stale_ = true;
  }
  invalidate_derived();
}

void Storage::read(size_t begin, std::span<std::byte> out) {
  if (begin > size_ || out.size() > size_ - begin)
    throw Error(ErrorCode::kInternal, "storage", "bytes inside " + std::to_string(size_),
                std::to_string(out.size()) + " from byte " + std::to_string(begin));
  const std::lock_guard lock(mutex_);
  if (kind_ == Kind::kDecoded && buffer_.size() != size_)
    decoder_(begin, out);
  else if (!out.empty())
    std::memcpy(out.data(), load() + begin, out.size());
}

std::byte* Storage::mutable_data() {
  if (!writable()) throw Error(ErrorCode::kArgument, "tensor", "a writable tensor", "a read-only view of a file");
  invalidate_derived();
  const std::lock_guard lock(mutex_);
  if (host_stale_) fetch();
  device_ = nullptr;
  return adopted_.data() != nullptr ? adopted_.data() : buffer_.data();
}

void Storage::evict() {
  const std::lock_guard lock(mutex_);
  if (pins_ != 0) return;
  if (kind_ == Kind::kDecoded) buffer_ = AlignedBuffer();
  if (kind_ == Kind::kView) drop_file_pages(view_);
}

std::shared_ptr<void> Storage::derived(const std::string& key, const std::function<std::shared_ptr<void>()>& make) {
  const std::lock_guard lock(derived_mutex_);
  const auto found = derived_.find(key);
  if (found != derived_.end()) return found->second;
  return derived_.emplace(key, make()).first->second;
}

void Storage::invalidate_derived() {
  const std::lock_guard lock(derived_mutex_);
  version_.fetch_add(1, std::memory_order_release);
  derived_.clear();
}

Storage::Pin::Pin(std::shared_ptr<Storage> storage, Load load) : storage_(std::move(storage)) {
  const std::lock_guard lock(storage_->mutex_);
  if (load == Load::kNow) data_ = storage_->load();
  ++storage_->pins_;
}

Storage::Pin& Storage::Pin::operator=(Pin&& other) noexcept {
  std::swap(storage_, other.storage_);
  std::swap(data_, other.data_);
  return *this;
}

Storage::Pin::~Pin() {
  if (!storage_) return;
  const std::lock_guard lock(storage_->mutex_);
  --storage_->pins_;
}

}  // namespace heddle
