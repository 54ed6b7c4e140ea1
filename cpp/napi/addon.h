// What every JavaScript environment (the main thread, each worker) has of its own: constructors, and the way back from
// runner threads to its event loop. Also the border at which exceptions become HeddleErrors.
#pragma once

#include <napi.h>

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "core/tensor.h"
#include "napi/runner.h"

namespace heddle {

/// The JavaScript error with own properties code, place, expected and got.
Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& error);

/// Runs `call`; whatever it throws arrives in JavaScript as such an error.
template <class Call>
auto guarded(Napi::Env env, const Call& call) -> decltype(call()) {
  try {
    return call();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

/// Work in flight and the thread-safe function that brings its end to the event loop.
class Channel;

/// Instance data of one environment.
class Addon {
 public:
  static Addon& of(Napi::Env env) { return *env.GetInstanceData<Addon>(); }

  Addon(Napi::Env env, Napi::Object exports);
  ~Addon();
  Addon(const Addon&) = delete;
  Addon& operator=(const Addon&) = delete;

  /// Runs `work` on a runner thread (in turn on `strand`, when given), then `finish` on the event loop with its result
  /// to make the promise's value. Both must own what they use.
  template <class Work, class Finish>
  Napi::Value async(Napi::Env env, Work work, Finish finish, Strand* strand = nullptr) {
    using Result = std::invoke_result_t<Work&>;
    auto result = std::make_shared<std::optional<Result>>();
    return start(
        env, [work = std::move(work), result]() mutable { result->emplace(work()); },
        [finish = std::move(finish), result](Napi::Env js) mutable { return finish(js, std::move(**result)); }, strand);
  }

  /// True when work of this environment should stop: it is closing, or the process is.
  std::function<bool()> closing() const;

  Napi::Object wrap(Napi::Env env, Tensor tensor);

  Napi::FunctionReference tensor_class;
  Napi::FunctionReference program_class;
  Napi::FunctionReference abort_class;
  Napi::FunctionReference file_class;
  /// What the next constructor call wraps; null otherwise, so that JavaScript cannot construct these classes.
  void* constructing = nullptr;

 private:
  using Finish = std::function<Napi::Value(Napi::Env)>;
  Napi::Value start(Napi::Env env, Runner::Task work, Finish finish, Strand* strand);

  std::shared_ptr<Channel> channel_;
};

/// Runs `call` and turns a synchronous failure into a rejected promise.
template <class Call>
Napi::Value promised(Napi::Env env, const Call& call) {
  try {
    return call();
  } catch (const Napi::Error& error) {
    const Napi::Promise::Deferred deferred(env);
    deferred.Reject(error.Value());
    return deferred.Promise();
  } catch (...) {
    const Napi::Promise::Deferred deferred(env);
    deferred.Reject(to_js_error(env, std::current_exception()).Value());
    return deferred.Promise();
  }
}

}  // namespace heddle
