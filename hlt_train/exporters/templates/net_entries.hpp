// One way to compute the same integers. `evaluate_groups` takes the groups by position in `groups`; count[g] is read for groups of constituents only.
struct Path {
  const char* name;
  void (*evaluate)(TYPED_PARAMETERS, Logit* logits) noexcept;
  void (*evaluate_groups)(const float* const* x, const std::int32_t* count, Logit* logits) noexcept;
  bool (*available)() noexcept;  // on this processor, under this operating system
};
// All paths, the fastest of each architecture last; those of another architecture have no functions and are never available.
static constexpr Path paths[] = {
    PATHS
};
static constexpr int n_paths = static_cast<int>(sizeof paths / sizeof paths[0]);

namespace detail {

struct Choice {
  const Path* path;   // nullptr: there is an error
  const char* error;
};

static constexpr const Path* find(const char* name) noexcept {
  for (const Path& path : paths) {
    if (same(path.name, name)) return &path;
  }
  return nullptr;
}

static inline Choice choose() noexcept {
#ifdef NET_ISA
#define HLT_TRAIN_TEXT_(name) #name
#define HLT_TRAIN_TEXT(name) HLT_TRAIN_TEXT_(name)
  constexpr const char* wanted = HLT_TRAIN_TEXT(NET_ISA);
#undef HLT_TRAIN_TEXT
#undef HLT_TRAIN_TEXT_
  static_assert(find(wanted) != nullptr, "NET_ISA names no path of this header");
#else
  const char* wanted = std::getenv("NET_ISA");
#endif
  if (wanted != nullptr && *wanted != '\0') {
    const Path* path = find(wanted);
    if (path == nullptr) return {nullptr, "NET_ISA names no path of this network"};
    if (!path->available()) return {nullptr, "NET_ISA asks for a path that this processor or its operating system lacks"};
    return {path, nullptr};
  }
  const Path* best = paths;
  for (const Path& path : paths) {
    if (path.available()) best = &path;
  }
  return {best, nullptr};
}

// Decided at the first call, which may come from a static initialiser of any translation unit.
static inline const Choice& chosen() noexcept {
  static const Choice choice = choose();
  return choice;
}

[[noreturn]] static inline void stop(const char* error) noexcept {
  std::fprintf(stderr, "net.hpp: %s\n", error);
  std::abort();
}

}  // namespace detail

// Why no path can be taken, or nullptr: the path that NET_ISA names (environment variable, or a macro when compiling) is unknown or not available here.
// Evaluating then ends the program; whoever wants to say so more kindly asks first.
static inline const char* dispatch_error() noexcept { return detail::chosen().error; }

// The path that is taken.
static inline const Path& path() noexcept {
  const detail::Choice& choice = detail::chosen();
  if (choice.path == nullptr) detail::stop(choice.error);
  return *choice.path;
}

// The logits of one event.
static inline void evaluate(TYPED_PARAMETERS, Logit* logits) noexcept {
  path().evaluate(ARGUMENTS, logits);
}

static inline void evaluate(const Input& input, Logit* logits) noexcept {
  evaluate(INPUT_ARGUMENTS, logits);
}

static inline void evaluate_groups(const float* const* x, const std::int32_t* count, Logit* logits) noexcept {
  path().evaluate_groups(x, count, logits);
}

// n events by one path. x[g]: [n, variables], or [n, length, variables] for constituents; count[g]: [n], read for constituents only; logits: [n, n_outputs].
static inline void evaluate_batch(const Path& by, const float* const* x, const std::int32_t* const* count, std::int64_t n, Logit* logits) noexcept {
  for (std::int64_t k = 0; k < n; ++k) {
    const float* at[n_groups];
    std::int32_t counts[n_groups];
    for (int g = 0; g < n_groups; ++g) {
      const Group& group = groups[g];
      at[g] = x[g] + k * group.variables * (group.length > 0 ? group.length : 1);
      counts[g] = group.length > 0 ? count[g][k] : 0;
    }
    by.evaluate_groups(at, counts, logits + k * n_outputs);
  }
}

static inline void evaluate_batch(const float* const* x, const std::int32_t* const* count, std::int64_t n, Logit* logits) noexcept {
  evaluate_batch(path(), x, count, n, logits);
}
