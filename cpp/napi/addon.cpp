#include "napi/addon.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>

#include "core/status.h"
#include "napi/classes.h"

namespace heddle {

namespace {

struct Job {
  Runner::Task work;
  std::function<Napi::Value(Napi::Env)> finish;
  std::exception_ptr error;
  napi_deferred deferred = nullptr;
};

Napi::Error js_error(Napi::Env env, const char* code, const std::string& place, const std::string& expected,
                     const std::string& got, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  error.Set("place", Napi::String::New(env, place));
  error.Set("expected", Napi::String::New(env, expected));
  error.Set("got", Napi::String::New(env, got));
  return error;
}

Napi::Error js_error(Napi::Env env, const Error& error) {
  return js_error(env, error_code_name(error.code()), error.place(), error.expected(), error.got(), error.what());
}

}  // namespace

Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return js_error(env, known);
  } catch (const std::bad_alloc&) {
    return js_error(env, Error(ErrorCode::kOutOfMemory, "memory", "enough memory", "an allocation that failed"));
  } catch (const std::exception& other) {
    return js_error(env, Error(ErrorCode::kInternal, "native core", "no failure", other.what()));
  } catch (...) {
    return js_error(env, Error(ErrorCode::kInternal, "native core", "no failure", "an unknown exception"));
  }
}

/// Lives as long as any job of its environment; after close() nothing of the environment is touched any more.
class Channel : public std::enable_shared_from_this<Channel> {
 public:
  explicit Channel(napi_env env) {
    napi_value name = Napi::String::New(env, "heddle");
    const napi_status status =
        napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, deliver_all, &wake_);
    if (status != napi_ok)
      throw Error(ErrorCode::kInternal, "native core", "a thread-safe function", "status " + std::to_string(status));
    napi_unref_threadsafe_function(env, wake_);
  }

  /// On the event loop. Keeps the process alive until the job's promise is settled.
  void submit(Napi::Env env, std::unique_ptr<Job> job, Strand* strand) {
    // std::function wants copyable callables.
    const std::shared_ptr<Job> shared = std::move(job);
    const auto task = [channel = shared_from_this(), shared] { channel->run(shared); };
    if (strand != nullptr)
      strand->post(task);
    else
      Runner::shared().post(task);
    if (pending_++ == 0) napi_ref_threadsafe_function(env, wake_);
  }

  bool closing() const noexcept { return closing_; }

  /// On the event loop, as its environment goes: stops what runs, waits for it, and drops what has not started.
  void close() {
    std::unique_lock lock(mutex_);
    closing_ = true;
    idle_.wait(lock, [&] { return running_ == 0; });
    done_.clear();
  }

 private:
  /// On a runner thread.
  void run(const std::shared_ptr<Job>& job) {
    {
      const std::lock_guard lock(mutex_);
      if (closing_) return;
      ++running_;
    }
    try {
      job->work();
    } catch (...) {
      job->error = std::current_exception();
    }
    job->work = nullptr;
    const std::lock_guard lock(mutex_);
    if (!closing_) {
      done_.push_back(job);
      napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
    }
    --running_;
    idle_.notify_all();
  }

  /// On the event loop; env is null when the environment is already going.
  static void deliver_all(napi_env env, napi_value, void* context, void*) {
    if (env != nullptr) static_cast<Channel*>(context)->deliver(env);
  }

  void deliver(Napi::Env env) {
    std::deque<std::shared_ptr<Job>> done;
    {
      const std::lock_guard lock(mutex_);
      done.swap(done_);
    }
    for (const std::shared_ptr<Job>& job : done) {
      if (--pending_ == 0) napi_unref_threadsafe_function(env, wake_);
      settle(env, *job);
    }
  }

  static void settle(Napi::Env env, Job& job) {
    const Napi::HandleScope scope(env);
    try {
      if (job.error) throw to_js_error(env, job.error);
      const Napi::Value value = guarded(env, [&] { return job.finish(env); });
      napi_resolve_deferred(env, job.deferred, value);
    } catch (const Napi::Error& error) {
      napi_reject_deferred(env, job.deferred, error.Value());
    }
  }

  napi_threadsafe_function wake_ = nullptr;
  /// Only on the event loop.
  size_t pending_ = 0;
  std::mutex mutex_;
  std::condition_variable idle_;
  std::deque<std::shared_ptr<Job>> done_;
  size_t running_ = 0;
  std::atomic<bool> closing_{false};
};

Addon::Addon(Napi::Env env, Napi::Object exports) : channel_(std::make_shared<Channel>(env)) {
  // Hooks run last in, first out: this one before the thread-safe function goes.
  env.AddCleanupHook([](Channel* channel) { channel->close(); }, channel_.get());
  // process.exit() skips those hooks and goes on to destroy the libraries' globals, so work must have ended before.
  const auto process = env.Global().Get("process").As<Napi::Object>();
  const auto stop = [channel = channel_](const Napi::CallbackInfo&) { channel->close(); };
  process.Get("once").As<Napi::Function>().Call(process,
                                                {Napi::String::New(env, "exit"), Napi::Function::New(env, stop)});
  define_tensor(env, *this, exports);
  define_program(env, *this, exports);
  define_file(env, *this, exports);
  define_machine(env, exports);
  define_sparse(env, exports);
}

Addon::~Addon() = default;

std::function<bool()> Addon::closing() const {
  return [channel = channel_] { return channel->closing() || Runner::shared().stopping(); };
}

Napi::Value Addon::start(Napi::Env env, Runner::Task work, Finish finish, Strand* strand) {
  auto job = std::make_unique<Job>(Job{std::move(work), std::move(finish), nullptr, nullptr});
  napi_value promise = nullptr;
  if (napi_create_promise(env, &job->deferred, &promise) != napi_ok) throw Napi::Error::New(env);
  channel_->submit(env, std::move(job), strand);
  return {env, promise};
}

}  // namespace heddle

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  heddle::guarded(env, [&] { env.SetInstanceData(std::make_unique<heddle::Addon>(env, exports).release()); });
  return exports;
}

}  // namespace

NODE_API_MODULE(heddle, init)
