#include "cuda/host/record.h"

#include <dlfcn.h>

#include <cstdlib>
#include <fstream>
#include <mutex>

namespace heddle::cuda::host {

namespace {

template <class... Parts>
bool write_line(const Parts&... parts) {
  const char* const path = std::getenv("HEDDLE_CUDA_HOST_LAUNCHES");
  if (path == nullptr) return false;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  std::ofstream file(path, std::ios::app);
  (file << ... << parts) << '\n';
  return true;
}

}  // namespace

bool recorded(const void* kernel, Dim3 blocks, Dim3 threads, size_t shared_bytes) {
  Dl_info addon{};
  dladdr(kernel, &addon);
  const auto offset = static_cast<const std::byte*>(kernel) - static_cast<const std::byte*>(addon.dli_fbase);
  return write_line("kernel ", offset, ' ', blocks.count(), ' ', threads.count(), ' ', shared_bytes);
}

bool recorded(const char* library) { return write_line("library ", library); }

}  // namespace heddle::cuda::host
