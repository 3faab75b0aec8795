// y = rule(x) of P rows of N int32 or int16.
template <class Rule, std::size_t P, std::size_t N, std::size_t XS, std::size_t YS, class X, class Y>
INLINE void requantise(const X* x, Y* y) noexcept {
  constexpr std::size_t U = 4 / sizeof(Y);
  static_assert(N % (U * lanes) == 0 && (U == 2 || U == 4), "padded to whole registers of int16 or bytes");
  for (std::size_t p = 0; p < P; ++p) {
    for (std::size_t i = 0; i < N; i += U * lanes) {
      Vec half[U / 2];
      for (std::size_t k = 0; k < U / 2; ++k) {
        const std::size_t at = i + 2 * k * lanes;
        half[k] = Rule::clamp(ordered(pack_shorts(Rule::round(widen(x + p * XS + at), at), Rule::round(widen(x + p * XS + at + lanes), at + lanes))), at);
      }
      if constexpr (U == 2) {
        store(y + p * YS + i, half[0]);
      } else {
        store(y + p * YS + i, ordered(pack_bytes<Rule::offset>(half[0], half[U / 2 - 1])));
      }
    }
  }
}

// int16 that are proved to fit bytes, as bytes.
template <int Offset, std::size_t P, std::size_t N, std::size_t XS, std::size_t YS>
INLINE void narrow(const std::int16_t* x, std::uint8_t* y) noexcept {
  static_assert(N % (4 * lanes) == 0, "padded to whole registers of bytes");
  for (std::size_t p = 0; p < P; ++p) {
    for (std::size_t i = 0; i < N; i += 4 * lanes)
      store(y + p * YS + i, ordered(pack_bytes<Offset>(load(x + p * XS + i), load(x + p * XS + i + 2 * lanes))));
  }
}

// The input step of P rows of V variables.
template <int Offset, int V, class Y, std::size_t... C>
INLINE void quantise_row(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan, Y* y,
                         std::index_sequence<C...>) noexcept {
  (quantise_part<Offset, V - static_cast<int>(16 * C)>(x + 16 * C, centre + 16 * C, scale + 16 * C, lo + 16 * C, hi + 16 * C, nan + 16 * C, y + 16 * C), ...);
}
template <int Offset, std::size_t P, int V, std::size_t YS, class Y>
INLINE void quantise_rows(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan, Y* y) noexcept {
  for (std::size_t p = 0; p < P; ++p)
    quantise_row<Offset, V>(x + p * V, centre, scale, lo, hi, nan, y + p * YS, std::make_index_sequence<(V + 15) / 16>{});
}

// total += the rows of constituents; total = the largest of it and the rows.
template <std::size_t XS, std::size_t N, class X, std::size_t... P>
INLINE void sum_rows(const X* x, std::int32_t (&total)[N], std::index_sequence<P...>) noexcept {
  for (std::size_t i = 0; i < N; i += lanes) {
    Vec v = load(total + i);
    ((v = add(v, widen(x + P * XS + i))), ...);
    store(total + i, v);
  }
}
template <std::size_t XS, std::size_t N, class X, std::size_t... P>
INLINE void max_rows(const X* x, std::int32_t (&total)[N], std::index_sequence<P...>) noexcept {
  for (std::size_t i = 0; i < N; i += lanes) {
    Vec v = load(total + i);
    ((v = most(v, widen(x + P * XS + i))), ...);
    store(total + i, v);
  }
}
