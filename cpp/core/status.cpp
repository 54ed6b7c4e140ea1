#include "core/status.h"

namespace heddle {

const char* error_code_name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kShape: return "ERR_HEDDLE_SHAPE";
    case ErrorCode::kDtype: return "ERR_HEDDLE_DTYPE";
    case ErrorCode::kFormat: return "ERR_HEDDLE_FORMAT";
    case ErrorCode::kOutOfMemory: return "ERR_HEDDLE_OOM";
    case ErrorCode::kAborted: return "ERR_HEDDLE_ABORTED";
    case ErrorCode::kArgument: return "ERR_HEDDLE_ARGUMENT";
    case ErrorCode::kIo: return "ERR_HEDDLE_IO";
    case ErrorCode::kDevice: return "ERR_HEDDLE_DEVICE";
    case ErrorCode::kInternal: return "ERR_HEDDLE_INTERNAL";
  }
  return "ERR_HEDDLE_INTERNAL";
}

Error::Error(ErrorCode code, std::string place, std::string expected, std::string got)
    : code_(code), place_(std::move(place)), expected_(std::move(expected)), got_(std::move(got)) {
  message_ = place_ + ": expected " + expected_ + ", got " + got_;
}

}  // namespace heddle
