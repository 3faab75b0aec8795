// Checks net.hpp against the golden vectors beside it, integer by integer, and times it. Run it in the export directory:
//
//   c++ -std=c++17 -O2 main.cpp -o selftest && ./selftest
//
// First it compares features.hpp with what NumPy made of the branch values in golden_features.bin, within the tolerance that features.hpp states.
// Exit code 0: every feature agrees within it, and every logit, score and decision agrees in every path that this processor has (the others are said to be not run); 1: something differs, or a file is damaged. Option: --no-time.
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <string>

#if !defined(__FAST_MATH__)
#include "features.hpp"
#endif
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

[[noreturn]] void fail(const char* what, const char* file = nullptr) {
  std::fprintf(stderr, file == nullptr ? "FAILED: %s\n" : "FAILED: %s (%s)\n", what, file);
  std::exit(1);
}

class File {
 public:
  explicit File(const char* path) : path_(path), stream_(std::fopen(path, "rb")) {
    if (stream_ == nullptr) fail("it cannot be opened: run this in the export directory", path);
  }
  ~File() { std::fclose(stream_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  template <class T>
  void read(T* to, std::size_t count) {
    if (std::fread(to, sizeof(T), count, stream_) != count) damaged("it is too short");
  }
  template <class T>
  std::vector<T> take(std::size_t count) {
    std::vector<T> values(count);
    if (count > 0) read(values.data(), count);
    return values;
  }
  void end() {
    if (std::fgetc(stream_) != EOF) damaged("it is too long");
  }
  [[noreturn]] void damaged(const char* what) const { fail(what, path_); }

 private:
  const char* path_;
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
  file.end();
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

#if !defined(__FAST_MATH__)
static_assert(net::n_feature_groups == net::n_groups, "features.hpp belongs to this network");

struct Deviations {
  std::int64_t compared = 0, differing = 0, beyond = 0, jumping = 0, jumps = 0, ulp = 0;  // jumping: of variables that may jump; jumps: those of them beyond
  double absolute = 0.0;
};

// float32 between two finite numbers.
std::int64_t steps(float a, float b) {
  const auto place = [](float v) {
    std::int32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits < 0 ? -std::int64_t{bits & 0x7fffffff} : std::int64_t{bits};
  };
  const std::int64_t d = place(a) - place(b);
  return d < 0 ? -d : d;
}

void compare(float found, float expected, const net::Derived& variable, double largest, Deviations& all) {
  ++all.compared;
  if (variable.origin == net::Origin::jumps) ++all.jumping;
  if (found == expected || (found != found && expected != expected)) return;
  ++all.differing;
  const double d = std::abs(static_cast<double>(found) - static_cast<double>(expected));
  const bool finite = d <= std::numeric_limits<double>::max();
  const std::int64_t ulp = finite ? steps(found, expected) : std::numeric_limits<std::int64_t>::max();
  const bool near = variable.origin != net::Origin::exact && finite && (ulp <= net::tolerance_ulp || d <= net::tolerance_relative * largest);
  if (!near && variable.origin == net::Origin::jumps) {
    ++all.jumps;
    return;
  }
  if (!(d <= all.absolute)) all.absolute = d;
  if (ulp > all.ulp) all.ulp = ulp;
  if (!near) {
    if (all.beyond++ == 0) std::printf("first feature beyond   %s: %.9g, expected %.9g\n", variable.name, static_cast<double>(found), static_cast<double>(expected));
  }
}

// `derive` takes the number of the object where the examples are objects.
template <class B, class X>
auto derive_one(const B& b, int object, X& x) -> decltype(net::derive(b, object, x)) {
  net::derive(b, object, x);
}
template <class B, class X>
auto derive_one(const B& b, int, X& x) -> decltype(net::derive(b, x)) {
  net::derive(b, x);
}

// features.hpp on every vector of golden_features.bin; returns how many values lie beyond the tolerance.
std::int64_t check_features() {
  if (!net::derives) return 0;
  File file("golden_features.bin");
  char magic[8];
  std::int64_t n = 0;
  file.read(magic, 8);
  file.read(&n, 1);
  if (std::memcmp(magic, "HLTFEAT1", 8) != 0) file.damaged("it does not begin with HLTFEAT1");
  if (n < 1 || n > (std::int64_t{1} << 40)) file.damaged("it holds no vectors");
  const std::size_t rows = static_cast<std::size_t>(n);
  const std::vector<std::int32_t> object = file.take<std::int32_t>(net::of_object ? rows : 0);
  std::vector<std::vector<std::int32_t>> elements(net::n_lists);
  for (std::size_t l = 0; l < elements.size(); ++l) {
    if (net::lists[l].stored) elements[l] = file.take<std::int32_t>(rows);
    for (const std::int32_t count : elements[l])
      if (count < 0) file.damaged("a list has a negative number of elements");
  }
  std::vector<std::vector<unsigned char>> values(net::n_branches);
  for (std::size_t k = 0; k < values.size(); ++k) {
    std::size_t size = rows;
    if (net::branches[k].list >= 0) {
      size = 0;
      for (const std::int32_t count : elements[static_cast<std::size_t>(net::branches[k].list)]) size += static_cast<std::size_t>(count);
    }
    values[k] = file.take<unsigned char>(size * net::branches[k].bytes);
  }
  // What is expected, per group: counts of constituents, values one after the other, and the largest magnitude of each variable.
  std::vector<std::vector<std::int32_t>> counts(net::n_groups);
  std::vector<std::vector<float>> expected(net::n_groups);
  std::vector<std::vector<double>> largest(net::n_groups);
  for (std::size_t g = 0; g < expected.size(); ++g) {
    const net::Group& group = net::groups[g];
    const std::size_t variables = static_cast<std::size_t>(group.variables);
    largest[g].assign(variables, 0.0);
    std::size_t size = rows;
    if (group.length > 0) {
      bool given = false;
      for (const net::Derived& one : net::derived_variables) given = given || (one.group == static_cast<int>(g) && one.origin == net::Origin::given);
      if (given) continue;
      size = 0;
      counts[g] = file.take<std::int32_t>(rows);
      for (const std::int32_t count : counts[g]) {
        if (count < 0 || count > group.length) file.damaged("a group has an impossible count");
        size += static_cast<std::size_t>(count);
      }
    }
    expected[g] = file.take<float>(size * variables);
    for (std::size_t i = 0; i < expected[g].size(); ++i) {
      const double v = std::abs(static_cast<double>(expected[g][i]));
      if (v <= std::numeric_limits<double>::max() && v > largest[g][i % variables]) largest[g][i % variables] = v;
    }
  }
  file.end();
  Deviations all;
  std::vector<std::size_t> at(values.size()), next(expected.size());
  for (std::size_t k = 0; k < rows; ++k) {
    const void* branch[net::n_branches + 1] = {};
    std::int32_t sizes[net::n_lists + 1] = {};
    for (std::size_t l = 0; l < elements.size(); ++l) sizes[l] = elements[l].empty() ? 0 : elements[l][k];
    for (std::size_t i = 0; i < values.size(); ++i) {
      branch[i] = values[i].data() + at[i];
      at[i] += net::branches[i].bytes * (net::branches[i].list < 0 ? 1 : static_cast<std::size_t>(sizes[net::branches[i].list]));
    }
    net::Features x;
    derive_one(net::gather(branch, sizes), net::of_object ? object[k] : 0, x);
    const float* found[net::n_groups];
    std::int32_t count[net::n_groups];
    net::view(x, found, count);
    for (const net::Derived& one : net::derived_variables) {
      const std::size_t g = static_cast<std::size_t>(one.group), variables = static_cast<std::size_t>(net::groups[g].variables);
      if (one.origin == net::Origin::given) continue;
      const std::int32_t wanted = net::groups[g].length > 0 ? counts[g][k] : 1;
      if (net::groups[g].length > 0 && count[g] != wanted) {
        ++all.compared;
        ++all.differing;
        if (all.beyond++ == 0) std::printf("first feature beyond   %s: %d constituents, expected %d\n", one.name, count[g], wanted);
        continue;
      }
      for (std::size_t j = 0; j < static_cast<std::size_t>(wanted); ++j) {
        const std::size_t place = j * variables + static_cast<std::size_t>(one.variable);
        compare(found[g][place], expected[g][next[g] + place], one, largest[g][static_cast<std::size_t>(one.variable)], all);
      }
    }
    for (std::size_t g = 0; g < next.size(); ++g)
      next[g] += static_cast<std::size_t>(net::groups[g].variables) * (net::groups[g].length == 0 ? 1 : (counts[g].empty() ? 0 : static_cast<std::size_t>(counts[g][k])));
  }
  std::printf("feature vectors        %lld\n", static_cast<long long>(n));
  std::printf("features               %lld\n", static_cast<long long>(all.compared));
  std::printf("differing features     %lld\n", static_cast<long long>(all.differing));
  std::printf("features beyond        %lld\n", static_cast<long long>(all.beyond));
  std::printf("features that jump     %lld\n", static_cast<long long>(all.jumps));
  std::printf("largest feature ulp    %lld\n", static_cast<long long>(all.ulp));
  std::printf("largest feature deviation  %.9g\n", all.absolute);
  return all.beyond + (all.jumps * net::tolerance_jumps > all.jumping ? all.jumps : 0);
}
#else
std::int64_t check_features() {
  std::printf("features not compared: features.hpp refuses -ffast-math\n");
  return 0;
}
#endif

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
  if (check_features() != 0) fail("features.hpp differs from NumPy by more than it states");
  Golden golden = load();
  const std::int64_t wrong = check(golden);
  if (wrong != 0) fail("the artefact differs from the golden model");
  if (argc < 2 || std::string(argv[1]) != "--no-time") time(golden);
  std::printf("passed\n");
  return 0;
}
