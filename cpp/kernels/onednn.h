// The one oneDNN engine of this process, a stream per thread, and oneDNN's failures as Heddle's.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>
#include <string>

#include "core/status.h"

namespace heddle {

inline const dnnl::engine& cpu_engine() {
  static const dnnl::engine kEngine(dnnl::engine::kind::cpu, 0);
  return kEngine;
}

/// In-order streams hold no state of a run, but are not documented as usable by many threads.
inline dnnl::stream& cpu_stream() {
  thread_local dnnl::stream stream(cpu_engine());
  return stream;
}

/// Runs `body`; what oneDNN throws becomes an Error that says `what` was expected at `place`.
template <class Body>
auto guarded(const char* place, const char* what, const Body& body) {
  try {
    return body();
  } catch (const dnnl::error& error) {
    const bool memory_failed = error.status == dnnl_out_of_memory;
    throw Error(memory_failed ? ErrorCode::kOutOfMemory : ErrorCode::kInternal, place, what, error.what());
  }
}

inline dnnl::memory memory_at(const dnnl::memory::desc& desc, const void* data) {
  // oneDNN takes inputs and outputs through the same pointer type.
  return dnnl::memory(desc, cpu_engine(), const_cast<void*>(data));
}

}  // namespace heddle
