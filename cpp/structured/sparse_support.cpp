#include "structured/sparse_support.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "core/random.h"
#include "core/status.h"

namespace heddle {
namespace {

constexpr const char* kPlace = "sparse support";
constexpr size_t kLimit = size_t{1} << 31;

Tensor make_indices(size_t count) {
  const Shape shape({static_cast<int64_t>(count)});
  return {DType::kI32, shape, Storage::owned(shape.bytes(DType::kI32))};
}

std::span<int32_t> data(const Tensor& tensor) {
  return {reinterpret_cast<int32_t*>(tensor.storage->mutable_data()), tensor.shape.count()};
}

void check_size(size_t rows, size_t columns, size_t count) {
  if (rows < kLimit - 1 && columns < kLimit - 1 && count < kLimit) return;
  throw Error(ErrorCode::kShape, kPlace, "sizes below 2^31",
              "[" + std::to_string(rows) + ", " + std::to_string(columns) + "], " + std::to_string(count) + " entries");
}

/// A list of i32 numbers that stays in memory while this lives.
class Numbers {
 public:
  Numbers(const Tensor& tensor, const char* name) : pin_(tensor.storage), count_(tensor.shape.count()) {
    if (tensor.dtype != DType::kI32 || tensor.shape.rank() != 1)
      throw Error(ErrorCode::kShape, kPlace, std::string(name) + " i32 [n]",
                  std::string(dtype_name(tensor.dtype)) + " " + tensor.shape.str());
  }
  size_t size() const { return count_; }
  int32_t operator[](size_t i) const { return reinterpret_cast<const int32_t*>(pin_.data())[i]; }

 private:
  Storage::Pin pin_;
  size_t count_;
};

/// Counts of keys -> where the entries of each key begin.
void accumulate(std::span<int32_t> pointers) { std::partial_sum(pointers.begin(), pointers.end(), pointers.begin()); }

/// Adds the view by columns of a support that is known by rows: one counting sort.
void add_columns(SparseSupport& support, size_t columns) {
  const std::span<const int32_t> pointers = data(support.row_pointers);
  const std::span<const int32_t> indices = data(support.column_indices);
  support.column_pointers = make_indices(columns + 1);
  support.row_indices = make_indices(indices.size());
  support.column_order = make_indices(indices.size());
  const auto starts = data(support.column_pointers);
  for (const int32_t column : indices) ++starts[column + 1];
  accumulate(starts);
  std::vector<int32_t> next(starts.begin(), starts.end() - 1);
  const auto row_indices = data(support.row_indices);
  const auto order = data(support.column_order);
  for (size_t row = 0; row + 1 < pointers.size(); ++row)
    for (int32_t t = pointers[row]; t < pointers[row + 1]; ++t) {
      const int32_t at = next[indices[t]]++;
      row_indices[at] = static_cast<int32_t>(row);
      order[at] = t;
    }
}

/// From ascending flat positions row * columns + column.
SparseSupport support_from_positions(const std::vector<uint64_t>& positions, size_t rows, size_t columns) {
  SparseSupport support;
  support.row_pointers = make_indices(rows + 1);
  support.column_indices = make_indices(positions.size());
  const auto pointers = data(support.row_pointers);
  const auto indices = data(support.column_indices);
  for (size_t t = 0; t < positions.size(); ++t) {
    ++pointers[positions[t] / columns + 1];
    indices[t] = static_cast<int32_t>(positions[t] % columns);
  }
  accumulate(pointers);
  add_columns(support, columns);
  return support;
}

int32_t checked_coordinate(int32_t index, size_t limit, const char* what) {
  if (index >= 0 && static_cast<size_t>(index) < limit) return index;
  throw Error(ErrorCode::kArgument, kPlace, std::string(what) + " in [0, " + std::to_string(limit) + ")",
              std::to_string(index));
}

/// Entries in the order of their key, those of equal keys in the order given.
std::vector<int32_t> counting_order(const Numbers& keys, size_t limit, const std::vector<int32_t>& given) {
  std::vector<int32_t> next(limit + 1);
  for (const int32_t entry : given) ++next[keys[entry] + 1];
  accumulate(next);
  std::vector<int32_t> order(given.size());
  for (const int32_t entry : given) order[next[keys[entry]]++] = entry;
  return order;
}

/// A number in [0, limit) with 64 random bits of block `block`; the bias is below limit / 2^64.
uint64_t random_below(uint64_t seed, uint64_t block, uint64_t limit) {
  constexpr uint64_t kStream = 0x73757070;  // Its own, so that values drawn from the same seed are independent.
  const Philox4 words = philox(seed, kStream, block);
  const auto bits = (static_cast<unsigned __int128>(words[0]) << 32) | words[1];
  return static_cast<uint64_t>((bits * limit) >> 64);
}

/// Draws until there are `count` distinct positions. Which ones come first does not favour any, so the set is uniform.
std::vector<uint64_t> distinct_positions(uint64_t total, size_t count, uint64_t seed) {
  std::vector<uint64_t> found;
  uint64_t block = 0;
  while (found.size() < count) {
    const size_t known = found.size();
    while (found.size() < count) found.push_back(random_below(seed, block++, total));
    std::sort(found.begin() + static_cast<ptrdiff_t>(known), found.end());
    std::inplace_merge(found.begin(), found.begin() + static_cast<ptrdiff_t>(known), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
  }
  return found;
}

}  // namespace

SparseSupport support_from_entries(const Tensor& row_indices, const Tensor& column_indices, size_t rows,
                                   size_t columns) {
  const Numbers row_of(row_indices, "row indices");
  const Numbers column_of(column_indices, "column indices");
  const size_t count = row_of.size();
  if (column_of.size() != count)
    throw Error(ErrorCode::kShape, kPlace, std::to_string(count) + " column indices", std::to_string(column_of.size()));
  check_size(rows, columns, count);
  for (size_t t = 0; t < count; ++t) {
    checked_coordinate(row_of[t], rows, "a row");
    checked_coordinate(column_of[t], columns, "a column");
  }
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  order = counting_order(row_of, rows, counting_order(column_of, columns, order));

  SparseSupport support;
  support.row_pointers = make_indices(rows + 1);
  support.column_indices = make_indices(count);
  support.source = make_indices(count);
  const auto pointers = data(support.row_pointers);
  const auto indices = data(support.column_indices);
  for (size_t t = 0; t < count; ++t) {
    const int32_t entry = order[t];
    ++pointers[row_of[entry] + 1];
    indices[t] = column_of[entry];
    if (t > 0 && row_of[order[t - 1]] == row_of[entry] && indices[t - 1] == indices[t])
      throw Error(ErrorCode::kArgument, kPlace, "each entry once",
                  "[" + std::to_string(row_of[entry]) + ", " + std::to_string(indices[t]) + "] twice");
  }
  accumulate(pointers);
  std::copy(order.begin(), order.end(), data(support.source).begin());
  add_columns(support, columns);
  return support;
}

SparseSupport support_from_rows(const Tensor& row_pointers, const Tensor& column_indices, size_t columns) {
  const Numbers pointers(row_pointers, "row pointers");
  const Numbers indices(column_indices, "column indices");
  check_size(pointers.size(), columns, indices.size());
  const auto refuse = [](const std::string& expected, int64_t got) {
    throw Error(ErrorCode::kFormat, kPlace, expected, std::to_string(got));
  };
  if (pointers.size() == 0) refuse("a row pointer at least", 0);
  SparseSupport support;
  support.row_pointers = make_indices(pointers.size());
  support.column_indices = make_indices(indices.size());
  const auto own_pointers = data(support.row_pointers);
  const auto own_indices = data(support.column_indices);
  for (size_t row = 0; row < pointers.size(); ++row) own_pointers[row] = pointers[row];
  for (size_t t = 0; t < indices.size(); ++t) own_indices[t] = indices[t];
  if (own_pointers[0] != 0) refuse("row pointers that start at 0", own_pointers[0]);
  for (size_t row = 1; row < own_pointers.size(); ++row)
    if (own_pointers[row] < own_pointers[row - 1]) refuse("row pointers that never fall", own_pointers[row]);
  if (static_cast<size_t>(own_pointers.back()) != indices.size())
    refuse("row pointers that end at " + std::to_string(indices.size()), own_pointers.back());
  for (size_t row = 0; row + 1 < own_pointers.size(); ++row)
    for (int32_t t = own_pointers[row]; t < own_pointers[row + 1]; ++t) {
      const int32_t column = own_indices[t];
      if (column < 0 || static_cast<size_t>(column) >= columns)
        refuse("columns in [0, " + std::to_string(columns) + ")", column);
      if (t > own_pointers[row] && own_indices[t - 1] >= column) refuse("columns that ascend in each row", column);
    }
  add_columns(support, columns);
  return support;
}

SparseSupport support_from_mask(const Tensor& mask) {
  const bool wide = mask.dtype == DType::kF32;
  if (mask.shape.rank() != 2 || (!wide && mask.dtype != DType::kU8))
    throw Error(ErrorCode::kShape, kPlace, "a mask [rows, columns], f32 or u8",
                std::string(dtype_name(mask.dtype)) + " " + mask.shape.str());
  check_size(static_cast<size_t>(mask.shape[0]), static_cast<size_t>(mask.shape[1]), 0);
  const Storage::Pin pin(mask.storage);
  std::vector<uint64_t> positions;
  for (size_t i = 0; i < mask.shape.count(); ++i) {
    const bool set = wide ? reinterpret_cast<const float*>(pin.data())[i] != 0.0F : pin.data()[i] != std::byte{0};
    if (set) positions.push_back(i);
  }
  check_size(0, 0, positions.size());
  return support_from_positions(positions, static_cast<size_t>(mask.shape[0]), static_cast<size_t>(mask.shape[1]));
}

SparseSupport random_support(size_t rows, size_t columns, size_t count, uint64_t seed) {
  check_size(rows, columns, count);
  const uint64_t total = static_cast<uint64_t>(rows) * columns;
  if (count > total)
    throw Error(ErrorCode::kArgument, kPlace, "at most " + std::to_string(total) + " entries", std::to_string(count));
  if (count <= total / 2) return support_from_positions(distinct_positions(total, count, seed), rows, columns);
  // Of a dense support, what it leaves out is drawn.
  const std::vector<uint64_t> absent = distinct_positions(total, total - count, seed);
  std::vector<uint64_t> positions;
  positions.reserve(count);
  for (uint64_t position = 0, skip = 0; position < total; ++position)
    if (skip < absent.size() && absent[skip] == position)
      ++skip;
    else
      positions.push_back(position);
  return support_from_positions(positions, rows, columns);
}

}  // namespace heddle
