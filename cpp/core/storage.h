// Native memory behind a tensor. Three kinds: owned; a view into a kept-alive mapping; and file-backed with a
// decoder, materialised on demand and evictable, so that a frozen weight which a matmul has packed is not held twice.
// Beside the host's bytes there may be a copy in the memory of a device: each is made from the other when it is asked
// for and not up to date.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "core/device_memory.h"

namespace heddle {

/// Zeroed memory, 64-byte aligned; big blocks come straight from the OS in huge pages and go straight back to it.
/// Throws kOutOfMemory. `bytes` of the release must be those of the allocation.
std::byte* allocate_aligned(size_t bytes);
void release_aligned(std::byte* data, size_t bytes) noexcept;

/// 64-byte aligned, zero-initialised on demand by the kernel; throws kOutOfMemory.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer();

  std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// Tells the OS that these bytes of a read-only file mapping are cold: they stop counting as this process's memory,
/// and the next read brings them back from the file.
void drop_file_pages(std::span<const std::byte> bytes) noexcept;

/// The rows of a matrix as a file holds them, for kernels that can work from there instead of decoded elements.
class EncodedRows {
 public:
  EncodedRows() = default;
  EncodedRows(const EncodedRows&) = delete;
  EncodedRows& operator=(const EncodedRows&) = delete;
  virtual ~EncodedRows() = default;

  /// The format's name, such as "q4_1": static text that ends with a 0.
  virtual std::string_view encoding() const = 0;
  virtual size_t columns() const = 0;
  /// The first byte of a row's blocks.
  virtual const std::byte* row(size_t index) const = 0;
  /// The row's elements, in the storage's own type.
  virtual void decode_row(size_t index, std::byte* out) const = 0;
  /// The blocks of all rows as devices take them, in planes (cpp/io/encoding.h).
  virtual AlignedBuffer planes() const = 0;
  /// Says that the file's bytes are cold.
  virtual void drop_pages() const noexcept = 0;
};

class Storage {
 public:
  /// Fills the destination with the tensor's bytes from `begin` on, which starts a row of the tensor (a multiple of
  /// 4096 elements where it has but one dimension). Called again after evict().
  using Decoder = std::function<void(size_t begin, std::span<std::byte> out)>;

  static std::shared_ptr<Storage> owned(size_t bytes);
  /// Read-only bytes inside memory that `keep_alive` holds (a file mapping).
  static std::shared_ptr<Storage> view(std::span<const std::byte> bytes, std::shared_ptr<const void> keep_alive);
  /// `rows`: where the decoded elements come from, if they are the rows of a matrix.
  static std::shared_ptr<Storage> decoded(size_t bytes, Decoder decoder,
                                          std::shared_ptr<const EncodedRows> rows = nullptr);
  /// Writable bytes that a backend allocated; `release` gives them back.
  static std::shared_ptr<Storage> adopted(std::span<std::byte> bytes, std::function<void()> release);
  /// Writable bytes that so far are a device's alone.
  static std::shared_ptr<Storage> of_device(std::shared_ptr<DeviceMemory> memory);

  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage();

  size_t size() const noexcept { return size_; }
  bool writable() const noexcept { return kind_ == Kind::kOwned; }
  /// Null unless the contents are decoded from rows of blocks.
  const EncodedRows* encoded_rows() const noexcept { return rows_.get(); }
  /// Bytes held in anonymous memory right now, or by a device alone (reported to V8 as external memory).
  size_t resident() const noexcept;

  /// The elements. Materialises a decoded storage, or what a device has changed (thread-safe). The pointer stays valid
  /// while a Pin is held.
  const std::byte* data();
  /// Copies bytes from `begin` on; what is not in memory is decoded for this alone, from where a Decoder can begin.
  void read(size_t begin, std::span<std::byte> out);
  /// Throws kArgument unless writable(). A copy on a device is then out of date.
  std::byte* mutable_data();

  /// The elements in the memory of a backend that has its own; copied there if they are not. It is kept for the next
  /// program, while the host lets go of what it has only decoded for the copy.
  std::shared_ptr<DeviceMemory> on_device(const heddle_backend& backend);
  /// Another form of them there, kept until the contents change; see heddle_form for what must fit it.
  std::shared_ptr<DeviceMemory> on_device(const heddle_backend& backend, heddle_form form);
  /// What on_device() gave has been written: the host's bytes are out of date.
  void changed_on_device();

  /// Keeps the bytes from being evicted (program buffers bound to this storage hold one).
  class Pin {
   public:
    /// kLazy keeps bytes from going without bringing them in: data() is then null.
    enum class Load { kNow, kLazy };
    explicit Pin(std::shared_ptr<Storage> storage, Load load = Load::kNow);
    Pin(Pin&& other) noexcept = default;
    Pin& operator=(Pin&& other) noexcept;
    ~Pin();
    const std::byte* data() const noexcept { return data_; }

   private:
    std::shared_ptr<Storage> storage_;
    const std::byte* data_ = nullptr;
  };

  /// Drops materialised bytes of a decoded storage that nobody pins; tells the OS that a view's pages are cold.
  void evict();

  /// Derived forms of frozen contents (a matmul's packed weight), made once per key and shared by all programs.
  /// Valid until the contents change: mutable_data() clears them.
  std::shared_ptr<void> derived(const std::string& key, const std::function<std::shared_ptr<void>()>& make);
  void invalidate_derived();
  /// Grows whenever the contents may have changed: what was packed at another version is stale.
  uint64_t version() const noexcept { return version_.load(std::memory_order_acquire); }

 private:
  enum class Kind { kOwned, kView, kDecoded };
  Storage(Kind kind, size_t size) : kind_(kind), size_(size) {}
  const std::byte* load();
  void fetch();
  void let_go(bool decoded_for_it);
  /// The elements, which are f32.
  AlignedBuffer rounded_to_bf16();

  Kind kind_;
  size_t size_;
  size_t pins_ = 0;
  AlignedBuffer buffer_;
  std::span<const std::byte> view_;
  std::shared_ptr<const void> keep_alive_;
  Decoder decoder_;
  std::shared_ptr<const EncodedRows> rows_;
  std::span<std::byte> adopted_;
  std::function<void()> release_;
  /// Up to date whenever it is there.
  std::shared_ptr<DeviceMemory> device_;
  bool host_stale_ = false;
  std::atomic<uint64_t> version_{0};
  std::map<std::string, std::shared_ptr<void>> derived_;
  mutable std::mutex mutex_;
  std::mutex derived_mutex_;
};

}  // namespace heddle
