// A tensor as the native side sees it: typed, shaped bytes. Cheap to copy; the storage is shared.
#pragma once

#include <memory>

#include "core/shape.h"
#include "core/storage.h"

namespace heddle {

struct Tensor {
  DType dtype = DType::kF32;
  Shape shape;
  std::shared_ptr<Storage> storage;
};

}  // namespace heddle
