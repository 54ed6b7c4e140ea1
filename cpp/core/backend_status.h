// The border between exceptions and a backend's C table, in both directions.
#pragma once

#include "core/backend.h"
#include "core/status.h"

namespace heddle {

heddle_status store_error(const Error& error, heddle_error* target) noexcept;
/// Inside a catch block: stores whatever is in flight.
heddle_status store_current_exception(heddle_error* target) noexcept;
/// Throws the stored error unless `status` is 0.
void check_status(heddle_status status, const heddle_error& error);

/// Runs `call` for a function of a table, and returns what that function has to.
template <class Call>
heddle_status status_of_call(heddle_error* error, const Call& call) noexcept {
  try {
    call();
    return 0;
  } catch (...) {
    return store_current_exception(error);
  }
}

}  // namespace heddle
