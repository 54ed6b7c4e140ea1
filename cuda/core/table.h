// The backend table of the CUDA device (cpp/core/backend.h).
#pragma once

#include "core/backend.h"

namespace heddle::cuda {

const heddle_backend& backend();

}  // namespace heddle::cuda
