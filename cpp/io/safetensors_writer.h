// Writes .safetensors as the reference library does (order of tensors, padding of the header), so that the same
// tensors make the same bytes, and atomically: beside the target, synced, renamed.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace heddle {

struct SafetensorsEntry {
  std::string name;
  Tensor tensor;
  /// f32, bf16 or f16 to convert to; the tensor's own when left out.
  std::optional<DType> dtype;
};

void write_safetensors(const std::string& path, std::vector<SafetensorsEntry> entries,
                       const std::vector<std::pair<std::string, std::string>>& metadata);

}  // namespace heddle
