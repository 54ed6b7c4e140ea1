// Programs as many threads run them: on one pool of four threads, sharing frozen weights, each other's arenas and
// sometimes the program itself; for ThreadSanitizer (`npm run test:sanitize`). The executor, its instruction lists and
// the CPU's table are the shipped ones; of the kernels, the scans, and two made here, one that packs a frozen weight
// and uses scratch, one that updates a state. No OpenMP and no library takes part, so nothing is suppressed.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "callers.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/tile_pool.h"
#include "kernels/kernel_table.h"
#include "program/cpu_backend.h"
#include "program/executor.h"

namespace heddle {

namespace {

constexpr int kRounds = 40;
constexpr int64_t kRows = 64;
constexpr int64_t kColumns = 640;
constexpr size_t kElements = kRows * kColumns;

/// y = x · w with w [columns] packed, by way of each thread's scratch.
CompiledKernel compile_scale(const KernelRequest& request) {
  request.expect_counts(2, 1);
  const std::shared_ptr<Storage> frozen = request.inputs[1].frozen;
  request.check(frozen != nullptr, "a frozen weight", "one that is written");
  const auto packed = std::static_pointer_cast<std::vector<float>>(frozen->derived("packed", [&] {
    std::vector<float> values(kColumns);
    frozen->read(0, std::as_writable_bytes(std::span(values)));
    return std::make_shared<std::vector<float>>(std::move(values));
  }));
  CompiledKernel kernel;
  kernel.consumed_inputs = {1};
  kernel.scratch_per_thread = kColumns * sizeof(float);
  kernel.run = [packed](const RunArguments& arguments) {
    expect(arguments.in[1] == nullptr, "a packed weight is not passed");
    const auto* x = arguments.input<float>(0);
    auto* y = arguments.output<float>(0);
    arguments.pool.run(kRows, [&](size_t row, size_t thread) {
      auto* own = arguments.thread_scratch<float>(thread);
      for (size_t i = 0; i < kColumns; ++i) own[i] = x[row * kColumns + i] * (*packed)[i];
      std::copy_n(own, kColumns, y + row * kColumns);
    });
  };
  return kernel;
}

/// state += x, in place, on the calling thread: nothing but the order of runs keeps two updates apart.
CompiledKernel compile_accumulate(const KernelRequest& request) {
  request.expect_counts(2, 1);
  CompiledKernel kernel;
  kernel.in_place = {{0, 0}};
  kernel.run = [](const RunArguments& arguments) {
    const auto* state = arguments.input<float>(0);
    const auto* x = arguments.input<float>(1);
    auto* y = arguments.output<float>(0);
    for (size_t i = 0; i < kElements; ++i) y[i] = state[i] + x[i];
  };
  return kernel;
}

/// An instruction list as lib/graph/encode.ts writes it.
class ListWriter {
 public:
  struct Call {
    std::string op;
    std::vector<uint32_t> inputs;
    std::vector<uint32_t> outputs;
    std::vector<std::pair<std::string, int64_t>> attributes = {};
  };

  void buffer(BufferKind kind, uint32_t index, const std::vector<int64_t>& dims) {
    put(buffers_, static_cast<uint8_t>(kind));
    put(buffers_, static_cast<uint8_t>(DType::kF32));
    put(buffers_, static_cast<uint8_t>(dims.size()));
    put(buffers_, uint8_t{0});
    put(buffers_, index);
    for (const int64_t dim : dims) put(buffers_, dim);
    ++buffer_count_;
  }

  void call(const Call& call) {
    text(call.op);
    for (const auto& ids : {call.inputs, call.outputs}) {
      put(calls_, static_cast<uint16_t>(ids.size()));
      for (const uint32_t id : ids) put(calls_, id);
    }
    put(calls_, static_cast<uint16_t>(call.attributes.size()));
    for (const auto& [name, value] : call.attributes) {
      text(name);
      put(calls_, uint8_t{0});
      put(calls_, value);
    }
    ++call_count_;
  }

  std::vector<std::byte> bytes() const {
    std::vector<std::byte> all;
    put(all, uint32_t{0x504c4448});
    put(all, uint32_t{1});
    put(all, buffer_count_);
    all.insert(all.end(), buffers_.begin(), buffers_.end());
    put(all, call_count_);
    all.insert(all.end(), calls_.begin(), calls_.end());
    return all;
  }

 private:
  template <class T>
  static void put(std::vector<std::byte>& to, T value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    to.insert(to.end(), bytes, bytes + sizeof value);
  }
  void text(const std::string& text) {
    put(calls_, static_cast<uint16_t>(text.size()));
    for (const char letter : text) put(calls_, letter);
  }

  std::vector<std::byte> buffers_;
  std::vector<std::byte> calls_;
  uint32_t buffer_count_ = 0;
  uint32_t call_count_ = 0;
};

Tensor tensor_of(const std::vector<int64_t>& dims, const std::function<float(size_t)>& value) {
  const Shape shape(dims);
  const std::shared_ptr<Storage> storage = Storage::owned(shape.bytes(DType::kF32));
  auto* elements = reinterpret_cast<float*>(storage->mutable_data());
  for (size_t i = 0; i < storage->size() / sizeof(float); ++i) elements[i] = value(i);
  return {DType::kF32, shape, storage};
}

Tensor weight() {
  return {DType::kF32, Shape(std::vector<int64_t>{kColumns}),
          Storage::decoded(kColumns * sizeof(float), [](size_t begin, std::span<std::byte> out) {
            std::vector<float> values(out.size() / sizeof(float));
            for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((begin / sizeof(float) + i) % 7);
            std::memcpy(out.data(), values.data(), out.size());
          })};
}

/// y = cumsum(x · w) over rows, state += y; buffers: 0 x, 1 w, 2 state, 3 x · w, 4 y.
std::unique_ptr<Program> make_program(const Tensor& frozen, const Tensor& state, const Program::Aborted& aborted) {
  ListWriter list;
  const std::vector<int64_t> matrix{kRows, kColumns};
  list.buffer(BufferKind::kInput, 0, matrix);
  list.buffer(BufferKind::kBound, 0, {kColumns});
  list.buffer(BufferKind::kBound, 1, matrix);
  list.buffer(BufferKind::kTemp, 0, matrix);
  list.buffer(BufferKind::kOutput, 0, matrix);
  list.call({"test_scale", {0, 1}, {3}});
  list.call({"cumsum", {3}, {4}, {{"axis", 0}, {"reverse", 0}}});
  list.call({"test_accumulate", {2, 4}, {2}});
  return std::make_unique<Program>(cpu_backend(), list.bytes(), std::vector<Tensor>{frozen, state}, aborted);
}

const float* floats(const Tensor& tensor) { return reinterpret_cast<const float*>(tensor.storage->data()); }

const Program::Aborted kNever = [] { return false; };

/// Of `rounds` runs on the caller's own input: x[i] = caller + i mod 5.
void expect_right(const Tensor& x, const Tensor& y) {
  std::vector<float> sums(kColumns, 0);
  for (size_t i = 0; i < kElements; ++i) {
    sums[i % kColumns] += floats(x)[i] * static_cast<float>((i % kColumns) % 7);
    expect(floats(y)[i] == sums[i % kColumns], "a running sum");
  }
}

Tensor input_of(size_t caller) {
  return tensor_of({kRows, kColumns}, [caller](size_t i) { return static_cast<float>(caller + i % 5); });
}

/// Programs are compiled, run, asked for their profile and freed at once; they share a frozen weight and the arenas.
void programs_side_by_side() {
  const Tensor frozen = weight();
  together([&](size_t caller) {
    const Tensor x = input_of(caller);
    for (int round = 0; round < kRounds / 4; ++round) {
      const Tensor state = tensor_of({kRows, kColumns}, [](size_t) { return 0.0F; });
      const auto program = make_program(frozen, state, kNever);
      Tensor y;
      for (int run = 0; run < 4; ++run) y = program->run(std::vector{x}, kNever)[0];
      expect_right(x, y);
      for (size_t i = 0; i < kElements; i += 97) expect(floats(state)[i] == 4 * floats(y)[i], "the state of four runs");
      expect(program->profile().size() == 3, "a profile of three operators");
    }
  });
}

/// Runs of one program wait for each other: none of the updates of its state is lost.
void one_program_for_all() {
  const Tensor state = tensor_of({kRows, kColumns}, [](size_t) { return 0.0F; });
  const auto program = make_program(weight(), state, kNever);
  const Tensor x = input_of(1);
  together([&](size_t caller) {
    for (int round = 0; round < kRounds; ++round) {
      if (caller == 3) TilePool::shared().request_threads(1 + static_cast<size_t>(round) % 4);
      expect_right(x, program->run(std::vector{x}, kNever)[0]);
    }
  });
  TilePool::shared().request_threads(kCallers);
  const Tensor y = program->run(std::vector{x}, kNever)[0];
  const auto runs = static_cast<float>(kCallers * kRounds + 1);
  for (size_t i = 0; i < kElements; i += 97) expect(floats(state)[i] == runs * floats(y)[i], "the state of all runs");
}

/// A run that is aborted from another thread ends between two instructions, and the program runs again.
void aborted_runs() {
  const Tensor frozen = weight();
  together([&](size_t caller) {
    const Tensor x = input_of(caller);
    const Tensor state = tensor_of({kRows, kColumns}, [](size_t) { return 0.0F; });
    const auto program = make_program(frozen, state, kNever);
    for (int round = 0; round < kRounds / 4; ++round) {
      std::atomic<bool> stop{false};
      std::thread other([&stop] { stop = true; });
      try {
        program->run(std::vector{x}, [&stop] { return stop.load(); });
      } catch (const Error& error) {
        expect(error.code() == ErrorCode::kAborted, "no failure but the abort");
      }
      other.join();
      expect_right(x, program->run(std::vector{x}, kNever)[0]);
    }
  });
}

/// A weight that was written between runs is packed again, by every program that holds it.
void stale_weights() {
  const Tensor changing = tensor_of({kColumns}, [](size_t i) { return static_cast<float>(i % 7); });
  std::vector<std::unique_ptr<Program>> programs;
  for (size_t caller = 0; caller < kCallers; ++caller)
    programs.push_back(make_program(changing, tensor_of({kRows, kColumns}, [](size_t) { return 0.0F; }), kNever));
  for (int round = 0; round < 4; ++round) {
    together([&](size_t caller) {
      const Tensor x = input_of(caller);
      const Tensor y = programs[caller]->run(std::vector{x}, kNever)[0];
      if (round % 2 == 0) return expect_right(x, y);
      for (size_t i = 0; i < kElements; i += 97) expect(floats(y)[i] == 0, "a product with the new weight");
    });
    auto* values = reinterpret_cast<float*>(changing.storage->mutable_data());
    for (size_t i = 0; i < kColumns; ++i) values[i] = round % 2 == 0 ? 0.0F : static_cast<float>(i % 7);
  }
}

}  // namespace

const KernelTable& cpu_kernels() {
  static const KernelTable kTable = [] {
    KernelTable table;
    register_scan(table);
    table["test_scale"] = compile_scale;
    table["test_accumulate"] = compile_accumulate;
    return table;
  }();
  return kTable;
}

}  // namespace heddle

int main() {
  heddle::TilePool::shared().resize(kCallers);
  heddle::programs_side_by_side();
  heddle::one_program_for_all();
  heddle::aborted_runs();
  heddle::stale_weights();
  std::puts("programs: ok");
}
