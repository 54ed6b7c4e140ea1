// The JavaScript classes and functions of the addon, one define_* per file, and reading of their arguments.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "napi/addon.h"

namespace heddle {

void define_tensor(Napi::Env env, Addon& addon, Napi::Object exports);
void define_program(Napi::Env env, Addon& addon, Napi::Object exports);
void define_file(Napi::Env env, Addon& addon, Napi::Object exports);
void define_machine(Napi::Env env, Napi::Object exports);
void define_sparse(Napi::Env env, Napi::Object exports);

/// The live tensor behind a JavaScript value; throws kArgument for anything else.
Tensor tensor_argument(const Napi::Value& value, const std::string& place);
std::vector<Tensor> tensor_list_argument(const Napi::Value& value, const std::string& place);
std::string string_argument(const Napi::Value& value, const std::string& place);
/// A whole number from 0 to 2^53.
size_t size_argument(const Napi::Value& value, const std::string& place);
Shape shape_argument(const Napi::Value& value, const std::string& place);
DType dtype_argument(const Napi::Value& value, const std::string& place);
Napi::Object object_argument(const Napi::Value& value, const std::string& place);
/// The bytes of a typed array, DataView or Buffer; valid during the call.
std::span<const std::byte> bytes_argument(const Napi::Value& value, const std::string& place);

[[noreturn]] void reject_argument(const std::string& place, const std::string& expected, const Napi::Value& got);

}  // namespace heddle
