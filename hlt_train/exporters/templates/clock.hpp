// What the programs that time an export share: files of events, one core, a code path by its name, the processor's clock. Include net.hpp and timing.hpp first.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace hlt_train_clock {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::exit(1);
}

inline std::FILE* opened(const char* path) {
  std::FILE* stream = std::fopen(path, "rb");
  if (stream == nullptr) fail("the events cannot be opened");
  return stream;
}

template <class T>
std::vector<T> take(std::FILE* stream, std::size_t count) {
  std::vector<T> values(count);
  if (count > 0 && std::fread(values.data(), sizeof(T), count, stream) != count) fail("the events are damaged");
  return values;
}

inline void pin(const char* core) {
#if defined(__linux__)
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(std::atoi(core), &cores);
  if (sched_setaffinity(0, sizeof cores, &cores) != 0) fail("the core cannot be taken");
#else
  (void)core;
#endif
}

inline const net::Path& path_called(const std::string& name) {
  for (const net::Path& one : net::paths)
    if (one.name == name && one.available()) return one;
  fail("this processor has no such path");
}

// Calls `work` until the clock of the processor has settled.
template <class F>
void settle(const F& work) {
  const double settled = hlt_train_timing::now() + 5e7;
  do work();
  while (hlt_train_timing::now() < settled);
}

// The times that reading the clock takes, in ns.
inline std::vector<double> readings() {
  std::vector<double> found;
  for (int k = 0; k < 10000; ++k) {
    const double start = hlt_train_timing::now();
    found.push_back(hlt_train_timing::now() - start);
  }
  return found;
}

}  // namespace hlt_train_clock
