#include "core/abort.h"

#include "core/status.h"

namespace heddle {

namespace {

thread_local const Aborted* current = nullptr;

}  // namespace

void check_aborted(const Aborted* aborted) {
  if (aborted != nullptr && *aborted && (*aborted)())
    throw Error(ErrorCode::kAborted, "program", "to run to its end", "an abort");
}

AbortScope::AbortScope(const Aborted& aborted) noexcept : outer_(current) { current = &aborted; }

AbortScope::~AbortScope() { current = outer_; }

const Aborted* current_abort() noexcept { return current; }

}  // namespace heddle
