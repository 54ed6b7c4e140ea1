// Shared memory of a block, as kernels declare and touch it. On the device these are plain arrays; the emulation
// watches every access (cuda/host/emulation.h).
//
//   __shared__ Shared<float, 256> sums;          // of a size that the compiler knows
//   auto tile = dynamic_shared<float>(0, n);     // n floats from byte 0 of what the launch asked for
//   sums[threadIdx.x] = x;  float y = sums[0];   // elements are read and written whole
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#ifndef __CUDACC__
#include <string>
#endif

namespace heddle::cuda {

#ifdef __CUDACC__

template <class T, unsigned kCount>
struct Shared {
  T values[kCount];
  __device__ __forceinline__ T& operator[](unsigned i) { return values[i]; }
  __device__ __forceinline__ T atomic_add(unsigned i, T value) { return atomicAdd(&values[i], value); }
};

template <class T>
struct SharedSpan {
  T* values;
  __device__ __forceinline__ T& operator[](unsigned i) const { return values[i]; }
};

template <class T>
__device__ __forceinline__ SharedSpan<T> dynamic_shared(unsigned byte, unsigned) {
  extern __shared__ uint4 heddle_dynamic_shared[];
  return {reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(heddle_dynamic_shared) + byte)};
}

#else

template <class T, unsigned kCount>
class Shared {
 public:
  host::Reference<T> operator[](size_t i) {
    if (i >= kCount) host::fail("an index below " + std::to_string(kCount), std::to_string(i));
    return {values_[i], shadows_[i]};
  }
  T atomic_add(size_t i, T value) { return (*this)[i].atomic_add(value); }

 private:
  T values_[kCount];
  host::Shadow shadows_[kCount];
};

template <class T>
class SharedSpan {
 public:
  SharedSpan(size_t byte, size_t count) : byte_(byte), count_(count) {
    if (byte % alignof(T) != 0 || byte + count * sizeof(T) > host::dynamic_bytes())
      host::fail("aligned bytes within the " + std::to_string(host::dynamic_bytes()) + " of the launch",
                 std::to_string(count * sizeof(T)) + " from byte " + std::to_string(byte));
  }
  host::Reference<T> operator[](size_t i) const {
    if (i >= count_) host::fail("an index below " + std::to_string(count_), std::to_string(i));
    const size_t at = byte_ + i * sizeof(T);
    return {*reinterpret_cast<T*>(host::dynamic_memory() + at), host::dynamic_shadow()[at]};
  }

 private:
  size_t byte_;
  size_t count_;
};

template <class T>
SharedSpan<T> dynamic_shared(size_t byte, size_t count) {
  return {byte, count};
}

#endif

}  // namespace heddle::cuda
