#include <atomic>

#include "core/status.h"
#include "napi/classes.h"
#include "program/backends.h"
#include "program/executor.h"

namespace heddle {

namespace {

constexpr napi_type_tag kAbortTag = {0x6865646c652d6162, 0x6f72742d30303031};

class NativeAbort : public Napi::ObjectWrap<NativeAbort> {
 public:
  using Flag = std::shared_ptr<std::atomic<bool>>;

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeAbort", {InstanceMethod<&NativeAbort::abort>("abort")});
  }

  explicit NativeAbort(const Napi::CallbackInfo& info)
      : ObjectWrap(info), flag_(std::make_shared<std::atomic<bool>>(false)) {
    info.This().As<Napi::Object>().TypeTag(&kAbortTag);
  }

  /// Null for undefined.
  static Flag argument(const Napi::Value& value) {
    if (value.IsUndefined()) return nullptr;
    if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kAbortTag))
      reject_argument("abort", "a NativeAbort", value);
    return Unwrap(value.As<Napi::Object>())->flag_;
  }

 private:
  Napi::Value abort(const Napi::CallbackInfo& info) {
    *flag_ = true;
    return info.Env().Undefined();
  }

  Flag flag_;
};

class NativeProgram : public Napi::ObjectWrap<NativeProgram> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "NativeProgram",
        {InstanceAccessor<&NativeProgram::peak_bytes>("peakBytes"),
         InstanceAccessor<&NativeProgram::arena_bytes>("arenaBytes"),
         InstanceAccessor<&NativeProgram::replays>("replays"), InstanceMethod<&NativeProgram::run>("run"),
         InstanceMethod<&NativeProgram::profile>("profile"), InstanceMethod<&NativeProgram::dispose>("dispose")});
  }

  explicit NativeProgram(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    auto* const program =
        static_cast<std::shared_ptr<Program>*>(std::exchange(Addon::of(info.Env()).constructing, nullptr));
    if (program == nullptr) throw Napi::TypeError::New(info.Env(), "NativeProgram cannot be constructed");
    program_ = std::move(*program);
    peak_bytes_ = program_->peak_bytes();
    arena_bytes_ = program_->arena_bytes();
  }

  void Finalize(Napi::Env) override { drop_elsewhere(std::exchange(program_, nullptr)); }

 private:
  Napi::Value peak_bytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(peak_bytes_));
  }
  Napi::Value arena_bytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(arena_bytes_));
  }

  Napi::Value replays(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), program_ ? static_cast<double>(program_->replays()) : 0);
  }

  Napi::Value run(const Napi::CallbackInfo& info) {
    return promised(info.Env(), [&] {
      Addon& addon = Addon::of(info.Env());
      const auto work = [program = live(), inputs = tensor_list_argument(info[0], "input"),
                         abort = NativeAbort::argument(info[1]), profiled = info[2].ToBoolean().Value(),
                         closing = addon.closing()] {
        return program->run(
            inputs, [&] { return closing() || (abort && *abort); }, profiled);
      };
      return addon.async(info.Env(), work, to_array, &strand_);
    });
  }

  static Napi::Value to_array(Napi::Env env, std::vector<Tensor> outputs) {
    Napi::Array array = Napi::Array::New(env, outputs.size());
    for (uint32_t i = 0; i < outputs.size(); ++i) array[i] = Addon::of(env).wrap(env, std::move(outputs[i]));
    return array;
  }

  Napi::Value profile(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const std::vector<ProfileEntry> entries = program_ ? program_->profile() : last_profile_;
      Napi::Array array = Napi::Array::New(info.Env(), entries.size());
      for (uint32_t i = 0; i < entries.size(); ++i) {
        Napi::Object entry = Napi::Object::New(info.Env());
        entry.Set("op", entries[i].op);
        entry.Set("calls", static_cast<double>(entries[i].calls));
        entry.Set("seconds", entries[i].seconds);
        array[i] = entry;
      }
      return array;
    });
  }

  /// Runs that have been asked for still end.
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    if (program_) last_profile_ = program_->profile();
    drop_elsewhere(std::exchange(program_, nullptr));
    return info.Env().Undefined();
  }

  const std::shared_ptr<Program>& live() const {
    if (!program_) throw Error(ErrorCode::kArgument, "program", "a live program", "a disposed one");
    return program_;
  }

  std::shared_ptr<Program> program_;
  Strand strand_;
  /// What profile() says after dispose().
  std::vector<ProfileEntry> last_profile_;
  size_t peak_bytes_ = 0;
  size_t arena_bytes_ = 0;
};

Napi::Value compile(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    Addon& addon = Addon::of(info.Env());
    const auto bytes = bytes_argument(info[0], "instruction list");
    // Copied: JavaScript may change its array while the list is decoded elsewhere.
    const auto work = [list = std::vector<std::byte>(bytes.begin(), bytes.end()),
                       bound = tensor_list_argument(info[1], "bound tensor"),
                       backend = &backend_named(string_argument(info[2], "device")),
                       record = info[3].ToBoolean().Value(), closing = addon.closing()] {
      return std::make_shared<Program>(*backend, list, bound, closing, record);
    };
    return addon.async(info.Env(), work, [](Napi::Env env, std::shared_ptr<Program> program) -> Napi::Value {
      Addon::of(env).constructing = &program;
      return Addon::of(env).program_class.New({});
    });
  });
}

/// Takes the External that a backend's addon exports.
Napi::Value add_backend_of(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!info[0].IsExternal()) reject_argument("backend", "the table of a backend", info[0]);
    add_backend(*info[0].As<Napi::External<heddle_backend>>().Data());
    return info.Env().Undefined();
  });
}

}  // namespace

void define_program(Napi::Env env, Addon& addon, Napi::Object exports) {
  addon.program_class = Napi::Persistent(NativeProgram::define(env));
  addon.abort_class = Napi::Persistent(NativeAbort::define(env));
  exports.Set("NativeProgram", addon.program_class.Value());
  exports.Set("NativeAbort", addon.abort_class.Value());
  exports.Set("compile", Napi::Function::New<compile>(env, "compile"));
  exports.Set("addBackend", Napi::Function::New<add_backend_of>(env, "addBackend"));
}

}  // namespace heddle
