// Checks net.hpp against the golden vectors beside it, integer by integer, and times it. Run it in the export directory:
//
//   c++ -std=c++17 -O2 main.cpp -o selftest && ./selftest
//
// Exit code 0: every logit, score and decision agrees in every path that this processor has (the others are said to be not run); 1: something differs, or a file is damaged. Option: --no-time.
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "net.hpp"
#include "timing.hpp"
#include "working_points.hpp"

namespace {

using Expected = std::conditional_t<net::exact, std::int64_t, float>;

// golden.bin, little-endian: "HLTGOLD1", int64 vectors, int64 working points, the groups, logits, scores, decisions, categories.
struct Golden {
  std::int64_t n = 0;
  std::vector<std::vector<float>> x;             // per group, padded to its length
  std::vector<std::vector<std::int32_t>> count;  // per group of constituents
  std::vector<Expected> logits;
  std::vector<std::int64_t> score;
  std::vector<std::uint8_t> decisions;  // [working points][n]
};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::exit(1);
}

class File {
 public:
  explicit File(const char* path) : stream_(std::fopen(path, "rb")) {
    if (stream_ == nullptr) fail("cannot open golden.bin: run this in the export directory");
  }
  ~File() { std::fclose(stream_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  template <class T>
  void read(T* to, std::size_t count) {
    if (std::fread(to, sizeof(T), count, stream_) != count) fail("golden.bin is damaged: it is too short");
  }
  template <class T>
  std::vector<T> take(std::size_t count) {
    std::vector<T> values(count);
    if (count > 0) read(values.data(), count);
    return values;
  }
  bool at_end() { return std::fgetc(stream_) == EOF; }

 private:
  std::FILE* stream_;
};

// Of a float network: the largest deviation of a logit that golden.json allows. An exact network has none.
double tolerance() {
  if (net::exact) return 0.0;
  std::string text;
  if (std::FILE* stream = std::fopen("golden.json", "rb")) {
    for (int c = std::fgetc(stream); c != EOF; c = std::fgetc(stream)) text.push_back(static_cast<char>(c));
    std::fclose(stream);
  }
  const std::string key = "\"tolerance\":";
  const std::size_t at = text.find(key);
  if (at == std::string::npos) fail("golden.json states no tolerance for this float network");
  return std::strtod(text.c_str() + at + key.size(), nullptr);
}

Golden load() {
  File file("golden.bin");
  char magic[8];
  std::int64_t head[2];
  file.read(magic, 8);
  file.read(head, 2);
  if (std::memcmp(magic, "HLTGOLD1", 8) != 0) fail("golden.bin is damaged: it does not begin with HLTGOLD1");
  if (head[0] < 1 || head[0] > (std::int64_t{1} << 40)) fail("golden.bin is damaged: no vectors");
  if (head[1] != net::n_working_points) fail("golden.bin and working_points.hpp have different numbers of working points");
  Golden golden;
  golden.n = head[0];
  const std::size_t n = static_cast<std::size_t>(golden.n);
  for (const net::Group& group : net::groups) {
    const std::size_t variables = static_cast<std::size_t>(group.variables);
    if (group.length == 0) {
      golden.count.emplace_back();
      golden.x.push_back(file.take<float>(n * variables));
      continue;
    }
    golden.count.push_back(file.take<std::int32_t>(n));
    // What must never be read: NaN and huge values beyond every count.
    const std::size_t size = static_cast<std::size_t>(group.length) * variables;
    std::vector<float> padded(n * size);
    for (std::size_t k = 0; k < n; ++k) {
      float* row = padded.data() + k * size;
      std::fill(row, row + size, k % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : 3e38f);
      file.read(row, static_cast<std::size_t>(std::clamp(golden.count.back()[k], std::int32_t{0}, std::int32_t{group.length})) * variables);
    }
    golden.x.push_back(std::move(padded));
  }
  golden.logits = file.take<Expected>(n * net::n_outputs);
  if (net::has_score) golden.score = file.take<std::int64_t>(n);
  golden.decisions = file.take<std::uint8_t>(n * static_cast<std::size_t>(net::n_working_points));
  file.take<std::uint8_t>(n);
  if (!file.at_end()) fail("golden.bin is damaged: it is too long");
  return golden;
}

void evaluate(const net::Path& path, const Golden& golden, std::size_t k, net::Logit* logits) {
  const float* x[net::n_groups];
  std::int32_t count[net::n_groups];
  for (std::size_t g = 0; g < static_cast<std::size_t>(net::n_groups); ++g) {
    x[g] = golden.x[g].data() + k * (golden.x[g].size() / static_cast<std::size_t>(golden.n));
    count[g] = golden.count[g].empty() ? 0 : golden.count[g][k];
  }
  path.evaluate_groups(x, count, logits);
}

bool differs(net::Logit found, Expected expected, double allowed, double& deviation) {
  if constexpr (net::exact) {
    static_cast<void>(allowed);
    static_cast<void>(deviation);
    return std::int64_t{found} != expected;
  } else {
    if (found == expected) return false;
    const double d = std::abs(static_cast<double>(found) - static_cast<double>(expected));
    if (!(d <= deviation)) deviation = d;
    return !(d <= allowed);
  }
}

struct Differences {
  std::int64_t logits = 0, scores = 0, decisions = 0;
  double deviation = 0.0;
};

Differences compare(const net::Path& path, const Golden& golden, double allowed) {
  Differences wrong;
  const std::size_t n = static_cast<std::size_t>(golden.n);
  for (std::size_t k = 0; k < n; ++k) {
    net::Logit logits[net::n_outputs];
    evaluate(path, golden, k, logits);
    for (std::size_t o = 0; o < net::n_outputs; ++o)
      wrong.logits += differs(logits[o], golden.logits[k * net::n_outputs + o], allowed, wrong.deviation) ? 1 : 0;
    if constexpr (net::has_score) {
      const std::int64_t score = net::score(logits);
      wrong.scores += score != golden.score[k] ? 1 : 0;
      for (std::size_t p = 0; p < static_cast<std::size_t>(net::n_working_points); ++p)
        wrong.decisions += net::passes(net::working_points[p], score) != (golden.decisions[p * n + k] != 0) ? 1 : 0;
    }
  }
  return wrong;
}

// Every path that this processor has on every vector; prints what differs and returns how much.
std::int64_t check(const Golden& golden) {
  const double allowed = tolerance();
  Differences all;
  std::string names;
  for (const net::Path& path : net::paths) {
    if (!path.available()) {
      names += (names.empty() ? "" : " ") + std::string(path.name) + "(not run)";
      continue;
    }
    const Differences wrong = compare(path, golden, allowed);
    all.logits += wrong.logits;
    all.scores += wrong.scores;
    all.decisions += wrong.decisions;
    if (!(wrong.deviation <= all.deviation)) all.deviation = wrong.deviation;
    names += (names.empty() ? "" : " ") + std::string(path.name) + (wrong.logits + wrong.scores + wrong.decisions > 0 ? "(differs)" : "");
  }
  std::printf("paths                  %s\n", names.c_str());
  std::printf("vectors                %lld\n", static_cast<long long>(golden.n));
  std::printf("differing logits       %lld\n", static_cast<long long>(all.logits));
  if (net::has_score) std::printf("differing scores       %lld\n", static_cast<long long>(all.scores));
  if (net::has_score) std::printf("differing decisions    %lld\n", static_cast<long long>(all.decisions));
  if (!net::exact) std::printf("largest deviation      %.9g\ntolerance              %.9g\n", all.deviation, allowed);
  for (int p = 0; p < net::n_working_points; ++p) {
    const net::WorkingPoint& point = net::working_points[p];
    if (point.reachable) std::printf("working point %d        threshold %lld (%s)\n", p, static_cast<long long>(point.threshold), point.name);
    if (!point.reachable) std::printf("working point %d        threshold none (%s)\n", p, point.name);
  }
  return all.logits + all.scores + all.decisions;
}

void time(Golden& golden) {
  const auto call = [&](std::int64_t k, float perturb) {
    // The first value that the network reads takes part in the dependence.
    std::vector<float>& first = golden.x[0];
    first[static_cast<std::size_t>(k) * (first.size() / static_cast<std::size_t>(golden.n))] += perturb;
    net::Logit logits[net::n_outputs];
    evaluate(net::path(), golden, static_cast<std::size_t>(k), logits);
    return static_cast<float>(logits[0]);
  };
  const hlt_train_timing::Result r = hlt_train_timing::measure(call, std::min(golden.n, std::int64_t{1000}));
  std::printf("timed path             %s\n", net::path().name);
  std::printf("dependent calls        %.1f ns median, %.1f ns p99 over %.0f blocks of %.0f\n", r.chain_median, r.chain_p99, r.blocks, r.calls);
  std::printf("single call            %.0f ns median, %.0f ns p99, the clock's %.0f ns included\n", r.single_median, r.single_p99, r.clock);
  std::printf("single call, cold      %.0f ns median, %.0f ns p99\n", r.cold_median, r.cold_p99);
}

}  // namespace

int main(int argc, char** argv) {
  if (std::fegetround() != FE_TONEAREST) fail("the processor does not round to nearest");
  if (net::dispatch_error() != nullptr) fail(net::dispatch_error());
  Golden golden = load();
  const std::int64_t wrong = check(golden);
  if (wrong != 0) fail("the artefact differs from the golden model");
  if (argc < 2 || std::string(argv[1]) != "--no-time") time(golden);
  std::printf("passed\n");
  return 0;
}
