// The time of a call as a budget means it: the median over blocks of the mean time of dependent calls, on distinct events, with hot caches, on one core.
//
//   clock_network PATH CORE BLOCKS CALLS EVENTS
//
// EVENTS, little-endian: int64 n, then per group in the order of the network float32 [n][length or 1][variables] and, of constituents, int32 [n] counts.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "net.hpp"
#include "timing.hpp"

#include "clock.hpp"

using namespace hlt_train_clock;

int main(int argc, char** argv) {
  if (argc != 6) fail("usage: clock_network PATH CORE BLOCKS CALLS EVENTS");
  pin(argv[2]);
  const net::Path& path = path_called(argv[1]);
  std::FILE* stream = opened(argv[5]);
  const std::size_t n = static_cast<std::size_t>(take<std::int64_t>(stream, 1)[0]);
  std::vector<std::vector<float>> x;
  std::vector<std::vector<std::int32_t>> counts;
  for (const net::Group& group : net::groups) {
    x.push_back(take<float>(stream, n * static_cast<std::size_t>(group.variables) * static_cast<std::size_t>(group.length > 0 ? group.length : 1)));
    counts.push_back(take<std::int32_t>(stream, group.length > 0 ? n : 0));
  }
  std::fclose(stream);
  std::size_t at = 0;
  float last = 0.0f;
  const auto chain = [&](int calls) {
    const double start = hlt_train_timing::now();
    for (int k = 0; k < calls; ++k) {
      at = at + 1 < n ? at + 1 : 0;
      const float* pointers[net::n_groups];
      std::int32_t sizes[net::n_groups];
      for (std::size_t g = 0; g < static_cast<std::size_t>(net::n_groups); ++g) {
        float* row = x[g].data() + at * (x[g].size() / n);
        if (g == 0) row[0] += last * 1e-30f;  // the first value that is read waits for the call before
        pointers[g] = row;
        sizes[g] = counts[g].empty() ? 0 : counts[g][at];
      }
      net::Logit logits[net::n_outputs];
      path.evaluate_groups(pointers, sizes, logits);
      last = static_cast<float>(logits[0]);
    }
    return (hlt_train_timing::now() - start) / calls;
  };
  const int blocks = std::atoi(argv[3]), calls = std::atoi(argv[4]);
  settle([&] { chain(100); });
  std::vector<double> times;
  for (int b = 0; b < blocks; ++b) times.push_back(chain(calls));
  std::vector<double> clocks = readings();
  double tick = 1e9;
  for (const double clock : clocks)
    if (clock > 0 && clock < tick) tick = clock;
  std::printf("{\"median_ns\": %.4f, \"p99_ns\": %.4f, \"p999_ns\": %.4f, \"clock_ns\": %.3f, \"tick_ns\": %.3f, \"last\": %g}\n",
              hlt_train_timing::quantile(times, 0.5), hlt_train_timing::quantile(times, 0.99), hlt_train_timing::quantile(times, 0.999),
              hlt_train_timing::quantile(clocks, 0.5), tick, static_cast<double>(last));
  return 0;
}
