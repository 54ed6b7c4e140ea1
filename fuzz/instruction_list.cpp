// libFuzzer's way into the reader of instruction lists: it may refuse bytes with an Error and must do nothing else.
// Built and run by fuzz/run.mjs.
#include "program/instruction_list.h"

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/status.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    heddle::decode_instruction_list({reinterpret_cast<const std::byte*>(data), size});
  } catch (const heddle::Error&) {
  }
  return 0;
}
