#include "program/recorded_runs.h"

#include <utility>

#include "core/backend_status.h"
#include "core/dtype.h"

namespace heddle {

size_t RecordedRuns::slot_bytes() const {
  size_t bytes = 0;
  for (const std::vector<Operand>* const operands : {&inputs_, &outputs_})
    for (const Operand& operand : *operands) bytes = checked_add(bytes, operand.bytes, "program");
  return bytes;
}

bool RecordedRuns::replay(std::vector<std::byte*> fixed, std::span<std::byte* const> addresses,
                          const StartAll& start_all) {
  if (recording_ == nullptr || fixed != recorded_) {
    const bool settled = fixed == last_;
    last_ = std::move(fixed);
    if (!settled || hopeless_ || !record(addresses, start_all)) return false;
    recorded_ = last_;
  }
  for (size_t i = 0; i < inputs_.size(); ++i) copy(slots_[i]->data(), addresses[inputs_[i].root], inputs_[i].bytes);
  heddle_error error;
  check_status(backend_.replay(backend_.self, recording_, &error), error);
  for (size_t i = 0; i < outputs_.size(); ++i)
    copy(addresses[outputs_[i].root], slots_[inputs_.size() + i]->data(), outputs_[i].bytes);
  return true;
}

void RecordedRuns::forget() noexcept {
  if (recording_ != nullptr) backend_.forget(backend_.self, std::exchange(recording_, nullptr));
}

/// Nothing has been computed when it fails: the run that follows does it, and says what is wrong if it is not the
/// recording alone.
bool RecordedRuns::record(std::span<std::byte* const> addresses, const StartAll& start_all) {
  forget();
  hopeless_ = true;
  heddle_error error;
  try {
    make_slots();
    check_status(backend_.record(backend_.self, &error), error);
  } catch (const Error&) {
    return false;
  }
  std::vector<std::byte*> with_slots(addresses.begin(), addresses.end());
  for (size_t i = 0; i < inputs_.size(); ++i) with_slots[inputs_[i].root] = slots_[i]->data();
  for (size_t i = 0; i < outputs_.size(); ++i) with_slots[outputs_[i].root] = slots_[inputs_.size() + i]->data();
  bool whole = true;
  try {
    start_all(with_slots);
  } catch (const Error&) {
    whole = false;
  }
  whole = backend_.recorded(backend_.self, &recording_, &error) == 0 && whole;
  if (!whole) forget();
  hopeless_ = !whole;
  return whole;
}

void RecordedRuns::make_slots() {
  if (!slots_.empty()) return;
  std::vector<std::unique_ptr<DeviceMemory>> slots;
  for (const std::vector<Operand>* const operands : {&inputs_, &outputs_})
    for (const Operand& operand : *operands) slots.push_back(std::make_unique<DeviceMemory>(backend_, operand.bytes));
  slots_ = std::move(slots);
}

void RecordedRuns::copy(void* target, const void* source, size_t bytes) const {
  heddle_error error;
  check_status(backend_.copy(backend_.self, target, source, bytes, &error), error);
}

}  // namespace heddle
