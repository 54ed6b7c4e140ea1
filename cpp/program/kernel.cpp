#include "program/kernel.h"

namespace heddle {

namespace {

[[noreturn]] void reject_attribute(std::string_view name, const char* type, bool missing) {
  throw Error(ErrorCode::kFormat, "attribute " + std::string(name), type,
              missing ? "no such attribute" : "another type");
}

template <class T>
const T& get(const Attributes& attributes, std::string_view name, const char* type) {
  const auto found = attributes.values.find(name);
  if (found == attributes.values.end()) reject_attribute(name, type, true);
  const T* const value = std::get_if<T>(&found->second);
  if (value == nullptr) reject_attribute(name, type, false);
  return *value;
}

/// An empty list says nothing about its element type, so an empty one of any type will do.
template <class T>
const std::vector<T>& get_list(const Attributes& attributes, std::string_view name, const char* type) {
  static const std::vector<T> kEmpty;
  const auto found = attributes.values.find(name);
  if (found != attributes.values.end()) {
    const bool empty = std::visit(
        []<class V>(const V& value) {
          if constexpr (requires { typename V::allocator_type; } && !std::is_same_v<V, std::string>)
            return value.empty();
          else
            return false;
        },
        found->second);
    if (empty) return kEmpty;
  }
  return get<std::vector<T>>(attributes, name, type);
}

}  // namespace

int64_t Attributes::integer(std::string_view name) const { return get<int64_t>(*this, name, "an integer"); }

int64_t Attributes::integer(std::string_view name, int64_t fallback) const {
  return has(name) ? integer(name) : fallback;
}

double Attributes::number(std::string_view name) const {
  // JavaScript has one number type: a whole number may arrive as an integer.
  const auto found = values.find(name);
  if (found != values.end())
    if (const int64_t* const whole = std::get_if<int64_t>(&found->second)) return static_cast<double>(*whole);
  return get<double>(*this, name, "a number");
}

double Attributes::number(std::string_view name, double fallback) const { return has(name) ? number(name) : fallback; }

const std::string& Attributes::text(std::string_view name) const { return get<std::string>(*this, name, "a string"); }

const std::vector<int64_t>& Attributes::integers(std::string_view name) const {
  return get_list<int64_t>(*this, name, "a list of integers");
}

const std::vector<double>& Attributes::numbers(std::string_view name) const {
  return get_list<double>(*this, name, "a list of numbers");
}

const std::vector<std::string>& Attributes::texts(std::string_view name) const {
  return get_list<std::string>(*this, name, "a list of strings");
}

void KernelRequest::reject(const std::string& expected, const std::string& got) const {
  throw Error(ErrorCode::kShape, std::string(op), expected, got);
}

void KernelRequest::expect_counts(size_t input_count, size_t output_count) const {
  if (inputs.size() == input_count && outputs.size() == output_count) return;
  reject(std::to_string(input_count) + " inputs and " + std::to_string(output_count) + " outputs",
         std::to_string(inputs.size()) + " and " + std::to_string(outputs.size()));
}

}  // namespace heddle
