#include "program/decoded_instruction.h"

#include <memory>
#include <span>
#include <string>
#include <utility>

namespace heddle {

namespace {

std::string_view view(const heddle_string& text) { return {text.text, text.length}; }

template <class T>
std::vector<T> list_of(const heddle_attribute& attribute) {
  const T* const values = static_cast<const T*>(attribute.values);
  return std::vector<T>(values, values + attribute.count);
}

AttributeValue value_of(const heddle_attribute& attribute) {
  switch (attribute.type) {
    case HEDDLE_I64: return *static_cast<const int64_t*>(attribute.values);
    case HEDDLE_F64: return *static_cast<const double*>(attribute.values);
    case HEDDLE_STRING: return std::string(view(*static_cast<const heddle_string*>(attribute.values)));
    case HEDDLE_I64_ARRAY: return list_of<int64_t>(attribute);
    case HEDDLE_F64_ARRAY: return list_of<double>(attribute);
    case HEDDLE_STRING_ARRAY: {
      std::vector<std::string> texts;
      for (const heddle_string& text : list_of<heddle_string>(attribute)) texts.emplace_back(view(text));
      return texts;
    }
  }
  throw Error(ErrorCode::kInternal, "attribute " + std::string(view(attribute.name)), "a known type", "another");
}

std::vector<Operand> operands_of(const heddle_operand* operands, size_t count) {
  std::vector<Operand> result;
  result.reserve(count);
  for (const heddle_operand& operand : std::span(operands, count)) {
    std::shared_ptr<Storage> frozen;
    std::string_view encoding;
    if (operand.frozen != nullptr) {
      frozen = *static_cast<std::shared_ptr<Storage>*>(operand.frozen->storage);
      if (operand.frozen->encoding != nullptr) encoding = operand.frozen->encoding;
    }
    result.push_back({static_cast<DType>(operand.dtype), Shape(std::span(operand.dims, operand.rank)),
                      operand.present != 0, operand.buffer, std::move(frozen), encoding});
  }
  return result;
}

}  // namespace

DecodedInstruction::DecodedInstruction(const heddle_instruction& instruction)
    : op_(view(instruction.op)),
      inputs_(operands_of(instruction.inputs, instruction.input_count)),
      outputs_(operands_of(instruction.outputs, instruction.output_count)) {
  for (const heddle_attribute& attribute : std::span(instruction.attributes, instruction.attribute_count))
    attributes_.values.emplace(view(attribute.name), value_of(attribute));
}

}  // namespace heddle
