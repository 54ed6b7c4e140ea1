// `linear_assignment`: for each row of a cost matrix a column of its own, so that their sum is least. Shortest
// augmenting paths with potentials (Jonker and Volgenant 1987, in the rectangular form of Crouse 2016).
#include "kernels/kernel_table.h"
#include "linalg/matrices.h"

namespace heddle {
namespace {

constexpr int32_t kNone = -1;

/// One matrix of no more rows than columns.
template <class T>
class Assignment {
 public:
  Assignment(const T* cost, size_t rows, size_t columns)
      : cost_(cost),
        rows_(rows),
        columns_(columns),
        row_potential_(rows, 0),
        column_potential_(columns, 0),
        row_of_(columns, kNone),
        column_of_(rows, kNone) {}

  /// The column of each row.
  const std::vector<int32_t>& solve() {
    for (size_t row = 0; row < rows_; ++row) augment(row);
    return column_of_;
  }
  const std::vector<int32_t>& rows_of_columns() const { return row_of_; }

 private:
  /// Dijkstra over reduced costs from a free row to the nearest free column; the path's edges change sides.
  void augment(size_t start) {
    std::vector<double> distance(columns_, std::numeric_limits<double>::infinity());
    std::vector<int32_t> before(columns_, kNone);
    std::vector<bool> row_seen(rows_, false);
    std::vector<bool> column_seen(columns_, false);
    double reached = 0;
    auto row = static_cast<int32_t>(start);
    int32_t sink = kNone;
    while (sink == kNone) {
      row_seen[row] = true;
      int32_t nearest = kNone;
      for (size_t j = 0; j < columns_; ++j) {
        if (column_seen[j]) continue;
        const double through = reached + cost_[row * columns_ + j] - row_potential_[row] - column_potential_[j];
        if (through < distance[j]) {
          distance[j] = through;
          before[j] = row;
        }
        // A free column ends the search, so it is taken before others that are as near.
        if (nearest == kNone || distance[j] < distance[nearest] ||
            (distance[j] == distance[nearest] && row_of_[j] == kNone && row_of_[nearest] != kNone))
          nearest = static_cast<int32_t>(j);
      }
      reached = distance[nearest];
      column_seen[nearest] = true;
      if (row_of_[nearest] == kNone)
        sink = nearest;
      else
        row = row_of_[nearest];
    }
    for (size_t i = 0; i < rows_; ++i)
      if (row_seen[i]) row_potential_[i] += i == start ? reached : reached - distance[column_of_[i]];
    for (size_t j = 0; j < columns_; ++j)
      if (column_seen[j]) column_potential_[j] -= reached - distance[j];
    for (int32_t column = sink; column != kNone;) {
      const int32_t owner = before[column];
      row_of_[column] = owner;
      std::swap(column_of_[owner], column);
      if (static_cast<size_t>(owner) == start) break;
    }
  }

  const T* cost_;
  size_t rows_, columns_;
  std::vector<double> row_potential_, column_potential_;
  std::vector<int32_t> row_of_, column_of_;
};

template <class T>
void assign(const Matrices& a, const T* cost, int32_t* columns) {
  check_finite("linear_assignment", cost, a.size());
  if (a.rows <= a.columns) {
    Assignment<T> problem(cost, a.rows, a.columns);
    std::ranges::copy(problem.solve(), columns);
    return;
  }
  std::vector<T> turned(a.size());
  transpose_matrix(cost, a.rows, a.columns, turned.data());
  Assignment<T> problem(turned.data(), a.columns, a.rows);
  problem.solve();
  std::ranges::copy(problem.rows_of_columns(), columns);
}

CompiledKernel compile_linear_assignment(const KernelRequest& request) {
  request.expect_counts(1, 1);
  const Matrices a = read_matrices(request, request.inputs[0], "cost");
  check_operand(request, request.outputs[0], "columns", DType::kI32, a.with({a.rows}));
  CompiledKernel kernel;
  kernel.run = [a](const RunArguments& arguments) {
    auto* columns = arguments.output<int32_t>(0);
    const Aborted* const aborted = current_abort();
    with_float(a.dtype, [&](auto zero) {
      const auto* cost = arguments.input<decltype(zero)>(0);
      for_row_ranges(arguments.pool, a.count, matrices_per_tile(a), [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
          check_aborted(aborted);
          assign(a, cost + i * a.size(), columns + i * a.rows);
        }
      });
    });
  };
  return kernel;
}

}  // namespace

void register_assignment(KernelTable& table) { table["linear_assignment"] = compile_linear_assignment; }

}  // namespace heddle
