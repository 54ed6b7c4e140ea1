#include "linalg/factorise.h"
#include "napi/classes.h"

namespace heddle {

namespace {

Napi::Value svd_of(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor a = tensor_argument(info[0], "svd");
    const bool full = info[1].ToBoolean();
    return Addon::of(info.Env())
        .async(
            info.Env(), [a, full] { return svd(a, full); },
            [](Napi::Env env, Svd result) -> Napi::Value {
              Napi::Object object = Napi::Object::New(env);
              object.Set("u", Addon::of(env).wrap(env, std::move(result.u)));
              object.Set("s", Addon::of(env).wrap(env, std::move(result.s)));
              object.Set("vh", Addon::of(env).wrap(env, std::move(result.vh)));
              return object;
            });
  });
}

Napi::Value qr_of(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor a = tensor_argument(info[0], "qr");
    return Addon::of(info.Env())
        .async(
            info.Env(), [a] { return qr(a); },
            [](Napi::Env env, Qr result) -> Napi::Value {
              Napi::Object object = Napi::Object::New(env);
              object.Set("q", Addon::of(env).wrap(env, std::move(result.q)));
              object.Set("r", Addon::of(env).wrap(env, std::move(result.r)));
              return object;
            });
  });
}

}  // namespace

void define_linalg(Napi::Env env, Napi::Object exports) {
  exports.Set("svd", Napi::Function::New<svd_of>(env, "svd"));
  exports.Set("qr", Napi::Function::New<qr_of>(env, "qr"));
}

}  // namespace heddle
