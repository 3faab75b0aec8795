// What the compiler may not look through: no contraction, reassociation or folding of comparisons crosses it, whatever the flags (-ffast-math, -mfma,
// -ffp-contract=fast). The "+m" form also rounds x87 registers to float.
static inline float opaque(float v) noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__GNUC__) && defined(__aarch64__)
  __asm__("" : "+w"(v));
#elif defined(__GNUC__)
  __asm__("" : "+m"(v));
#else
  volatile float stored = v;
  v = stored;
#endif
  return v;
}

// Round half to even by the hardware conversion (round-to-nearest mode, the default of every process). |v| < 2^31.
static inline std::int32_t nearest(float v) noexcept {
#if defined(__x86_64__) || defined(_M_X64)
  return _mm_cvtss_si32(_mm_set_ss(v));
#else
  return static_cast<std::int32_t>(std::lrintf(v));
#endif
}

// NaN by bit pattern, on the integer that was loaded: -ffinite-math-only folds every test on a float.
static inline bool is_nan(std::uint32_t bits) noexcept { return (bits & 0x7fffffffu) > 0x7f800000u; }

static inline std::uint32_t load_bits(const float* x) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  return bits;
}

// fl32(fl32(x - centre) * scale); x must not be NaN.
static inline float normalise(std::uint32_t bits, float centre, float scale) noexcept {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return opaque(opaque(opaque(x) - centre) * scale);
}

// The input step of one variable. lo and hi are integers of at most 24 bits, as float.
static inline std::int32_t quantise(const float* x, float centre, float scale, float lo, float hi, std::int32_t nan) noexcept {
  const std::uint32_t bits = load_bits(x);
  const bool missing = is_nan(bits);
  float t = normalise(missing ? 0u : bits, centre, scale);
  t = t < lo ? lo : t;
  t = t > hi ? hi : t;
  const std::int32_t n = nearest(t);
  return missing ? nan : n;
}

enum class Round { floor, half_up, half_even };

template <class T>
static constexpr T clamp(T v, T lo, T hi) noexcept {
  return v < lo ? lo : (v > hi ? hi : v);
}

// v * 2^-s for s > 0, rounded; the generator has proved that the sum fits T. Right shifts of negative numbers are arithmetic.
template <class T>
static constexpr T shift_floor(T v, int s) noexcept {
  return static_cast<T>(v >> s);
}
template <class T>
static constexpr T shift_half_up(T v, int s) noexcept {
  return static_cast<T>((v + (T{1} << (s - 1))) >> s);
}
template <class T>
static constexpr T shift_half_even(T v, int s) noexcept {
  return static_cast<T>((v + ((T{1} << (s - 1)) - 1) + ((v >> s) & 1)) >> s);
}

// v modulo mask + 1: two's complement when `sign` is the weight of the sign bit, unsigned when it is 0.
template <class T>
static constexpr T wrap(T v, T mask, T sign) noexcept {
  using U = std::make_unsigned_t<T>;
  return static_cast<T>(static_cast<T>((static_cast<U>(v) + static_cast<U>(sign)) & static_cast<U>(mask)) - sign);
}

// numerator / denominator as an exact rational, rounded; denominator > 0.
static constexpr std::int64_t divide_floor(std::int64_t numerator, std::int64_t denominator) noexcept {
  return numerator / denominator - (numerator % denominator < 0 ? 1 : 0);
}
static constexpr std::int64_t divide_half_up(std::int64_t numerator, std::int64_t denominator) noexcept {
  const std::int64_t q = divide_floor(numerator, denominator);
  return q + (numerator - q * denominator >= denominator - (numerator - q * denominator) ? 1 : 0);
}
static constexpr std::int64_t divide_half_even(std::int64_t numerator, std::int64_t denominator) noexcept {
  const std::int64_t q = divide_floor(numerator, denominator);
  const std::int64_t above = numerator - q * denominator;
  const std::int64_t below = denominator - above;
  return q + (above > below || (above == below && (q & 1) != 0) ? 1 : 0);
}

// A count beyond the array is the array's length, a negative one is 0.
static constexpr int limit(int count, int length) noexcept { return count < 0 ? 0 : (count > length ? length : count); }

// Of `count` constituents, those at which every stride-th window starts, at most `length`.
static constexpr int positions(int count, int stride, int length) noexcept { return limit((count + stride - 1) / stride, length); }

// N elements from x on as an array.
template <std::size_t N, class T>
static inline const T (&part(const T* x) noexcept)[N] {
  return *reinterpret_cast<const T(*)[N]>(x);
}

// y = w x + b, exact in Acc by the proof; then ReLU. Rows of w may be longer than the outputs' inputs by zeros.
template <bool Relu, class Acc, class X, class W, std::size_t I, std::size_t O>
static inline void affine(const X (&x)[I], const W (&w)[O][I], const Acc (&b)[O], Acc (&y)[O]) noexcept {
  for (int o = 0; o < static_cast<int>(O); ++o) {
    Acc acc = b[o];
    for (int i = 0; i < static_cast<int>(I); ++i) acc += static_cast<Acc>(w[o][i]) * static_cast<Acc>(x[i]);
    y[o] = Relu && acc < Acc{0} ? Acc{0} : acc;
  }
}
