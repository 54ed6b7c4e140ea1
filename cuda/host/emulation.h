// Blocks of a kernel, emulated on the processor: every thread is a fibre, and they run one at a time until they meet a
// barrier or the other lanes of their warp. What CUDA leaves undefined is an error here: threads that meet different
// barriers or none, lanes that a shuffle names but that have ended, shared memory that one thread writes while another
// reads or writes it without a barrier in between, that nobody has written, or that lies outside of its array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace heddle::cuda::host {

inline constexpr unsigned kWarp = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr size_t count() const { return size_t{x} * y * z; }
};

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

/// Of the thread that runs. Emulated grids run one after the other, whichever thread of the process starts them.
inline Index3 thread_index, block_index;
inline Dim3 block_dim, grid_dim;

/// Runs every block of a grid, and in each every thread. Throws heddle::Error (kInternal) for what is undefined.
/// HEDDLE_CUDA_HOST_ORDER=reverse runs blocks, and threads between barriers, from the last to the first: results must
/// be the same.
void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& thread);

/// Ends the grid with an error.
[[noreturn]] void fail(const std::string& expected, const std::string& got);

// What a thread waits for.
void sync_block();
/// Barrier that counts the threads for which `value` is not 0.
int sync_block_count(int value);
void sync_warp(uint32_t mask);
/// The words of all lanes of the warp that `mask` names; each of them must call it with the same mask.
const uint64_t* exchange(uint32_t mask, uint64_t word);
unsigned lane();

/// Who has touched an element of shared memory, and when.
struct Shadow {
  uint32_t block = 0;  // serial number of the block that the rest is about
  uint32_t write_epoch = 0, write_warp_epoch = 0;
  uint32_t read_epoch = 0, read_warp_epoch = 0;
  uint16_t writer = 0, reader = 0;
  bool written = false, read = false, many_readers = false, many_warps = false, atomic = false;
};

enum class Access { kRead, kWrite, kAtomic };
/// Throws when the access races with an earlier one, or reads what nobody has written.
void touch(Shadow& shadow, Access access);

/// The block's dynamic shared memory, and a shadow for each byte of it.
std::byte* dynamic_memory();
Shadow* dynamic_shadow();
size_t dynamic_bytes();

/// An element of shared memory.
template <class T>
class Reference {
 public:
  Reference(T& value, Shadow& shadow) : value_(value), shadow_(shadow) {}
  Reference(const Reference&) = default;

  operator T() const {
    touch(shadow_, Access::kRead);
    return value_;
  }
  const Reference& operator=(const T& value) const {
    touch(shadow_, Access::kWrite);
    value_ = value;
    return *this;
  }
  const Reference& operator=(const Reference& other) const { return *this = static_cast<T>(other); }
  const Reference& operator+=(const T& value) const { return *this = static_cast<T>(*this) + value; }
  const Reference& operator-=(const T& value) const { return *this = static_cast<T>(*this) - value; }
  const Reference& operator*=(const T& value) const { return *this = static_cast<T>(*this) * value; }

  T atomic_add(const T& value) const {
    touch(shadow_, Access::kAtomic);
    const T before = value_;
    value_ = before + value;
    return before;
  }

 private:
  T& value_;
  Shadow& shadow_;
};

}  // namespace heddle::cuda::host
