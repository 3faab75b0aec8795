// Four bytes of x in every lane.
template <class X>
INLINE Vec spread(const X* x) noexcept {
  std::int32_t four;
  std::memcpy(&four, x, sizeof four);
  return set1(four);
}

template <class X, std::size_t... M>
INLINE void multiply_row(Vec* acc, Vec x, const Vec* w, std::index_sequence<M...>) noexcept {
  ((acc[M] = multiply<X>(acc[M], x, w[M])), ...);
}

// One group of four bytes of each row P times the weights of the vectors M: every weight is loaded once for all rows.
template <std::size_t U, std::size_t G, std::size_t XS, class X, class W, std::size_t... P, std::size_t... M>
INLINE void multiply_group(Vec* acc, const X* x, const W* w, std::index_sequence<P...>, std::index_sequence<M...> across) noexcept {
  const Vec weights[] = {load(w + (M / U * G * U + M % U) * (sizeof(Vec) / sizeof(W)))...};
  (multiply_row<X>(acc + P * sizeof...(M), spread(x + P * XS), weights, across), ...);
}

template <std::size_t Across, std::size_t... K>
INLINE void start_sums(Vec* acc, const std::int32_t* b, std::index_sequence<K...>) noexcept {
  ((acc[K] = load(b + K % Across * lanes)), ...);
}
template <std::size_t... K>
INLINE void start_zeros(Vec* acc, std::index_sequence<K...>) noexcept {
  ((acc[K] = set1(0)), ...);
}
template <std::size_t... K>
INLINE void add_sums(Vec* acc, const Vec* more, std::index_sequence<K...>) noexcept {
  ((acc[K] = add(acc[K], more[K])), ...);
}

// The unit of U vectors of int32 that begins at output `first`, by its Rule, to where it is read: as int32, int16 or bytes.
template <class Rule, std::size_t U, class Y>
INLINE void finish(const Vec* acc, std::size_t first, Y* y) noexcept {
  static_assert(U * sizeof(Y) == 4, "one register is filled");
  if constexpr (U == 1) {
    store(y, Rule::round(acc[0], first));
  } else if constexpr (U == 2) {
    store(y, Rule::clamp(pack_shorts(Rule::round(acc[0], first), Rule::round(acc[1], first + lanes)), first));
  } else {
    const Vec a = Rule::clamp(pack_shorts(Rule::round(acc[0], first), Rule::round(acc[1], first + lanes)), first);
    const Vec b = Rule::clamp(pack_shorts(Rule::round(acc[2], first + 2 * lanes), Rule::round(acc[3], first + 3 * lanes)), first + 2 * lanes);
    store(y, pack_bytes<Rule::offset>(a, b));
  }
}

template <class Rule, std::size_t U, std::size_t Across, std::size_t YS, class Y, std::size_t... K>
INLINE void finish_rows(const Vec* acc, std::size_t first, Y* y, std::index_sequence<K...>) noexcept {
  constexpr std::size_t units = Across / U;
  (finish<Rule, U>(acc + K / units * Across + K % units * U, first + K % units * U * lanes, y + K / units * YS + K % units * U * lanes), ...);
}

template <class Rule, std::size_t U, std::size_t G, std::size_t XS, std::size_t YS, class X, class W, class Y, std::size_t... P, std::size_t... M>
INLINE void dense_block(const X* x, const W* w, const std::int32_t* b, std::size_t first, Y* y, std::index_sequence<P...> rows,
                        std::index_sequence<M...> across) noexcept {
  constexpr std::size_t sums = sizeof...(P) * sizeof...(M), group = 4 / sizeof(X), step = U * (sizeof(Vec) / sizeof(W));
  // With few sums, groups take turns in two or four sets of them, so that the processor need not wait for one product before it begins the next.
  constexpr std::size_t sets = sums >= chains ? 1 : (2 * sums >= chains ? 2 : 4);
  Vec acc[sets * sums];
  start_sums<sizeof...(M)>(acc, b + first, std::make_index_sequence<sums>{});
  start_zeros(acc + sums, std::make_index_sequence<(sets - 1) * sums>{});
  for (std::size_t g = 0; g < G; g += 4) {
    multiply_group<U, G, XS>(acc, x + g * group, w + g * step, rows, across);
    multiply_group<U, G, XS>(acc + 1 % sets * sums, x + (g + 1) * group, w + (g + 1) * step, rows, across);
    multiply_group<U, G, XS>(acc + 2 % sets * sums, x + (g + 2) * group, w + (g + 2) * step, rows, across);
    multiply_group<U, G, XS>(acc + 3 % sets * sums, x + (g + 3) * group, w + (g + 3) * step, rows, across);
  }
  if constexpr (sets == 4) add_sums(acc, acc + 2 * sums, std::make_index_sequence<2 * sums>{});
  if constexpr (sets >= 2) add_sums(acc, acc + sums, std::make_index_sequence<sums>{});
  finish_rows<Rule, U, sizeof...(M), YS>(acc, first, y, std::make_index_sequence<sums / U>{});
}

// y = rule(w x + b) of P rows: I inputs as bytes or int16, O outputs in units of U vectors, rows XS and YS elements apart. Weights lie as they are read:
// unit, group of four bytes of inputs, vector, lane, input. Only where the proof has every sum in int32, whatever its order.
template <class Rule, std::size_t P, std::size_t I, std::size_t O, std::size_t U, std::size_t XS, std::size_t YS, class X, class W, class Y>
INLINE void dense(const X* x, const W* w, const std::int32_t* b, Y* y) noexcept {
  constexpr std::size_t G = I * sizeof(X) / 4, units = O / (U * lanes), wide = registers / (P * U) > 1 ? registers / (P * U) : 1;
  constexpr std::size_t M = units < wide ? units : wide, rest = units % M;
  static_assert(G % 4 == 0 && O % (U * lanes) == 0, "padded to whole groups and units");
  constexpr std::size_t weights = U * G * (sizeof(Vec) / sizeof(W));  // of one unit
  for (std::size_t k = 0; k + M <= units; k += M)
    dense_block<Rule, U, G, XS, YS>(x, w + k * weights, b, k * U * lanes, y + k * U * lanes, std::make_index_sequence<P>{}, std::make_index_sequence<M * U>{});
  if constexpr (rest != 0) {
    constexpr std::size_t k = units - rest;
    dense_block<Rule, U, G, XS, YS>(x, w + k * weights, b, k * U * lanes, y + k * U * lanes, std::make_index_sequence<P>{},
                                    std::make_index_sequence<rest * U>{});
  }
}
