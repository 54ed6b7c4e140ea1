// The parts of the core that threads share, used by many at once: for ThreadSanitizer, which needs a whole program
// (`npm run test:sanitize`). No OpenMP and no library takes part, so nothing is suppressed.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "callers.h"
#include "core/status.h"
#include "core/storage.h"
#include "core/tile_pool.h"

namespace {

using heddle::Storage;
using heddle::TilePool;

constexpr int kRounds = 200;

/// Several programs run on one pool: every tile of each is taken once, whoever takes it.
void tiles_are_taken_once() {
  TilePool pool(3);
  together([&](size_t caller) {
    for (int round = 0; round < kRounds; ++round) {
      std::vector<int> taken(17 + caller);
      pool.run(taken.size(), [&](size_t tile, size_t) { ++taken[tile]; });
      expect(std::accumulate(taken.begin(), taken.end(), 0) == static_cast<int>(taken.size()), "every tile once");
    }
  });
}

/// A tile that throws ends its own run and no other.
void exceptions_stay_with_their_run() {
  TilePool pool(3);
  together([&](size_t caller) {
    for (int round = 0; round < kRounds; ++round) {
      bool thrown = false;
      try {
        pool.run(8, [&](size_t tile, size_t) {
          if (caller % 2 == 0 && tile == 5) throw std::runtime_error("tile");
        });
      } catch (const std::runtime_error&) {
        thrown = true;
      }
      expect(thrown == (caller % 2 == 0), "the exception of one's own run");
    }
  });
}

/// The pool is resized while sessions of others come and go.
void sessions_and_sizes() {
  TilePool pool(2);
  together([&](size_t caller) {
    for (int round = 0; round < kRounds; ++round) {
      if (caller == 0) pool.request_threads(1 + static_cast<size_t>(round) % 3);
      pool.open_session();
      const size_t threads = pool.threads();
      std::atomic<size_t> beyond{0};
      pool.run(8, [&](size_t, size_t thread) { beyond += thread >= threads; });
      pool.close_session();
      expect(beyond == 0, "threads below their number");
    }
  });
}

/// A frozen weight is decoded, read in parts, packed and evicted by several programs at once.
void weights_are_shared() {
  constexpr size_t kBytes = 1 << 14;
  const auto storage = Storage::decoded(kBytes, [](size_t begin, std::span<std::byte> out) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>((begin + i) % 251);
  });
  const auto right = [](size_t at, std::byte value) { return value == static_cast<std::byte>(at % 251); };
  std::atomic<int> packed{0};
  together([&](size_t caller) {
    for (int round = 0; round < kRounds; ++round) {
      {
        const Storage::Pin pin(storage);
        expect(right(100 + caller, pin.data()[100 + caller]), "a pinned weight");
      }
      std::vector<std::byte> part(64);
      storage->read(4096, part);
      expect(right(4096 + 63, part[63]), "a part of a weight");
      storage->derived("packed", [&] { return std::make_shared<int>(++packed); });
      storage->evict();
    }
  });
  expect(packed == 1, "packed once");
}

}  // namespace

int main() {
  tiles_are_taken_once();
  exceptions_stay_with_their_run();
  sessions_and_sizes();
  weights_are_shared();
  std::puts("threads: ok");
}
