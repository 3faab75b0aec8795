// How long one call takes on this machine. Steady clock, one thread, nothing pinned: pin the process (taskset) where figures are to be compared.
#ifndef HLT_TRAIN_TIMING_HPP
#define HLT_TRAIN_TIMING_HPP

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace hlt_train_timing {

// Nanoseconds per call; `clock` is the overhead of reading the clock, which `single` and `cold` contain.
struct Result {
  double chain_median, chain_p99;    // mean of a block of dependent calls: each input takes an output of the call before
  double single_median, single_p99;  // one call between two readings of the clock, hot caches
  double cold_median, cold_p99;      // the same after 2 MiB of other memory were touched
  double clock;
  double blocks, calls;  // of the chain
};

inline double now() {
  return static_cast<double>(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

inline double quantile(std::vector<double> v, double q) {
  std::sort(v.begin(), v.end());
  return v[static_cast<std::size_t>(q * static_cast<double>(v.size() - 1))];
}

// call(event, perturb): evaluates event number `event` with its first input moved by `perturb`, and returns one output as a float.
template <class Call>
Result measure(Call call, std::int64_t events) {
  volatile float sink = 0.0f;
  float last = 0.0f;
  std::int64_t at = 0;
  const auto next = [&] {
    at = at + 1 < events ? at + 1 : 0;
    return at;
  };
  const auto chain = [&](int calls) {
    const double start = now();
    for (int k = 0; k < calls; ++k) last = call(next(), last * 1e-30f);
    return (now() - start) / calls;
  };
  chain(64);
  const double guess = chain(64);
  const int blocks = 200;
  const int calls = static_cast<int>(std::min(1000.0, std::max(8.0, 5e6 / guess)));  // a block takes at most about 5 ms
  chain(static_cast<int>(std::max(static_cast<double>(calls), 2e7 / guess)));        // the clock of the processor settles
  std::vector<double> chained, singles, colds, clocks;
  for (int b = 0; b < blocks; ++b) chained.push_back(chain(calls));
  for (int k = 0; k < 1000; ++k) {
    const double start = now();
    clocks.push_back(now() - start);
  }
  const int many = static_cast<int>(std::min(20000.0, std::max(200.0, 2e8 / guess)));
  for (int k = 0; k < many; ++k) {
    const double start = now();
    last = call(next(), 0.0f);
    singles.push_back(now() - start);
    sink = last;
  }
  std::vector<unsigned char> other(std::size_t{2} << 20);
  unsigned char touched = 0;
  for (int k = 0; k < 1000; ++k) {
    for (std::size_t line = 0; line < other.size(); line += 64) touched = ++other[line];
    const double start = now();
    last = call(next(), 0.0f);
    colds.push_back(now() - start);
    sink = last + static_cast<float>(touched);
  }
  static_cast<void>(sink);
  return {quantile(chained, 0.5), quantile(chained, 0.99), quantile(singles, 0.5), quantile(singles, 0.99), quantile(colds, 0.5), quantile(colds, 0.99),
          quantile(clocks, 0.5),  static_cast<double>(blocks), static_cast<double>(calls)};
}

}  // namespace hlt_train_timing

#endif  // HLT_TRAIN_TIMING_HPP
