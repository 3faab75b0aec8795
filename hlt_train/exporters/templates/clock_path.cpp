// The time per event from branch values to decision: derived variables, sorting, padding, normalisation, network, score, threshold; hot caches, one core.
//
//   clock_path PATH CORE ROUNDS FEATURES
//
// FEATURES has the layout of golden_features.bin; what it says of expected features is not read. Selections are not part of features.hpp, nor of this time.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "features.hpp"
#include "net.hpp"
#include "timing.hpp"
#include "working_points.hpp"

#include "clock.hpp"

using namespace hlt_train_clock;

namespace {

// `derive` takes the number of the object where the examples are objects.
template <class B, class X>
auto derive_one(const B& b, int object, X& x) -> decltype(net::derive(b, object, x)) {
  net::derive(b, object, x);
}
template <class B, class X>
auto derive_one(const B& b, int, X& x) -> decltype(net::derive(b, x)) {
  net::derive(b, x);
}

struct Event {
  const void* branch[net::n_branches + 1] = {};
  std::int32_t sizes[net::n_lists + 1] = {};
  int object = 0;
};

bool decide(const net::Path& path, const Event& event) {
  net::Features x;
  derive_one(net::gather(event.branch, event.sizes), event.object, x);
  const float* found[net::n_groups];
  std::int32_t count[net::n_groups];
  net::view(x, found, count);
  net::Logit logits[net::n_outputs];
  path.evaluate_groups(found, count, logits);
  return net::n_working_points > 0 && net::passes(net::working_points[0], net::score(logits));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) fail("usage: clock_path PATH CORE ROUNDS FEATURES");
  pin(argv[2]);
  const net::Path& path = path_called(argv[1]);
  std::FILE* stream = opened(argv[4]);
  take<char>(stream, 8);
  const std::size_t n = static_cast<std::size_t>(take<std::int64_t>(stream, 1)[0]);
  const std::vector<std::int32_t> object = take<std::int32_t>(stream, net::of_object ? n : 0);
  std::vector<std::vector<std::int32_t>> elements(net::n_lists);
  for (std::size_t l = 0; l < elements.size(); ++l)
    if (net::lists[l].stored) elements[l] = take<std::int32_t>(stream, n);
  std::vector<std::vector<unsigned char>> values(net::n_branches);
  for (std::size_t k = 0; k < values.size(); ++k) {
    std::size_t size = n;
    if (net::branches[k].list >= 0) {
      size = 0;
      for (const std::int32_t count : elements[static_cast<std::size_t>(net::branches[k].list)]) size += static_cast<std::size_t>(count);
    }
    values[k] = take<unsigned char>(stream, size * net::branches[k].bytes);
  }
  std::fclose(stream);
  std::vector<Event> events(n);
  std::vector<std::size_t> at(values.size());
  for (std::size_t k = 0; k < n; ++k) {
    events[k].object = net::of_object ? object[k] : 0;
    for (std::size_t l = 0; l < elements.size(); ++l) events[k].sizes[l] = elements[l].empty() ? 0 : elements[l][k];
    for (std::size_t i = 0; i < values.size(); ++i) {
      events[k].branch[i] = values[i].data() + at[i];
      at[i] += net::branches[i].bytes * (net::branches[i].list < 0 ? 1 : static_cast<std::size_t>(events[k].sizes[net::branches[i].list]));
    }
  }
  volatile long passed = 0;
  settle([&] {
    for (const Event& event : events) passed = passed + (decide(path, event) ? 1 : 0);
  });
  passed = 0;
  std::vector<double> times;
  for (int round = 0; round < std::atoi(argv[3]); ++round)
    for (const Event& event : events) {
      const double start = hlt_train_timing::now();
      const bool kept = decide(path, event);
      times.push_back(hlt_train_timing::now() - start);
      passed = passed + (kept ? 1 : 0);
    }
  double sum = 0.0;
  for (const double time : times) sum += time;
  std::vector<double> clocks = readings();
  std::printf("{\"median_ns\": %.1f, \"p99_ns\": %.1f, \"mean_ns\": %.1f, \"clock_ns\": %.3f, \"events\": %zu, \"passed\": %ld}\n",
              hlt_train_timing::quantile(times, 0.5), hlt_train_timing::quantile(times, 0.99), sum / static_cast<double>(times.size()),
              hlt_train_timing::quantile(clocks, 0.5), n, static_cast<long>(passed));
  return 0;
}
