#include "core/tile_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <limits>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/status.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace heddle {

namespace {

constexpr size_t kMaxThreads = 256;
/// Long enough to bridge the gap between two instructions, short enough that an idle process looks idle.
constexpr auto kSpin = std::chrono::microseconds(30);

void pause_briefly() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// True as soon as `ready` holds; false when it still does not after kSpin.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

size_t affinity_count() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return static_cast<size_t>(CPU_COUNT(&set));
#endif
  return std::max(1U, std::thread::hardware_concurrency());
}

/// Cores that the container's quota pays for (cgroup v2: "quota period" or "max period").
size_t quota_count() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0;
  double period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return kMaxThreads;
  return std::max<size_t>(1, static_cast<size_t>(std::lround(quota / period)));
}

/// The pool thread that this thread is while it runs a tile.
thread_local const size_t* current_thread = nullptr;

}  // namespace

void keep_libraries_single_threaded() noexcept {
#if defined(_OPENMP)
  thread_local bool told = false;
  if (!told) omp_set_num_threads(1);
  told = true;
#endif
}

/// A job is published as `ticket` = epoch << 32 | next tile. Taking a tile is a compare-and-swap on the whole ticket,
/// so a worker that wakes up late can never take a tile of a job that is over, and the caller need not wait for it.
struct TilePool::State {
  static constexpr uint64_t kClosed = 0xffffffffU;

  std::vector<std::thread> workers;
  std::atomic<uint64_t> ticket{kClosed};
  std::atomic<const std::function<void(size_t, size_t)>*> tile{nullptr};
  std::atomic<uint64_t> tiles{0};
  std::atomic<uint32_t> unfinished{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex error_mutex;
  /// What sleeping workers wait on: changes with every job and at the end.
  std::atomic<uint32_t> signal{0};
  std::atomic<bool> stop{false};

  /// First come, first served among the callers of run().
  std::atomic<uint32_t> next_caller{0};
  std::atomic<uint32_t> served_caller{0};

  std::mutex session_mutex;
  std::condition_variable session_changed;
  size_t sessions = 0;
  std::atomic<size_t> wanted{1};
  std::atomic<size_t> count{1};

  void start(size_t threads) {
    stop = false;
    workers.reserve(threads - 1);
    try {
      for (size_t index = 1; index < threads; ++index) workers.emplace_back([this, index] { work(index); });
    } catch (const std::system_error&) {
      // The system gives no more threads: those it gave do the work.
      wanted = workers.size() + 1;
    }
    count = workers.size() + 1;
  }

  void join() {
    stop = true;
    signal.fetch_add(1);
    signal.notify_all();
    for (std::thread& worker : workers) worker.join();
    workers.clear();
  }

  /// Call with session_mutex held and no session open.
  void apply_wanted() {
    if (wanted == count) return;
    join();
    start(wanted);
  }

  void work(size_t thread) {
    keep_libraries_single_threaded();
    for (;;) {
      // Read before `stop`: join() sets stop first, so the change that follows it cannot be missed.
      const uint32_t seen = signal.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      take_tiles(thread);
      const auto changed = [&] { return signal.load(std::memory_order_acquire) != seen; };
      if (!spin_until(changed)) signal.wait(seen, std::memory_order_acquire);
    }
  }

  void take_tiles(size_t thread) {
    uint64_t current = ticket.load(std::memory_order_acquire);
    for (;;) {
      const uint64_t index = current & kClosed;
      if (index == kClosed || index >= tiles.load(std::memory_order_relaxed)) return;
      const auto* const body = tile.load(std::memory_order_relaxed);
      if (!ticket.compare_exchange_weak(current, current + 1, std::memory_order_acq_rel)) continue;
      run_tile(*body, index, thread);
      current = ticket.load(std::memory_order_acquire);
    }
  }

  void run_tile(const std::function<void(size_t, size_t)>& body, size_t index, size_t thread) {
    if (!failed.load(std::memory_order_relaxed)) {
      current_thread = &thread;
      try {
        body(index, thread);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        failed = true;
      }
      current_thread = nullptr;
    }
    if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_all();
  }

  void run_job(uint32_t count, const std::function<void(size_t, size_t)>& body) {
    const uint64_t epoch = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
    tile.store(&body, std::memory_order_relaxed);
    tiles.store(count, std::memory_order_relaxed);
    unfinished.store(count, std::memory_order_relaxed);
    failed = false;
    ticket.store(epoch << 32, std::memory_order_release);
    signal.fetch_add(1, std::memory_order_release);
    signal.notify_all();

    take_tiles(0);
    spin_until([&] { return unfinished.load(std::memory_order_acquire) == 0; });
    for (uint32_t left = unfinished.load(std::memory_order_acquire); left != 0; left = unfinished.load()) {
      unfinished.wait(left, std::memory_order_acquire);
    }
    // Closed before the next job's fields are written: a late worker must not pair them with this epoch.
    ticket.store((epoch << 32) | kClosed, std::memory_order_release);
  }
};

size_t TilePool::default_thread_count() {
  if (const char* text = std::getenv("HEDDLE_NUM_THREADS"); text != nullptr && *text != '\0') {
    const long count = std::strtol(text, nullptr, 10);
    if (count > 0) return std::min(static_cast<size_t>(count), kMaxThreads);
  }
  return std::min({affinity_count(), quota_count(), kMaxThreads});
}

TilePool& TilePool::shared() {
  static TilePool pool(default_thread_count());
  return pool;
}

TilePool::TilePool(size_t threads) : state_(std::make_unique<State>()) {
  state_->wanted = std::clamp<size_t>(threads, 1, kMaxThreads);
  state_->start(state_->wanted);
}

TilePool::~TilePool() { state_->join(); }

size_t TilePool::threads() const noexcept { return state_->count; }

void TilePool::request_threads(size_t threads) {
  const std::lock_guard lock(state_->session_mutex);
  state_->wanted = std::clamp<size_t>(threads, 1, kMaxThreads);
  if (state_->sessions == 0) state_->apply_wanted();
}

void TilePool::resize(size_t threads) {
  std::unique_lock lock(state_->session_mutex);
  state_->wanted = std::clamp<size_t>(threads, 1, kMaxThreads);
  state_->session_changed.wait(lock, [&] { return state_->sessions == 0; });
  state_->apply_wanted();
}

void TilePool::open_session() {
  std::unique_lock lock(state_->session_mutex);
  state_->session_changed.wait(lock, [&] { return state_->sessions == 0 || state_->wanted == state_->count; });
  if (state_->sessions == 0) state_->apply_wanted();
  ++state_->sessions;
}

void TilePool::close_session() noexcept {
  const std::lock_guard lock(state_->session_mutex);
  if (--state_->sessions == 0) state_->session_changed.notify_all();
}

void TilePool::run(size_t tiles, const std::function<void(size_t tile, size_t thread)>& tile) {
  keep_libraries_single_threaded();
  if (tiles == 0) return;
  if (current_thread != nullptr || tiles == 1) {
    const size_t thread = current_thread != nullptr ? *current_thread : 0;
    for (size_t index = 0; index < tiles; ++index) tile(index, thread);
    return;
  }

  constexpr size_t kMaxTiles = std::numeric_limits<uint32_t>::max() - 1;
  if (tiles > kMaxTiles)
    throw Error(ErrorCode::kInternal, "tile pool", "at most 2^32 - 2 tiles", std::to_string(tiles));

  State& state = *state_;
  const uint32_t turn = state.next_caller.fetch_add(1);
  for (uint32_t served = state.served_caller.load(); served != turn; served = state.served_caller.load()) {
    state.served_caller.wait(served);
  }
  state.run_job(static_cast<uint32_t>(tiles), tile);
  const std::exception_ptr error = std::exchange(state.error, nullptr);
  state.served_caller.fetch_add(1);
  state.served_caller.notify_all();
  if (error) std::rethrow_exception(error);
}

}  // namespace heddle
