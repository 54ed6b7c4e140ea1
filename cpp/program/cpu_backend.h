// The CPU's backend table: host memory, the kernels of cpu_kernels(), the shared tile pool.
#pragma once

#include "core/backend.h"
#include "core/status.h"

namespace heddle {

const heddle_backend& cpu_backend();

/// Both directions of the border between exceptions and the C table.
heddle_status store_error(const Error& error, heddle_error* target) noexcept;
/// Inside a catch block: stores whatever is in flight.
heddle_status store_current_exception(heddle_error* target) noexcept;
/// Throws the stored error unless `status` is 0.
void check_status(heddle_status status, const heddle_error& error);

}  // namespace heddle
