static inline __m128i load4(const void* p) noexcept { return _mm_load_si128(static_cast<const __m128i*>(p)); }

// As `opaque`, for four.
static inline __m128 opaque4(__m128 v) noexcept {
#if defined(__GNUC__)
  __asm__("" : "+x"(v));
  return v;
#else
  alignas(16) volatile float stored[4];
  alignas(16) float copy[4];
  _mm_store_ps(copy, v);
  for (int k = 0; k < 4; ++k) stored[k] = copy[k];
  return _mm_set_ps(stored[3], stored[2], stored[1], stored[0]);
#endif
}

// The input step of `quantise` for four variables.
static inline __m128i quantise4(__m128i bits, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan) noexcept {
  const __m128i missing = _mm_cmpgt_epi32(_mm_and_si128(bits, _mm_set1_epi32(0x7fffffff)), _mm_set1_epi32(0x7f800000));
  const __m128 x = opaque4(_mm_castsi128_ps(_mm_andnot_si128(missing, bits)));
  __m128 t = opaque4(_mm_mul_ps(opaque4(_mm_sub_ps(x, _mm_load_ps(centre))), _mm_load_ps(scale)));
  t = _mm_min_ps(_mm_max_ps(t, _mm_load_ps(lo)), _mm_load_ps(hi));
  return _mm_or_si128(_mm_andnot_si128(missing, _mm_cvtps_epi32(t)), _mm_and_si128(missing, load4(nan)));
}

// The input step of V variables into int16. x is read up to its last variable and no further.
template <int V, std::size_t N>
static inline void quantise_all(const float* x, const float (&centre)[N], const float (&scale)[N], const float (&lo)[N], const float (&hi)[N],
                         const std::int32_t (&nan)[N], std::int16_t (&y)[N]) noexcept {
  for (int i = 0; i < static_cast<int>(N); i += 8) {
    __m128i half[2];
    for (int h = 0; h < 2; ++h) {
      const int at = i + 4 * h;
      const int left = V - at;
      alignas(16) float part[4] = {};
      if (left < 4 && left > 0) std::memcpy(part, x + at, sizeof(float) * static_cast<std::size_t>(left));
      const __m128i bits = left >= 4 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + at)) : load4(part);
      half[h] = quantise4(bits, centre + at, scale + at, lo + at, hi + at, nan + at);
    }
    _mm_store_si128(reinterpret_cast<__m128i*>(y + i), _mm_packs_epi32(half[0], half[1]));
  }
}

// A sum that the compiler may not merge with the next one: rearranged additions of many products do not fit the registers.
static inline __m128i in_order4(__m128i v) noexcept {
#if defined(__GNUC__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// 4 sizeof...(K) outputs of w x + b in as many registers. Weights lie as they are read: per pair of inputs, per output, the pair's two weights.
template <bool Relu, std::size_t I, std::size_t... K>
static inline void madd_block(const std::int16_t* x, const std::int16_t* w, const std::int32_t* b, std::int32_t* y, std::index_sequence<K...>) noexcept {
  __m128i acc[] = {load4(b + 4 * K)...};
  const auto pair = [&](__m128i two) {
    ((acc[K] = in_order4(_mm_add_epi32(acc[K], _mm_madd_epi16(two, load4(w + 8 * K))))), ...);
    w += 8 * sizeof...(K);
  };
  for (std::size_t i = 0; i < I; i += 8) {
    const __m128i eight = load4(x + i);
    pair(_mm_shuffle_epi32(eight, 0x00));
    pair(_mm_shuffle_epi32(eight, 0x55));
    pair(_mm_shuffle_epi32(eight, 0xaa));
    pair(_mm_shuffle_epi32(eight, 0xff));
  }
  if constexpr (Relu) ((acc[K] = _mm_andnot_si128(_mm_srai_epi32(acc[K], 31), acc[K])), ...);
  (_mm_store_si128(reinterpret_cast<__m128i*>(y + 4 * K), acc[K]), ...);
}

// y = w x + b and ReLU by int16 products: only where the proof has every sum in int32, whatever its order.
template <bool Relu, std::size_t I, std::size_t O>
static inline void affine_madd(const std::int16_t (&x)[I], const std::int16_t (&w)[I * O], const std::int32_t (&b)[O], std::int32_t (&y)[O]) noexcept {
  static_assert(I % 8 == 0 && O % 8 == 0, "padded to whole registers");
  constexpr std::size_t full = O / 32;
  for (std::size_t k = 0; k < full; ++k) madd_block<Relu, I>(x, w + 32 * k * I, b + 32 * k, y + 32 * k, std::make_index_sequence<8>{});
  if constexpr (O % 32 != 0) madd_block<Relu, I>(x, w + 32 * full * I, b + 32 * full, y + 32 * full, std::make_index_sequence<(O % 32) / 4>{});
}

template <Round R, int S>
static inline __m128i shift4(__m128i v) noexcept {
  if constexpr (R == Round::half_up) v = _mm_add_epi32(v, _mm_set1_epi32(1 << (S - 1)));
  if constexpr (R == Round::half_even) {
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(v, S), _mm_set1_epi32(1));
    v = _mm_add_epi32(_mm_add_epi32(v, _mm_set1_epi32((1 << (S - 1)) - 1)), odd);
  }
  return _mm_srai_epi32(v, S);
}

// Shift, round, saturate to [lo, hi], eight at a time; the pack saturates to int16 first, which changes nothing between limits of int16.
template <Round R, int S, std::size_t N>
static inline void requantise_sat(const std::int32_t (&x)[N], const std::int16_t (&lo)[N], const std::int16_t (&hi)[N], std::int16_t (&y)[N]) noexcept {
  for (std::size_t i = 0; i < N; i += 8) {
    __m128i v = _mm_packs_epi32(shift4<R, S>(load4(x + i)), shift4<R, S>(load4(x + i + 4)));
    v = _mm_max_epi16(_mm_min_epi16(v, load4(hi + i)), load4(lo + i));
    _mm_store_si128(reinterpret_cast<__m128i*>(y + i), v);
  }
}
