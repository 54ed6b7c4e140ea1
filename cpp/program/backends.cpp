#include "program/backends.h"

#include <map>
#include <mutex>
#include <string>

#include "core/status.h"
#include "program/cpu_backend.h"

namespace heddle {

namespace {

struct Backends {
  std::mutex mutex;
  std::map<std::string, const heddle_backend*, std::less<>> by_name{{cpu_backend().name, &cpu_backend()}};
};

Backends& backends() {
  static Backends kBackends;
  return kBackends;
}

}  // namespace

void add_backend(const heddle_backend& table) {
  if (table.version != HEDDLE_BACKEND_VERSION)
    throw Error(ErrorCode::kDevice, "backend",
                "a table of version " + std::to_string(HEDDLE_BACKEND_VERSION) + ", built from the same sources",
                "version " + std::to_string(table.version));
  const std::lock_guard lock(backends().mutex);
  backends().by_name.emplace(table.name, &table);
}

const heddle_backend& backend_named(std::string_view name) {
  const std::lock_guard lock(backends().mutex);
  const auto found = backends().by_name.find(name);
  if (found == backends().by_name.end())
    throw Error(ErrorCode::kDevice, "device " + std::string(name), "a backend that has been loaded", "none");
  return *found->second;
}

}  // namespace heddle
