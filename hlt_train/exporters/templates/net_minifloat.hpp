// The position of the highest bit of n, -1 for 0.
static constexpr int highest(std::uint64_t n) noexcept {
  int at = n != 0 ? 0 : -1;
  for (int step = 32; step > 0; step /= 2) {
    if ((n >> step) != 0) {
      n >>= step;
      at += step;
    }
  }
  return at;
}

template <class T>
static constexpr std::uint64_t magnitude(T v) noexcept {
  return v < 0 ? std::uint64_t{0} - static_cast<std::uint64_t>(v) : static_cast<std::uint64_t>(v);
}

// v * 2^-s for s >= 0, rounded to an integer of at most mantissa + 1 significant bits; the generator has proved that the sum with half a step fits T.
template <Round R, class T>
static constexpr T minifloat_shift(T v, int s, int mantissa) noexcept {
  const int wanted = highest(magnitude(v)) - s - mantissa;
  const int below = wanted > 0 ? wanted : 0;
  const int by = s + below;
  if (by == 0) return v;
  const T n = R == Round::floor ? shift_floor<T>(v, by) : (R == Round::half_up ? shift_half_up<T>(v, by) : shift_half_even<T>(v, by));
  return static_cast<T>(n * (T{1} << below));
}

// numerator / denominator as an exact rational, rounded once to an integer of at most mantissa + 1 significant bits; denominator > 0.
template <Round R>
static constexpr std::int64_t minifloat_divide(std::int64_t numerator, std::int64_t denominator, int mantissa) noexcept {
  const int wanted = highest(magnitude(numerator) / static_cast<std::uint64_t>(denominator)) - mantissa;
  const int below = wanted > 0 ? wanted : 0;
  const std::int64_t by = denominator * (std::int64_t{1} << below);
  const std::int64_t n = R == Round::floor ? divide_floor(numerator, by) : (R == Round::half_up ? divide_half_up(numerator, by) : divide_half_even(numerator, by));
  return n * (std::int64_t{1} << below);
}
