#if defined(__x86_64__) && defined(__GNUC__)
// What the processor has and the operating system saves when it changes threads: CPUID, leaf 7, and XCR0. It is asked here and not by __builtin_cpu_supports,
// which needs a part of the compiler's own library that not every toolchain links: there it says no to everything.
static inline bool has(unsigned saved, unsigned wanted_b, unsigned wanted_c) noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & (1u << 27)) == 0) return false;  // OSXSAVE: xgetbv exists
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & saved) != saved || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (b & wanted_b) == wanted_b && (c & wanted_c) == wanted_c;
}
static constexpr unsigned bit_avx2 = 1u << 5, bits_avx512 = bit_avx2 | 1u << 16 | 1u << 30 | 1u << 31, bit_vnni = 1u << 11;  // F, BW, VL
static inline bool has_avx2() noexcept { return has(0x06, bit_avx2, 0); }          // the upper halves of 256-bit registers
static inline bool has_avx512() noexcept { return has(0xe6, bits_avx512, 0); }     // masks and 512-bit registers too
static inline bool has_vnni() noexcept { return has_avx512() && has(0xe6, 0, bit_vnni); }
#endif
static inline bool has_baseline() noexcept { return true; }
static inline bool has_not() noexcept { return false; }  // a path of another architecture

static constexpr bool same(const char* a, const char* b) noexcept {
  while (*a != '\0' && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}
