// An instruction as a backend's table gets it, turned back into what kernels are compiled from.
#pragma once

#include <string_view>
#include <vector>

#include "core/backend.h"
#include "program/kernel.h"

namespace heddle {

class DecodedInstruction {
 public:
  explicit DecodedInstruction(const heddle_instruction& instruction);

  std::string_view op() const noexcept { return op_; }
  /// Points into this object.
  KernelRequest request() const noexcept { return {op_, inputs_, outputs_, attributes_}; }

 private:
  std::string_view op_;
  std::vector<Operand> inputs_;
  std::vector<Operand> outputs_;
  Attributes attributes_;
};

}  // namespace heddle
