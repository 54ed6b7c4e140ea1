// The CPU's backend table: host memory, the kernels of cpu_kernels(), the shared tile pool.
#pragma once

#include "core/backend.h"

namespace heddle {

const heddle_backend& cpu_backend();

}  // namespace heddle
