// The operations of NumPy and Awkward, one by one, each in the type T in which they compute it.

// No compiler may fuse a product with the sum behind it: NumPy does not.
template <class T>
static inline T product(T v) noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
  if constexpr (std::is_floating_point_v<T>) __asm__("" : "+x"(v));
#elif defined(__GNUC__) && defined(__aarch64__)
  if constexpr (std::is_floating_point_v<T>) __asm__("" : "+w"(v));
#elif defined(__GNUC__)
  if constexpr (std::is_floating_point_v<T>) __asm__("" : "+m"(v));
#else
  if constexpr (std::is_floating_point_v<T>) {
    volatile T stored = v;
    v = stored;
  }
#endif
  return v;
}

template <class T>
inline constexpr bool floating = std::is_floating_point_v<T>;
template <class T>
inline constexpr bool logical = std::is_same_v<T, bool>;

// Integers wrap, as unsigned numbers do; a sum of bool is "or", a product "and".
template <class T>
static inline T add(T a, T b) noexcept {
  if constexpr (logical<T>) return a || b;
  else if constexpr (floating<T>) return a + b;
  else return static_cast<T>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
}
template <class T>
static inline T subtract(T a, T b) noexcept {
  if constexpr (floating<T>) return a - b;
  else return static_cast<T>(static_cast<std::uint64_t>(a) - static_cast<std::uint64_t>(b));
}
template <class T>
static inline T multiply(T a, T b) noexcept {
  if constexpr (logical<T>) return a && b;
  else if constexpr (floating<T>) return product<T>(a * b);
  else return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
}
template <class T>
static inline T divide(T a, T b) noexcept {
  return a / b;
}

// Quotient and remainder with the sign of the divisor; an integer by 0 gives 0.
template <class T>
static inline T remainder(T a, T b) noexcept {
  if constexpr (floating<T>) {
    T r = std::fmod(a, b);
    if (b == T{0}) return r;
    if (r != T{0}) {
      if (std::isless(b, T{0}) != std::isless(r, T{0})) r += b;
    } else {
      r = std::copysign(T{0}, b);
    }
    return r;
  } else {
    if (b == T{0}) return T{0};
    if constexpr (std::is_signed_v<T>) {
      if (b == T{-1}) return T{0};
      const T r = static_cast<T>(a % b);
      return r != T{0} && (r < T{0}) != (b < T{0}) ? static_cast<T>(r + b) : r;
    } else {
      return static_cast<T>(a % b);
    }
  }
}
template <class T>
static inline T floor_divide(T a, T b) noexcept {
  if constexpr (floating<T>) {
    if (b == T{0}) return a / b;
    T r = std::fmod(a, b);
    T q = (a - r) / b;
    if (r != T{0}) {
      if (std::isless(b, T{0}) != std::isless(r, T{0})) q -= T{1};
    }
    if (q == T{0}) return std::copysign(T{0}, a / b);
    const T below = std::floor(q);
    return std::isgreater(q - below, T(0.5)) ? below + T{1} : below;
  } else {
    if (b == T{0}) return T{0};
    if constexpr (std::is_signed_v<T>) {
      if (b == T{-1}) return subtract<T>(T{0}, a);
      const T q = static_cast<T>(a / b);
      return a % b != T{0} && (a < T{0}) != (b < T{0}) ? static_cast<T>(q - T{1}) : q;
    } else {
      return static_cast<T>(a / b);
    }
  }
}
template <class T>
static inline T power(T a, T b) noexcept {
  if constexpr (floating<T>) {
    return std::pow(a, b);
  } else {
    T found{1};
    for (; b > T{0}; b = static_cast<T>(b / 2)) {
      if (b % 2 != 0) found = multiply<T>(found, a);
      a = multiply<T>(a, a);
    }
    return found;
  }
}

template <class T>
static inline bool equal(T a, T b) noexcept { return a == b; }
template <class T>
static inline bool not_equal(T a, T b) noexcept { return a != b; }
template <class T>
static inline bool less(T a, T b) noexcept { return a < b; }
template <class T>
static inline bool less_equal(T a, T b) noexcept { return a <= b; }
template <class T>
static inline bool greater(T a, T b) noexcept { return a > b; }
template <class T>
static inline bool greater_equal(T a, T b) noexcept { return a >= b; }

template <class T>
static inline T bitwise_and(T a, T b) noexcept { return static_cast<T>(a & b); }
template <class T>
static inline T bitwise_or(T a, T b) noexcept { return static_cast<T>(a | b); }
template <class T>
static inline T bitwise_xor(T a, T b) noexcept { return static_cast<T>(a ^ b); }
template <class T>
static inline T invert(T a) noexcept {
  if constexpr (logical<T>) return !a;
  else return static_cast<T>(~a);
}

// NaN wins; of two zeros the second one, as NumPy's vectors have it on x86 (on other platforms its sign may be the other, which a division shows).
template <class T>
static inline T maximum(T a, T b) noexcept { return a > b || a != a ? a : b; }
template <class T>
static inline T minimum(T a, T b) noexcept { return a < b || a != a ? a : b; }

template <class T>
static inline bool truth(T v) noexcept { return v != T{0}; }
template <class C, class T>
static inline T where(C c, T a, T b) noexcept { return truth<C>(c) ? a : b; }

template <class T>
static inline T positive(T v) noexcept { return v; }
template <class T>
static inline T negative(T v) noexcept {
  if constexpr (floating<T>) return -v;
  else return subtract<T>(T{0}, v);
}
template <class T>
static inline T absolute(T v) noexcept {
  if constexpr (floating<T>) return std::fabs(v);
  else if constexpr (std::is_signed_v<T>) return v < T{0} ? subtract<T>(T{0}, v) : v;
  else return v;
}
template <class T>
static inline T sign(T v) noexcept {
  if constexpr (std::is_unsigned_v<T>) return v > T{0} ? T{1} : T{0};
  else return v > T{0} ? T{1} : (v < T{0} ? T{-1} : (v == T{0} ? T{0} : v));
}
template <class T>
static inline T square(T v) noexcept { return multiply<T>(v, v); }
template <class T>
static inline T reciprocal(T v) noexcept { return T{1} / v; }
template <class T>
static inline bool isnan(T v) noexcept {
  if constexpr (floating<T>) return v != v;
  else return static_cast<void>(v), false;
}
template <class T>
static inline bool isinf(T v) noexcept {
  if constexpr (floating<T>) return std::fabs(v) == std::numeric_limits<T>::infinity();
  else return static_cast<void>(v), false;
}
template <class T>
static inline bool isfinite(T v) noexcept { return !isnan<T>(v) && !isinf<T>(v); }

template <class T>
static inline T floor(T v) noexcept {
  if constexpr (floating<T>) return std::floor(v);
  else return v;
}
template <class T>
static inline T ceil(T v) noexcept {
  if constexpr (floating<T>) return std::ceil(v);
  else return v;
}
template <class T>
static inline T rint(T v) noexcept { return std::nearbyint(v); }
template <class T>
static inline T sqrt(T v) noexcept { return std::sqrt(v); }

// What follows comes from this platform's libm.
template <class T>
static inline T arccos(T v) noexcept { return std::acos(v); }
template <class T>
static inline T arcsin(T v) noexcept { return std::asin(v); }
template <class T>
static inline T arctan(T v) noexcept { return std::atan(v); }
template <class T>
static inline T arctan2(T y, T x) noexcept { return std::atan2(y, x); }
template <class T>
static inline T arctanh(T v) noexcept { return std::atanh(v); }
template <class T>
static inline T cos(T v) noexcept { return std::cos(v); }
template <class T>
static inline T cosh(T v) noexcept { return std::cosh(v); }
template <class T>
static inline T exp(T v) noexcept { return std::exp(v); }
template <class T>
static inline T expm1(T v) noexcept { return std::expm1(v); }
template <class T>
static inline T hypot(T a, T b) noexcept { return std::hypot(a, b); }
template <class T>
static inline T log(T v) noexcept { return std::log(v); }
template <class T>
static inline T log10(T v) noexcept { return std::log10(v); }
template <class T>
static inline T log1p(T v) noexcept { return std::log1p(v); }
template <class T>
static inline T log2(T v) noexcept { return std::log2(v); }
template <class T>
static inline T sin(T v) noexcept { return std::sin(v); }
template <class T>
static inline T sinh(T v) noexcept { return std::sinh(v); }
template <class T>
static inline T tan(T v) noexcept { return std::tan(v); }
template <class T>
static inline T tanh(T v) noexcept { return std::tanh(v); }

// The first of a list that has no first yet; NaN is passed over by `min` and `max`.
template <class T>
static constexpr T highest() noexcept {
  if constexpr (floating<T>) return std::numeric_limits<T>::infinity();
  else return std::numeric_limits<T>::max();
}
template <class T>
static constexpr T lowest() noexcept {
  if constexpr (floating<T>) return -std::numeric_limits<T>::infinity();
  else return std::numeric_limits<T>::lowest();
}

// The leading elements of a sorted list: NaN first, equal ones in the order of the list.
template <bool Descending, class T>
static inline bool before(T a, T b) noexcept {
  if (isnan<T>(a) || isnan<T>(b)) return isnan<T>(a) && !isnan<T>(b);
  return Descending ? a > b : a < b;
}
template <bool Descending, class T, std::size_t N>
static inline void insert(T (&kept)[N], std::size_t& n, T v) noexcept {
  if (n == N && !before<Descending, T>(v, kept[N - 1])) return;
  std::size_t place = n == N ? N - 1 : n++;
  for (; place > 0 && before<Descending, T>(v, kept[place - 1]); --place) kept[place] = kept[place - 1];
  kept[place] = v;
}
