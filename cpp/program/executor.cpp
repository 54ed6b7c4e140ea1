#include "program/executor.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <set>
#include <unordered_map>
#include <utility>

#include "core/abort.h"
#include "core/backend_status.h"
#include "core/resting_memory.h"
#include "program/arena_pool.h"
#include "program/cpu_backend.h"

namespace heddle {

namespace {

std::byte* allocate_result(const heddle_backend& backend, size_t bytes) {
  if (std::byte* const rested = RestingMemory::shared().take(&backend, bytes)) return rested;
  void* memory = nullptr;
  heddle_error error;
  check_status(backend.allocate(backend.self, bytes, &memory, &error), error);
  return static_cast<std::byte*>(memory);
}

void release_result(const RestingMemory::Block& block) noexcept {
  const auto& backend = *static_cast<const heddle_backend*>(block.owner);
  backend.release(backend.self, block.data, block.size);
}

heddle_string c_string(const std::string& text) { return {text.data(), text.size()}; }

/// An attribute as the table takes it; points into the attribute's own value.
struct CAttribute {
  heddle_attribute attribute{};
  std::vector<heddle_string> texts;

  CAttribute(const std::string& name, const AttributeValue& value) {
    attribute.name = c_string(name);
    std::visit([this](const auto& held) { set(held); }, value);
  }

 private:
  void set(const int64_t& value) { assign(HEDDLE_I64, &value, 1); }
  void set(const double& value) { assign(HEDDLE_F64, &value, 1); }
  void set(const std::string& value) {
    texts.push_back(c_string(value));
    assign(HEDDLE_STRING, texts.data(), 1);
  }
  void set(const std::vector<int64_t>& values) { assign(HEDDLE_I64_ARRAY, values.data(), values.size()); }
  void set(const std::vector<double>& values) { assign(HEDDLE_F64_ARRAY, values.data(), values.size()); }
  void set(const std::vector<std::string>& values) {
    std::ranges::transform(values, std::back_inserter(texts), c_string);
    assign(HEDDLE_STRING_ARRAY, texts.data(), texts.size());
  }
  void assign(heddle_attribute_type type, const void* values, size_t count) {
    attribute.type = type;
    attribute.values = values;
    attribute.count = count;
  }
};

heddle_status frozen_data(void* storage, const void** bytes, heddle_error* error) {
  try {
    *bytes = (*static_cast<std::shared_ptr<Storage>*>(storage))->data();
    return 0;
  } catch (...) {
    return store_current_exception(error);
  }
}

/// Holds the backend's number of threads still.
class Session {
 public:
  explicit Session(const heddle_backend& backend) : backend_(backend), threads_(backend.begin(backend.self)) {}
  ~Session() { backend_.end(backend_.self); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  size_t threads() const noexcept { return threads_; }

 private:
  const heddle_backend& backend_;
  size_t threads_;
};

/// The checks of operands and attributes are the CPU's kernels', for every backend: what they accept, others may rely
/// on. Nothing is packed for it.
void check_by_cpu(heddle_instruction instruction) {
  std::vector<heddle_operand> inputs(instruction.inputs, instruction.inputs + instruction.input_count);
  for (heddle_operand& input : inputs) input.frozen = nullptr;
  instruction.inputs = inputs.data();
  const heddle_backend& cpu = cpu_backend();
  heddle_kernel kernel{};
  heddle_error error;
  check_status(cpu.compile(cpu.self, &instruction, &kernel, &error), error);
  cpu.destroy(cpu.self, &kernel);
}

/// When the instructions of a run began and ended: by the host's clock where run() does the work, by the device's where
/// it only starts it and the run is to be profiled.
class Clock {
 public:
  Clock(const heddle_backend& backend, bool profiled)
      : backend_(backend), by_host_(backend.mark == nullptr), by_device_(!by_host_ && profiled) {}
  ~Clock() {
    for (void* const mark : marks_) backend_.unmark(backend_.self, mark);
  }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  void stamp() {
    if (by_host_) times_.push_back(std::chrono::steady_clock::now());
    if (!by_device_) return;
    heddle_error error;
    check_status(backend_.mark(backend_.self, &marks_.emplace_back(nullptr), &error), error);
  }

  /// From each stamp to the next one, once everything has ended; nothing where the run is not measured.
  std::vector<double> seconds() const {
    std::vector<double> found;
    for (size_t i = 1; i < times_.size(); ++i)
      found.push_back(std::chrono::duration<double>(times_[i] - times_[i - 1]).count());
    heddle_error error;
    for (size_t i = 1; i < marks_.size(); ++i)
      check_status(backend_.elapsed(backend_.self, marks_[i - 1], marks_[i], &found.emplace_back(0), &error), error);
    return found;
  }

 private:
  const heddle_backend& backend_;
  bool by_host_, by_device_;
  std::vector<std::chrono::steady_clock::time_point> times_;
  std::vector<void*> marks_;
};

std::string describe(DType dtype, const Shape& shape) { return std::string(dtype_name(dtype)) + " " + shape.str(); }

}  // namespace

/// Owns a compiled instruction.
class Program::Kernel {
 public:
  Kernel() = default;
  Kernel(const heddle_backend& backend, const heddle_instruction& instruction) : backend_(&backend) {
    heddle_error error;
    check_status(backend.compile(backend.self, &instruction, &kernel_, &error), error);
  }
  Kernel(Kernel&& other) noexcept : backend_(std::exchange(other.backend_, nullptr)), kernel_(other.kernel_) {}
  Kernel& operator=(Kernel&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(kernel_, other.kernel_);
    return *this;
  }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  ~Kernel() {
    if (backend_ != nullptr && kernel_.implementation != nullptr) backend_->destroy(backend_->self, &kernel_);
  }

  const heddle_kernel& get() const noexcept { return kernel_; }
  std::span<const uint32_t> consumed() const noexcept { return {kernel_.consumed, kernel_.consumed_count}; }
  bool in_place(size_t input, size_t output) const noexcept {
    return std::ranges::any_of(std::span(kernel_.in_place, kernel_.in_place_count),
                               [&](const heddle_pair& pair) { return pair.input == input && pair.output == output; });
  }

 private:
  const heddle_backend* backend_ = nullptr;
  heddle_kernel kernel_{};
};

struct Program::Step {
  Kernel kernel;
  /// Roots, or behind them numbers of other forms (Program::formed_); kAbsent where nothing is passed.
  std::vector<uint32_t> inputs;
  std::vector<uint32_t> outputs;
};

/// A step holds this storage's contents in packed form, as they were at `version`.
struct Program::Consumed {
  uint32_t step;
  std::shared_ptr<Storage> storage;
  uint64_t version;
};

/// Where each root's memory is during one run, and what keeps it there.
struct Program::Addresses {
  /// Those of other forms come last.
  std::vector<std::byte*> data;
  std::vector<Storage::Pin> pins;
  std::vector<std::shared_ptr<DeviceMemory>> device;
};

/// Operands of the instruction that is started, in memory that serves all.
struct Program::Pointers {
  std::vector<const void*> in;
  std::vector<void*> out;
};

Program::Program(const heddle_backend& backend, std::span<const std::byte> list, std::vector<Tensor> bound,
                 const Aborted& aborted, bool record)
    : backend_(backend), list_(decode_instruction_list(list)), bound_(std::move(bound)) {
  check_bound();
  {
    const Session session(backend_);
    compile_steps(aborted);
    plan();
    peak_bytes_ = checked_add(plan_.bytes, scratch_bytes(session.threads()), "program");
  }
  for (const uint32_t id : list_.outputs) peak_bytes_ = checked_add(peak_bytes_, list_.buffers[id].bytes, "program");
  if (record) recorded_ = recorded_runs();
  if (recorded_) peak_bytes_ = checked_add(peak_bytes_, recorded_->slot_bytes(), "program");
  pin_bound();
  Arena::program_born();
}

Program::~Program() { Arena::program_gone(); }

void Program::check_bound() const {
  std::unordered_map<const Storage*, bool> seen;
  for (uint32_t id = 0; id < list_.buffers.size(); ++id) {
    const BufferDeclaration& buffer = list_.buffers[id];
    if (buffer.kind != BufferKind::kBound || buffer.root != id) continue;
    const std::string place = "bound tensor " + std::to_string(buffer.index);
    if (buffer.index >= bound_.size())
      throw Error(ErrorCode::kFormat, place, std::to_string(buffer.index + 1) + " bound tensors",
                  std::to_string(bound_.size()));
    const Tensor& tensor = bound_[buffer.index];
    if (tensor.dtype != buffer.dtype || tensor.shape != buffer.shape)
      throw Error(ErrorCode::kShape, place, describe(buffer.dtype, buffer.shape), describe(tensor.dtype, tensor.shape));
    if (list_.written[id] && !tensor.storage->writable())
      throw Error(ErrorCode::kArgument, place, "a writable tensor, for the program updates it", "a read-only one");
    const auto [entry, fresh] = seen.emplace(tensor.storage.get(), list_.written[id]);
    if (!fresh && (entry->second || list_.written[id]))
      throw Error(ErrorCode::kArgument, place, "a tensor of its own, for the program updates it",
                  "one that is bound twice");
  }
}

bool Program::frozen(uint32_t root) const {
  return list_.buffers[root].kind == BufferKind::kBound && !list_.written[root];
}

void Program::compile_steps(const Aborted& aborted) {
  steps_.resize(list_.instructions.size());
  read_dense_.assign(list_.buffers.size(), false);
  std::vector<uint32_t> uses_left(list_.buffers.size(), 0);
  for (const Instruction& instruction : list_.instructions)
    for (const uint32_t id : instruction.inputs)
      if (id != kAbsent) ++uses_left[list_.buffers[id].root];

  for (const std::vector<uint32_t>& group : group_by_frozen()) {
    for (const uint32_t index : group) {
      check_aborted(&aborted);
      compile_step(index);
      check_overlaps(index);
    }
    release_consumed(group, uses_left);
  }
}

/// Instructions that share a frozen weight are compiled one after the other: the weight is decoded once, packed for
/// all of them and let go, and never are all weights dense at the same time.
std::vector<std::vector<uint32_t>> Program::group_by_frozen() const {
  std::vector<std::vector<uint32_t>> groups;
  std::unordered_map<uint32_t, size_t> group_of_root;
  for (uint32_t index = 0; index < list_.instructions.size(); ++index) {
    size_t group = groups.size();
    for (const uint32_t id : list_.instructions[index].inputs) {
      if (id == kAbsent || !frozen(list_.buffers[id].root)) continue;
      group = group_of_root.emplace(list_.buffers[id].root, group).first->second;
      break;
    }
    if (group == groups.size()) groups.emplace_back();
    groups[group].push_back(index);
  }
  return groups;
}

void Program::compile_step(uint32_t index) {
  const Instruction& instruction = list_.instructions[index];
  Step& step = steps_[index];
  std::vector<Storage::Pin> pins;
  std::vector<Consumed> versions(instruction.inputs.size());
  // Reserved, because the operands point into it.
  std::vector<std::shared_ptr<Storage>> storages;
  std::vector<heddle_frozen> frozen_handles;
  storages.reserve(instruction.inputs.size());
  frozen_handles.reserve(instruction.inputs.size());

  const auto to_c = [&](uint32_t id, bool is_input) {
    heddle_operand operand{};
    operand.buffer = kAbsent;
    if (id == kAbsent) return operand;
    const BufferDeclaration& buffer = list_.buffers[id];
    std::ranges::copy(buffer.shape.dims(), operand.dims);
    operand.rank = static_cast<uint8_t>(buffer.shape.rank());
    operand.dtype = static_cast<uint8_t>(buffer.dtype);
    operand.present = 1;
    operand.buffer = buffer.root;
    if (is_input && frozen(buffer.root)) {
      storages.push_back(storage(buffer.root));
      pins.emplace_back(storages.back(), Storage::Pin::Load::kLazy);
      const EncodedRows* const rows = storages.back()->encoded_rows();
      frozen_handles.push_back({&storages.back(), frozen_data, rows == nullptr ? nullptr : rows->encoding().data()});
      operand.frozen = &frozen_handles.back();
    }
    return operand;
  };

  std::vector<heddle_operand> inputs;
  std::vector<heddle_operand> outputs;
  for (size_t i = 0; i < instruction.inputs.size(); ++i) {
    inputs.push_back(to_c(instruction.inputs[i], true));
    // Taken before the kernel reads the contents: a change in between then counts as stale.
    if (inputs.back().frozen != nullptr) versions[i] = {index, storages.back(), storages.back()->version()};
  }
  for (const uint32_t id : instruction.outputs) outputs.push_back(to_c(id, false));
  std::vector<CAttribute> held;
  held.reserve(instruction.attributes.values.size());
  for (const auto& [name, value] : instruction.attributes.values) held.emplace_back(name, value);
  std::vector<heddle_attribute> attributes;
  attributes.reserve(held.size());
  for (const CAttribute& attribute : held) attributes.push_back(attribute.attribute);

  const heddle_instruction compiled{c_string(instruction.op), inputs.data(), outputs.data(),
                                    attributes.data(),        inputs.size(), outputs.size(),
                                    attributes.size()};
  if (backend_.host_memory == 0) check_by_cpu(compiled);
  step.kernel = Kernel(backend_, compiled);
  step.inputs.clear();
  step.outputs.clear();
  for (const heddle_operand& operand : inputs) step.inputs.push_back(operand.buffer);
  for (const heddle_operand& operand : outputs) step.outputs.push_back(operand.buffer);
  std::erase_if(consumed_, [&](const Consumed& consumed) { return consumed.step == index; });
  for (const uint32_t input : step.kernel.consumed()) {
    if (input >= inputs.size() || inputs[input].frozen == nullptr)
      throw Error(ErrorCode::kInternal, instruction.op, "a kernel that packs only frozen inputs",
                  "input " + std::to_string(input));
    consumed_.push_back(versions[input]);
    step.inputs[input] = kAbsent;
  }
  take_forms(step, instruction, inputs);
  for (const uint32_t root : step.inputs)
    if (is_root(root)) read_dense_[root] = true;
}

/// Has the step get the forms in which the kernel wants its frozen inputs; they are made now.
void Program::take_forms(Step& step, const Instruction& instruction, std::span<const heddle_operand> inputs) {
  const heddle_kernel& kernel = step.kernel.get();
  for (const auto& [input, form] : std::span(kernel.forms, kernel.form_count)) {
    const bool frozen = input < inputs.size() && inputs[input].frozen != nullptr && backend_.host_memory == 0;
    const bool fits = frozen && (form == HEDDLE_BLOCKS ? inputs[input].frozen->encoding != nullptr
                                                       : static_cast<DType>(inputs[input].dtype) == DType::kF32);
    if (!fits)
      throw Error(ErrorCode::kInternal, instruction.op, "forms of frozen inputs that have them",
                  "form " + std::to_string(form) + " of input " + std::to_string(input));
    const std::pair wanted(step.inputs[input], static_cast<heddle_form>(form));
    storage(wanted.first)->on_device(backend_, wanted.second);
    const auto known = std::ranges::find(formed_, wanted);
    step.inputs[input] = static_cast<uint32_t>(list_.buffers.size() + static_cast<size_t>(known - formed_.begin()));
    if (known == formed_.end()) formed_.push_back(wanted);
  }
}

void Program::check_overlaps(uint32_t index) const {
  const Step& step = steps_[index];
  const std::string& op = list_.instructions[index].op;
  const std::string place = "instruction " + std::to_string(index) + " (" + op + ")";
  for (size_t j = 0; j < step.outputs.size(); ++j) {
    if (step.outputs[j] == kAbsent) continue;
    for (size_t other = 0; other < j; ++other)
      if (step.outputs[other] == step.outputs[j])
        throw Error(ErrorCode::kFormat, place, "outputs in separate memory",
                    "outputs " + std::to_string(other) + " and " + std::to_string(j) + " in one buffer");
    for (size_t i = 0; i < step.inputs.size(); ++i)
      if (step.inputs[i] == step.outputs[j] && !step.kernel.in_place(i, j))
        throw Error(ErrorCode::kFormat, place,
                    "output " + std::to_string(j) + " not to overlap input " + std::to_string(i),
                    "buffer " + std::to_string(step.outputs[j]) + " for both");
  }
}

/// Lets go of the dense contents of every weight whose last instruction was in this group and packed it.
void Program::release_consumed(std::span<const uint32_t> group, std::vector<uint32_t>& uses_left) {
  for (const uint32_t index : group)
    for (const uint32_t id : list_.instructions[index].inputs) {
      if (id == kAbsent) continue;
      const uint32_t root = list_.buffers[id].root;
      if (--uses_left[root] == 0 && frozen(root) && !read_dense_[root]) storage(root)->evict();
    }
}

void Program::plan() {
  std::vector<LiveRange> ranges;
  std::vector<uint32_t> roots;
  std::vector<uint32_t> range_of(list_.buffers.size(), kAbsent);
  for (uint32_t index = 0; index < steps_.size(); ++index) {
    const auto touch = [&](uint32_t root) {
      if (!is_root(root) || list_.buffers[root].kind != BufferKind::kTemp) return;
      if (range_of[root] == kAbsent) {
        range_of[root] = static_cast<uint32_t>(ranges.size());
        ranges.push_back({list_.buffers[root].bytes, index, index});
        roots.push_back(root);
      }
      ranges[range_of[root]].last = index;
    };
    std::ranges::for_each(steps_[index].inputs, touch);
    std::ranges::for_each(steps_[index].outputs, touch);
  }
  plan_ = plan_memory(ranges);
  offsets_.assign(list_.buffers.size(), 0);
  for (size_t i = 0; i < roots.size(); ++i) offsets_[roots[i]] = plan_.offsets[i];
}

void Program::pin_bound() {
  dense_.assign(list_.buffers.size(), false);
  for (uint32_t root = 0; root < list_.buffers.size(); ++root) {
    if (list_.buffers[root].kind != BufferKind::kBound || list_.buffers[root].root != root) continue;
    if (!read_dense_[root] && !list_.written[root]) continue;
    dense_[root] = true;
    if (backend_.host_memory != 0)
      pins_.emplace_back(storage(root));
    else
      storage(root)->on_device(backend_);
  }
}

size_t Program::scratch_bytes(size_t threads) const {
  size_t per_thread = 0;
  for (const Step& step : steps_) per_thread = std::max<size_t>(per_thread, step.kernel.get().scratch_per_thread);
  return checked_mul(per_thread, threads, "scratch");
}

std::vector<Tensor> Program::run(std::span<const Tensor> inputs, const Aborted& aborted, bool profiled) {
  const std::lock_guard lock(run_mutex_);
  check_aborted(&aborted);
  const Session session(backend_);
  check_inputs(inputs);
  recompile_stale();

  Addresses addresses;
  std::vector<Tensor> outputs = allocate_outputs();
  const size_t scratch = scratch_bytes(session.threads());
  const Arena arena(backend_, checked_add(plan_.bytes, scratch, "program"));
  place_buffers(addresses, inputs, outputs, arena.data());
  place_forms(addresses);

  const auto mark_state_changed = [&] {
    for (uint32_t root = 0; root < list_.buffers.size(); ++root) {
      if (list_.buffers[root].kind != BufferKind::kBound || !list_.written[root]) continue;
      if (backend_.host_memory != 0)
        storage(root)->invalidate_derived();
      else
        storage(root)->changed_on_device();
    }
  };
  std::byte* const scratch_at = arena.data() + plan_.bytes;
  try {
    if (profiled || !replay(addresses, scratch_at)) execute(addresses, scratch_at, aborted, profiled);
  } catch (...) {
    mark_state_changed();
    throw;
  }
  mark_state_changed();
  return outputs;
}

void Program::place_buffers(Addresses& addresses, std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                            std::byte* arena) const {
  addresses.data.assign(list_.buffers.size(), nullptr);
  for (uint32_t root = 0; root < list_.buffers.size(); ++root) {
    const BufferDeclaration& buffer = list_.buffers[root];
    if (buffer.root != root) continue;
    std::byte*& address = addresses.data[root];
    switch (buffer.kind) {
      case BufferKind::kTemp: address = arena + offsets_[root]; break;
      case BufferKind::kInput: address = address_of(addresses, inputs[buffer.index].storage, false); break;
      case BufferKind::kOutput: address = address_of(addresses, outputs[buffer.index].storage, true); break;
      case BufferKind::kBound:
        if (dense_[root]) address = address_of(addresses, storage(root), list_.written[root]);
        break;
      case BufferKind::kAlias: break;
    }
  }
}

void Program::place_forms(Addresses& addresses) const {
  for (const auto& [root, form] : formed_)
    addresses.data.push_back(addresses.device.emplace_back(storage(root)->on_device(backend_, form))->data());
}

/// What is only read is never written through the pointer: the decoder refuses instructions that would.
std::byte* Program::address_of(Addresses& addresses, const std::shared_ptr<Storage>& storage, bool written) const {
  if (backend_.host_memory == 0) return addresses.device.emplace_back(storage->on_device(backend_))->data();
  if (written) return storage->mutable_data();
  return const_cast<std::byte*>(addresses.pins.emplace_back(storage).data());
}

/// A weight that another program updates was packed as it was then: pack it again.
void Program::recompile_stale() {
  std::set<uint32_t> stale;
  for (const Consumed& consumed : consumed_)
    if (consumed.version != consumed.storage->version()) stale.insert(consumed.step);
  if (recorded_ && !stale.empty()) recorded_->forget();
  for (const uint32_t index : stale) {
    compile_step(index);
    for (const uint32_t root : steps_[index].inputs)
      if (is_root(root) && frozen(root) && !dense_[root] && list_.buffers[root].bytes != 0)
        throw Error(ErrorCode::kInternal, list_.instructions[index].op, "the same inputs packed as before", "fewer");
  }
}

void Program::check_inputs(std::span<const Tensor> inputs) const {
  if (inputs.size() != list_.inputs.size())
    throw Error(ErrorCode::kArgument, "program", std::to_string(list_.inputs.size()) + " inputs",
                std::to_string(inputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    const BufferDeclaration& buffer = list_.buffers[list_.inputs[i]];
    const std::string place = "input " + std::to_string(i);
    if (inputs[i].dtype != buffer.dtype || inputs[i].shape != buffer.shape)
      throw Error(inputs[i].dtype != buffer.dtype ? ErrorCode::kDtype : ErrorCode::kShape, place,
                  describe(buffer.dtype, buffer.shape), describe(inputs[i].dtype, inputs[i].shape));
    for (uint32_t root = 0; root < list_.buffers.size(); ++root)
      if (list_.written[root] && list_.buffers[root].kind == BufferKind::kBound && storage(root) == inputs[i].storage)
        throw Error(ErrorCode::kArgument, place, "a tensor that the program does not update",
                    "bound tensor " + std::to_string(list_.buffers[root].index));
  }
}

std::vector<Tensor> Program::allocate_outputs() const {
  std::vector<Tensor> outputs;
  outputs.reserve(list_.outputs.size());
  for (const uint32_t id : list_.outputs) {
    const BufferDeclaration& buffer = list_.buffers[id];
    if (backend_.host_memory == 0) {
      auto memory = std::make_shared<DeviceMemory>(backend_, buffer.bytes);
      outputs.push_back({buffer.dtype, buffer.shape, Storage::of_device(std::move(memory))});
      continue;
    }
    const RestingMemory::Block block{&backend_, allocate_result(backend_, buffer.bytes), buffer.bytes, release_result};
    outputs.push_back({buffer.dtype, buffer.shape,
                       Storage::adopted({block.data, block.size}, [block] { RestingMemory::shared().give(block); })});
  }
  return outputs;
}

void Program::execute(const Addresses& addresses, std::byte* scratch, const Aborted& aborted, bool profiled) {
  const AbortScope scope(aborted);
  Clock clock(backend_, profiled);
  clock.stamp();
  Pointers pointers;
  for (size_t index = 0; index < steps_.size(); ++index) {
    check_aborted(&aborted);
    if (index + 1 < steps_.size()) announce(index + 1, addresses.data, pointers);
    start(index, addresses.data, scratch, pointers);
    clock.stamp();
  }
  wait();
  add_to_profile(clock.seconds());
}

/// Says what is read after the next step.
void Program::announce(size_t index, std::span<std::byte* const> addresses, Pointers& pointers) const {
  const Step& step = steps_[index];
  if (backend_.announce == nullptr || step.kernel.get().announced == 0) return;
  pointers.in.clear();
  for (const uint32_t root : step.inputs) pointers.in.push_back(root == kAbsent ? nullptr : addresses[root]);
  backend_.announce(backend_.self, &step.kernel.get(), pointers.in.data());
}

void Program::start(size_t index, std::span<std::byte* const> addresses, std::byte* scratch, Pointers& pointers) const {
  const Step& step = steps_[index];
  const auto at = [&](uint32_t root) { return root == kAbsent ? nullptr : addresses[root]; };
  auto& [in, out] = pointers;
  in.clear();
  out.clear();
  for (const uint32_t root : step.inputs) in.push_back(at(root));
  for (const uint32_t root : step.outputs) out.push_back(at(root));
  heddle_error error;
  check_status(backend_.run(backend_.self, &step.kernel.get(), in.data(), out.data(), scratch, &error), error);
}

void Program::wait() const {
  heddle_error error;
  check_status(backend_.wait(backend_.self, &error), error);
}

void Program::add_to_profile(std::span<const double> seconds) {
  const std::lock_guard lock(profile_mutex_);
  for (size_t index = 0; index < seconds.size(); ++index) {
    ProfileEntry& entry = profile_[list_.instructions[index].op];
    ++entry.calls;
    entry.seconds += seconds[index];
  }
}

/// Null where the backend cannot record what the program consists of.
std::unique_ptr<RecordedRuns> Program::recorded_runs() const {
  const auto recordable = [](const Step& step) { return step.kernel.get().recordable != 0; };
  if (backend_.record == nullptr || !std::ranges::all_of(steps_, recordable)) return nullptr;
  const auto operands = [&](const std::vector<uint32_t>& ids) {
    std::vector<RecordedRuns::Operand> found;
    found.reserve(ids.size());
    for (const uint32_t id : ids) found.push_back({id, list_.buffers[id].bytes});
    return found;
  };
  return std::make_unique<RecordedRuns>(backend_, operands(list_.inputs), operands(list_.outputs));
}

bool Program::replay(const Addresses& addresses, std::byte* scratch) {
  if (!recorded_) return false;
  std::vector<std::byte*> fixed = addresses.data;
  for (const std::vector<uint32_t>* const ids : {&list_.inputs, &list_.outputs})
    for (const uint32_t id : *ids) fixed[id] = nullptr;
  fixed.push_back(scratch);
  const bool started = recorded_->replay(std::move(fixed), addresses.data, [&](std::span<std::byte* const> memory) {
    Pointers pointers;
    for (size_t index = 0; index < steps_.size(); ++index) start(index, memory, scratch, pointers);
  });
  if (!started) return false;
  wait();
  ++replays_;
  return true;
}

std::vector<ProfileEntry> Program::profile() const {
  const std::lock_guard lock(profile_mutex_);
  std::vector<ProfileEntry> entries;
  for (const auto& [op, entry] : profile_) entries.push_back({op, entry.calls, entry.seconds});
  return entries;
}

}  // namespace heddle
