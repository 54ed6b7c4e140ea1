#include <cstdlib>
#include <string>

#include "core/status.h"
#include "cuda/library/products.h"

namespace heddle::cuda {

bool tf32_allowed() {
  const char* const said = std::getenv("HEDDLE_CUDA_TF32");
  const std::string value = said == nullptr || *said == '\0' ? "0" : said;
  if (value != "0" && value != "1") throw Error(ErrorCode::kArgument, "HEDDLE_CUDA_TF32", "0 or 1", value);
  return value == "1";
}

}  // namespace heddle::cuda
