// The one thread pool. Kernels cut work into tiles of a size that does not depend on the number of threads, so
// results do not either; threads take tiles one by one, so a core that a neighbour takes away costs only its share.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace heddle {

/// Tells the OpenMP libraries that kernels call (oneDNN) to stay on the calling thread: the pool is the parallelism.
void keep_libraries_single_threaded() noexcept;

class TilePool {
 public:
  /// HEDDLE_NUM_THREADS, else the number of cores this process may run on.
  static size_t default_thread_count();
  /// The process-wide pool.
  static TilePool& shared();

  explicit TilePool(size_t threads);
  ~TilePool();
  TilePool(const TilePool&) = delete;
  TilePool& operator=(const TilePool&) = delete;

  /// Workers including the calling thread.
  size_t threads() const noexcept;
  /// Waits for running work, then restarts with another count.
  void resize(size_t threads);

  /// Like resize, without waiting: takes effect when no session is open.
  void request_threads(size_t threads);

  /// Between the two, threads() stays what it is: scratch memory is sized by it. Opening one on a thread that has one
  /// open already may wait for ever.
  void open_session();
  void close_session() noexcept;

  /// Runs tile(index, thread) for every index in [0, tiles); the caller takes part as some thread < threads().
  /// Calls from several threads at once queue up one behind the other; a call from inside a tile runs on that thread
  /// alone. The first exception is rethrown here.
  void run(size_t tiles, const std::function<void(size_t tile, size_t thread)>& tile);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace heddle
