// What the programs under ThreadSanitizer have in common.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

constexpr size_t kCallers = 4;

inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

/// `body(caller)` on so many threads at once.
template <class Body>
void together(const Body& body) {
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < kCallers; ++caller) callers.emplace_back([&body, caller] { body(caller); });
  for (std::thread& caller : callers) caller.join();
}
