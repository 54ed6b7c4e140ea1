#include "core/backend_status.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <string_view>

namespace heddle {

namespace {

void store_text(char* target, size_t capacity, std::string_view text) noexcept {
  const size_t length = std::min(text.size(), capacity - 1);
  std::memcpy(target, text.data(), length);
  target[length] = '\0';
}

void store_fields(heddle_error* target, std::string_view place, std::string_view expected,
                  std::string_view got) noexcept {
  store_text(target->place, sizeof target->place, place);
  store_text(target->expected, sizeof target->expected, expected);
  store_text(target->got, sizeof target->got, got);
}

heddle_status status_of(ErrorCode code) noexcept { return 1 + static_cast<heddle_status>(code); }

}  // namespace

heddle_status store_error(const Error& error, heddle_error* target) noexcept {
  store_fields(target, error.place(), error.expected(), error.got());
  return status_of(error.code());
}

heddle_status store_current_exception(heddle_error* target) noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return store_error(error, target);
  } catch (const std::bad_alloc&) {
    store_fields(target, "memory", "enough memory", "an allocation that failed");
    return status_of(ErrorCode::kOutOfMemory);
  } catch (const std::exception& error) {
    store_fields(target, "kernel", "no failure", error.what());
  } catch (...) {
    store_fields(target, "kernel", "no failure", "an unknown exception");
  }
  return status_of(ErrorCode::kInternal);
}

void check_status(heddle_status status, const heddle_error& error) {
  if (status != 0) throw Error(static_cast<ErrorCode>(status - 1), error.place, error.expected, error.got);
}

}  // namespace heddle
