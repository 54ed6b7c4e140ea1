// Batches of small matrices with one matrix in each lane of a vector, so that nothing is summed across lanes and no
// matrix waits for another's square root: element (i, j) of all matrices of a group lies at (i * columns + j) * lanes.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linalg/matrices.h"

namespace heddle {

/// Rows are padded with zeros to this, so that loops over rows need no rest.
inline constexpr size_t kRowBlock = 4;
inline size_t padded(size_t rows) { return (rows + kRowBlock - 1) / kRowBlock * kRowBlock; }

/// The largest matrices that go side by side.
inline constexpr size_t kMostInLanes = 128;

/// Larger matrices go half as many at a time, in vectors of at most so many bytes, so that they stay in the cache.
inline constexpr size_t kNarrowBytes = 32;

inline bool narrow_lanes(const Matrices& a) { return std::max(a.rows, a.columns) > kMostInLanes / 2; }

/// Floats of the vectors that a batch goes in.
size_t float_lanes(const Matrices& a);

/// Matrices that go side by side.
template <class T>
size_t lane_count(const Matrices& a) {
  return float_lanes(a) * sizeof(float) / sizeof(T);
}

/// Whether a batch is worth its lanes: LAPACK does matrices alone faster, unless they are tiny.
inline bool lanes_take(const Matrices& a) {
  constexpr size_t kTiny = 16, kFewest = 6;
  const size_t largest = std::max(a.rows, a.columns);
  return a.rank() != 0 && a.count != 0 && (largest <= kTiny || (largest <= kMostInLanes && a.count >= kFewest));
}

template <class T>
T largest_of(const T* values, size_t count, size_t stride = 1) {
  T largest{0};
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i * stride]));
  return largest;
}

/// The power of two that brings numbers up to `largest` to about 1, so that squares neither overflow nor vanish. Where
/// 1 / it would be no number of T it stops short of that.
template <class T>
T scale_for(T largest) {
  constexpr int kMost = std::numeric_limits<T>::max_exponent - 4;
  return largest == 0 ? T{1} : std::ldexp(T{1}, std::clamp(std::ilogb(largest), -kMost, kMost));
}

/// Runs body(first matrix, how many, thread) for groups of at most `lanes` matrices on all threads.
template <class Body>
void for_lane_groups(const RunArguments& arguments, const Matrices& a, size_t lanes, const Body& body) {
  const Aborted* const aborted = current_abort();
  arguments.pool.run((a.count + lanes - 1) / lanes, [&](size_t group, size_t thread) {
    check_aborted(aborted);
    body(group * lanes, std::min(lanes, a.count - group * lanes), thread);
  });
}

/// Hands out pieces of scratch memory.
template <class T>
class LaneScratch {
 public:
  LaneScratch(T* memory, size_t lanes) : next_(memory), lanes_(lanes) {}
  /// Room for so many vectors, zero.
  T* take(size_t vectors) {
    T* const piece = next_;
    next_ += vectors * lanes_;
    return std::fill_n(piece, vectors * lanes_, T{0}), piece;
  }

 private:
  T* next_;
  size_t lanes_;
};

/// Rows that go from or to all lanes before the next ones do: they stay in the nearest cache meanwhile.
inline constexpr size_t kRowsAtOnce = 4;

/// a [rows, columns] of lane `lane` is element(matrix, i, j); row block by row block.
template <class T, class Element>
void fill_lanes(T* lanes_of, size_t lanes, size_t count, size_t rows, size_t columns, const Element& element) {
  for (size_t i0 = 0; i0 < rows; i0 += kRowsAtOnce)
    for (size_t lane = 0; lane < count; ++lane)
      for (size_t i = i0; i < std::min(rows, i0 + kRowsAtOnce); ++i)
        for (size_t j = 0; j < columns; ++j) lanes_of[(i * columns + j) * lanes + lane] = element(lane, i, j);
}

/// Calls store(matrix, i, row) with the rows of each matrix; row(j) is its element.
template <class T, class Store>
void drain_lanes(const T* lanes_of, size_t lanes, size_t count, size_t rows, size_t columns, const Store& store) {
  for (size_t i0 = 0; i0 < rows; i0 += kRowsAtOnce)
    for (size_t lane = 0; lane < count; ++lane)
      for (size_t i = i0; i < std::min(rows, i0 + kRowsAtOnce); ++i) {
        const T* const start = lanes_of + i * columns * lanes + lane;
        store(lane, i, [start, lanes](size_t j) { return start[j * lanes]; });
      }
}

/// The sines, and what the cosines lack to 1, of up to kSweeps sweeps over the columns of a matrix with `rows` rows
/// (padded).
template <class T>
struct TurnRecord {
  static constexpr size_t kSweeps = 4;
  /// z [rows, columns] turns; null if nobody asks.
  T* z;
  size_t rows, columns;
  /// [kSweeps, 2, columns]
  T* turns;
  size_t first[kSweeps] = {}, last[kSweeps] = {};
  size_t sweeps = 0;

  static constexpr size_t vectors(size_t columns) { return kSweeps * 2 * columns; }
  T* losses(size_t sweep, size_t lanes) const { return turns + sweep * 2 * columns * lanes; }
  T* sines(size_t sweep, size_t lanes) const { return losses(sweep, lanes) + columns * lanes; }
};

/// Sweeps an iteration may take per row of the matrix; some two are usual.
inline constexpr size_t kMostSweepsPerRow = 60;

}  // namespace heddle
