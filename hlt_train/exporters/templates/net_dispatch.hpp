#if defined(__x86_64__) && defined(__GNUC__)
// What the processor has and the operating system saves on a switch of context; the second is the processor's report of it, XCR0.
static inline bool has_registers(unsigned wanted) noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & (1u << 27)) == 0) return false;  // OSXSAVE: xgetbv exists
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & wanted) == wanted;
}
static inline bool has_avx2() noexcept {
  __builtin_cpu_init();
  return has_registers(0x06) && __builtin_cpu_supports("avx2");
}
static inline bool has_avx512() noexcept {
  return has_avx2() && has_registers(0xe6) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
static inline bool has_vnni() noexcept { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif
static inline bool has_baseline() noexcept { return true; }

constexpr static bool same(const char* a, const char* b) noexcept {
  while (*a != '\0' && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}
