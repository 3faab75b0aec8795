// A C interface to net.hpp: many events in one call, for ctypes, Fortran, or a framework's plug-in.
//
//   c++ -std=c++17 -O2 -shared -fPIC net_c.cpp -o libnet.so
#include "net.hpp"
#include "timing.hpp"

extern "C" {

std::int32_t net_n_groups() { return net::n_groups; }
const char* net_group_name(std::int32_t g) { return net::groups[g].name; }
std::int32_t net_group_variables(std::int32_t g) { return net::groups[g].variables; }
std::int32_t net_group_length(std::int32_t g) { return net::groups[g].length; }  // 0: scalars
std::int32_t net_n_outputs() { return net::n_outputs; }
const char* net_output_name(std::int32_t o) { return net::outputs[o]; }
std::int32_t net_logit_bytes() { return net::exact ? static_cast<std::int32_t>(sizeof(net::Logit)) : 0; }  // 0: float

std::int32_t net_n_paths() { return net::n_paths; }
const char* net_path_name(std::int32_t p) { return net::paths[p].name; }

// By path p. x[g]: [n, variables] or [n, length, variables] of group g; count[g]: [n], read for constituents only; logits: [n, n_outputs].
void net_evaluate_path(std::int32_t p, const float* const* x, const std::int32_t* const* count, std::int64_t n, void* logits) {
  net::Logit* out = static_cast<net::Logit*>(logits);
  for (std::int64_t k = 0; k < n; ++k) {
    const float* at[net::n_groups];
    std::int32_t counts[net::n_groups];
    for (int g = 0; g < net::n_groups; ++g) {
      const net::Group& group = net::groups[g];
      at[g] = x[g] + k * group.variables * (group.length > 0 ? group.length : 1);
      counts[g] = group.length > 0 ? count[g][k] : 0;
    }
    net::paths[p].evaluate(at, counts, out + k * net::n_outputs);
  }
}

void net_evaluate(const float* const* x, const std::int32_t* const* count, std::int64_t n, void* logits) {
  net_evaluate_path(net::n_paths - 1, x, count, n, logits);
}

// Times single events among the n given; result: the nine numbers of hlt_train_timing::Result.
void net_time(const float* const* x, const std::int32_t* const* count, std::int64_t n, double* result) {
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
    net::evaluate_groups(at, counts, logits);
    return static_cast<float>(logits[0]);
  };
  const hlt_train_timing::Result r = hlt_train_timing::measure(call, n);
  const double all[] = {r.chain_median, r.chain_p99, r.single_median, r.single_p99, r.cold_median, r.cold_p99, r.clock, r.blocks, r.calls};
  std::memcpy(result, all, sizeof all);
}

}  // extern "C"
