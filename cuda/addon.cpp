// heddle_cuda.node: hands the CUDA device's table to the core, by way of JavaScript.
#include <napi.h>

#include "core/status.h"
#include "cuda/core/device.h"
#include "cuda/core/kernel.h"
#include "cuda/core/table.h"

namespace {

Napi::Error to_js_error(Napi::Env env, const heddle::Error& error) {
  Napi::Error js = Napi::Error::New(env, error.what());
  js.Set("code", Napi::String::New(env, heddle::error_code_name(error.code())));
  js.Set("place", Napi::String::New(env, error.place()));
  js.Set("expected", Napi::String::New(env, error.expected()));
  js.Set("got", Napi::String::New(env, error.got()));
  return js;
}

Napi::Value open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  try {
    const heddle::cuda::Device& device = heddle::cuda::Device::get();
    Napi::Object result = Napi::Object::New(env);
    result.Set("backend",
               Napi::External<heddle_backend>::New(env, const_cast<heddle_backend*>(&heddle::cuda::backend())));
    result.Set("name", device.name());
    result.Set("capability", std::to_string(device.capability() / 10) + "." + std::to_string(device.capability() % 10));
    result.Set("memory", static_cast<double>(device.memory()));
    Napi::Array operators = Napi::Array::New(env);
    for (const auto& [name, compile] : heddle::cuda::kernels()) operators.Set(operators.Length(), name);
    result.Set("operators", operators);
    return result;
  } catch (const heddle::Error& error) {
    throw to_js_error(env, error);
  }
}

#ifndef HEDDLE_CUDA_TOOLKIT
Napi::Value inject(const Napi::CallbackInfo& info) {
  heddle::cuda::host::inject(info[0].As<Napi::String>().Utf8Value(), info[1].As<Napi::Number>().Int32Value());
  return info.Env().Undefined();
}

Napi::Value objects(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(heddle::cuda::host::objects()));
}

Napi::Value allocated_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(heddle::cuda::host::allocated_bytes()));
}
#endif

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("open", Napi::Function::New<open>(env, "open"));
#ifndef HEDDLE_CUDA_TOOLKIT
  exports.Set("inject", Napi::Function::New<inject>(env, "inject"));
  exports.Set("objects", Napi::Function::New<objects>(env, "objects"));
  exports.Set("allocatedBytes", Napi::Function::New<allocated_bytes>(env, "allocatedBytes"));
#endif
  return exports;
}

}  // namespace

NODE_API_MODULE(heddle_cuda, init)
