// The C interface of net_c.h.
//
//   c++ -std=c++17 -O2 -shared -fPIC net_c.cpp -o libnet.so
#include "net_c.h"

#include "net.hpp"
#include "timing.hpp"

extern "C" {

std::int32_t net_n_groups() { return net::n_groups; }
const char* net_group_name(std::int32_t g) { return net::groups[g].name; }
std::int32_t net_group_variables(std::int32_t g) { return net::groups[g].variables; }
std::int32_t net_group_length(std::int32_t g) { return net::groups[g].length; }
std::int32_t net_n_outputs() { return net::n_outputs; }
const char* net_output_name(std::int32_t o) { return net::outputs[o]; }
std::int32_t net_output_exponent(std::int32_t o) { return net::exponents[o]; }
std::int32_t net_logit_bytes() { return net::exact ? static_cast<std::int32_t>(sizeof(net::Logit)) : 0; }

std::int32_t net_n_paths() { return net::n_paths; }
const char* net_path_name(std::int32_t p) { return net::paths[p].name; }
std::int32_t net_path_available(std::int32_t p) { return net::paths[p].available() ? 1 : 0; }
const char* net_dispatch_error() { return net::dispatch_error(); }
std::int32_t net_path() { return net::dispatch_error() != nullptr ? -1 : static_cast<std::int32_t>(&net::path() - net::paths); }

std::int32_t net_evaluate_path(std::int32_t p, const float* const* x, const std::int32_t* const* count, std::int64_t n, void* logits) {
  if (p < 0 || p >= net::n_paths || !net::paths[p].available()) return 1;
  net::evaluate_batch(net::paths[p], x, count, n, static_cast<net::Logit*>(logits));
  return 0;
}

std::int32_t net_evaluate(const float* const* x, const std::int32_t* const* count, std::int64_t n, void* logits) {
  return net_evaluate_path(net_path(), x, count, n, logits);
}

std::int32_t net_time(std::int32_t p, const float* const* x, const std::int32_t* const* count, std::int64_t n, double* result) {
  if (p < 0 || p >= net::n_paths || !net::paths[p].available()) return 1;
  std::vector<std::vector<float>> moved(net::n_groups);
  for (int g = 0; g < net::n_groups; ++g) {
    const std::int64_t size = std::int64_t{net::groups[g].variables} * (net::groups[g].length > 0 ? net::groups[g].length : 1);
    moved[static_cast<std::size_t>(g)].assign(x[g], x[g] + n * size);
  }
  const auto call = [&](std::int64_t k, float perturb) {
    const float* at[net::n_groups];
    std::int32_t counts[net::n_groups];
    for (int g = 0; g < net::n_groups; ++g) {
      const net::Group& group = net::groups[g];
      float* values = moved[static_cast<std::size_t>(g)].data() + k * group.variables * (group.length > 0 ? group.length : 1);
      if (g == 0) values[0] += perturb;
      at[g] = values;
      counts[g] = group.length > 0 ? count[g][k] : 0;
    }
    net::Logit logits[net::n_outputs];
    net::paths[p].evaluate_groups(at, counts, logits);
    return static_cast<float>(logits[0]);
  };
  const hlt_train_timing::Result r = hlt_train_timing::measure(call, n);
  const double all[] = {r.chain_median, r.chain_p99, r.single_median, r.single_p99, r.cold_median, r.cold_p99, r.clock, r.blocks, r.calls};
  std::memcpy(result, all, sizeof all);
  return 0;
}

}  // extern "C"
