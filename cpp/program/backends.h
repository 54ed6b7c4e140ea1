// The backends of this process by name: the CPU's, and those that addons have handed over.
#pragma once

#include <string_view>

#include "core/backend.h"

namespace heddle {

/// Throws kDevice unless the table is of HEDDLE_BACKEND_VERSION. It must live as long as the process; one that is
/// already known by its name is kept.
void add_backend(const heddle_backend& table);
/// Throws kDevice when there is none of this name.
const heddle_backend& backend_named(std::string_view name);

}  // namespace heddle
