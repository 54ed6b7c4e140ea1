#include <cmath>

#include "core/status.h"
#include "napi/classes.h"

namespace heddle {

namespace {

constexpr double kMaxInteger = 9007199254740991.0;

const char* kind_of(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined: return "undefined";
    case napi_null: return "null";
    case napi_boolean: return "a boolean";
    case napi_number: return "a number";
    case napi_string: return "a string";
    case napi_symbol: return "a symbol";
    case napi_object: return "an object";
    case napi_function: return "a function";
    case napi_external: return "an external value";
    case napi_bigint: return "a bigint";
  }
  return "something else";
}

}  // namespace

void reject_argument(const std::string& place, const std::string& expected, const Napi::Value& got) {
  std::string text = kind_of(got);
  if (got.IsNumber() || got.IsString() || got.IsBoolean()) text += " " + got.ToString().Utf8Value().substr(0, 80);
  throw Error(ErrorCode::kArgument, place, expected, text);
}

std::string string_argument(const Napi::Value& value, const std::string& place) {
  if (!value.IsString()) reject_argument(place, "a string", value);
  return value.As<Napi::String>().Utf8Value();
}

size_t size_argument(const Napi::Value& value, const std::string& place) {
  if (!value.IsNumber()) reject_argument(place, "a whole number", value);
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0 && number <= kMaxInteger && std::floor(number) == number))
    reject_argument(place, "a whole number from 0 to 2^53 - 1", value);
  return static_cast<size_t>(number);
}

Shape shape_argument(const Napi::Value& value, const std::string& place) {
  if (!value.IsArray()) reject_argument(place, "an array of dimensions", value);
  const auto array = value.As<Napi::Array>();
  if (array.Length() > Shape::kMaxRank)
    throw Error(ErrorCode::kShape, place, "at most 8 dimensions", std::to_string(array.Length()));
  std::vector<int64_t> dims;
  for (uint32_t axis = 0; axis < array.Length(); ++axis)
    dims.push_back(static_cast<int64_t>(size_argument(array.Get(axis), place)));
  return Shape(dims);
}

DType dtype_argument(const Napi::Value& value, const std::string& place) {
  return dtype_from_name(string_argument(value, place));
}

Napi::Object object_argument(const Napi::Value& value, const std::string& place) {
  if (!value.IsObject()) reject_argument(place, "an object", value);
  return value.As<Napi::Object>();
}

std::span<const std::byte> bytes_argument(const Napi::Value& value, const std::string& place) {
  if (value.IsTypedArray()) {
    const auto array = value.As<Napi::TypedArray>();
    const auto* const data = static_cast<const std::byte*>(array.ArrayBuffer().Data());
    return {array.ByteLength() == 0 ? data : data + array.ByteOffset(), array.ByteLength()};
  }
  if (value.IsDataView()) {
    const auto view = value.As<Napi::DataView>();
    return {static_cast<const std::byte*>(view.Data()), view.ByteLength()};
  }
  reject_argument(place, "a typed array", value);
}

std::vector<Tensor> tensor_list_argument(const Napi::Value& value, const std::string& place) {
  if (!value.IsArray()) reject_argument(place, "an array of tensors", value);
  const auto array = value.As<Napi::Array>();
  std::vector<Tensor> tensors;
  for (uint32_t i = 0; i < array.Length(); ++i)
    tensors.push_back(tensor_argument(array.Get(i), place + " " + std::to_string(i)));
  return tensors;
}

}  // namespace heddle
