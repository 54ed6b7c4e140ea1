// How the core reports failure: one exception type, caught at the N-API boundary and in worker threads,
// where it becomes a HeddleError with the same four fields.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace heddle {

enum class ErrorCode { kShape, kDtype, kFormat, kOutOfMemory, kAborted, kArgument, kIo, kDevice, kInternal };

/// The code's name as TypeScript sees it, e.g. "ERR_HEDDLE_SHAPE".
const char* error_code_name(ErrorCode code) noexcept;

class Error : public std::exception {
 public:
  /// `place`: operator, file or tensor the failure belongs to; `expected`/`got` in words.
  Error(ErrorCode code, std::string place, std::string expected, std::string got);

  const char* what() const noexcept override { return message_.c_str(); }
  ErrorCode code() const noexcept { return code_; }
  const std::string& place() const noexcept { return place_; }
  const std::string& expected() const noexcept { return expected_; }
  const std::string& got() const noexcept { return got_; }

 private:
  ErrorCode code_;
  std::string place_;
  std::string expected_;
  std::string got_;
  std::string message_;
};

/// Throws unless `condition` holds.
inline void require(bool condition, ErrorCode code, const char* place, const char* expected, std::string got) {
  if (!condition) throw Error(code, place, expected, std::move(got));
}

}  // namespace heddle
