#include <hwy/targets.h>

#include <bit>
#include <thread>

#include "core/status.h"
#include "core/tile_pool.h"
#include "napi/classes.h"
#include "program/kernel.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace heddle {

namespace {

/// bf16 products in hardware: where they are missing, bf16 operands cost more than they save.
bool has_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#elif defined(__linux__) && defined(__aarch64__)
  constexpr unsigned long kHwcap2Bf16 = 1UL << 14;
  return (getauxval(AT_HWCAP2) & kHwcap2Bf16) != 0;
#else
  return false;
#endif
}

/// The best target that kernels were compiled for and that this machine has. Highway numbers better targets lower.
const char* best_isa() {
  const auto targets = static_cast<uint64_t>((hwy::SupportedTargets() & HWY_TARGETS) | HWY_STATIC_TARGET);
  return hwy::TargetName(static_cast<decltype(hwy::SupportedTargets())>(uint64_t{1} << std::countr_zero(targets)));
}

Napi::Value threads(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return Napi::Number::New(info.Env(), static_cast<double>(TilePool::shared().threads())); });
}

Napi::Value set_threads(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const size_t count = size_argument(info[0], "threads");
    if (count < 1 || count > 256) reject_argument("threads", "1 to 256", info[0]);
    TilePool::shared().request_threads(count);
    return info.Env().Undefined();
  });
}

Napi::Value cpu_info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("isa", best_isa());
    object.Set("hasBf16", has_bf16());
    Napi::Array operators = Napi::Array::New(info.Env());
    for (const auto& [name, compile] : cpu_kernels()) operators.Set(operators.Length(), name);
    object.Set("operators", operators);
    object.Set("cores", static_cast<double>(std::max(1U, std::thread::hardware_concurrency())));
    return object;
  });
}

}  // namespace

void define_machine(Napi::Env env, Napi::Object exports) {
  exports.Set("threads", Napi::Function::New<threads>(env, "threads"));
  exports.Set("setThreads", Napi::Function::New<set_threads>(env, "setThreads"));
  exports.Set("cpuInfo", Napi::Function::New<cpu_info>(env, "cpuInfo"));
}

}  // namespace heddle
