using Vec = __m256i;                    // int32 lanes, or int16 and bytes where said
static constexpr std::size_t lanes = 8;        // of int32
static constexpr std::size_t registers = 8;    // sums that are held at once
static constexpr std::size_t chains = 1;       // sums in flight that hide the latency of an addition

INLINE Vec load(const void* p) noexcept { return _mm256_load_si256(static_cast<const Vec*>(p)); }
INLINE void store(void* p, Vec v) noexcept { _mm256_store_si256(static_cast<Vec*>(p), v); }
INLINE Vec set1(std::int32_t v) noexcept { return _mm256_set1_epi32(v); }
INLINE Vec add(Vec a, Vec b) noexcept { return _mm256_add_epi32(a, b); }
INLINE Vec sub(Vec a, Vec b) noexcept { return _mm256_sub_epi32(a, b); }
INLINE Vec both(Vec a, Vec b) noexcept { return _mm256_and_si256(a, b); }
INLINE Vec least(Vec a, Vec b) noexcept { return _mm256_min_epi32(a, b); }
INLINE Vec most(Vec a, Vec b) noexcept { return _mm256_max_epi32(a, b); }
INLINE Vec left(Vec v, Vec by) noexcept { return _mm256_sllv_epi32(v, by); }
INLINE Vec right(Vec v, Vec by) noexcept { return _mm256_srav_epi32(v, by); }
template <int By>
INLINE Vec right(Vec v) noexcept {
  return _mm256_srai_epi32(v, By);
}
// v + (bit By of v), for rounding half to even.
template <int By>
INLINE Vec add_odd(Vec v) noexcept {
  return add(v, both(_mm256_srli_epi32(v, By), set1(1)));
}

// int16: limits of 16 lanes
INLINE Vec set1_short(std::int16_t v) noexcept { return _mm256_set1_epi16(v); }
INLINE Vec least_short(Vec a, Vec b) noexcept { return _mm256_min_epi16(a, b); }
INLINE Vec most_short(Vec a, Vec b) noexcept { return _mm256_max_epi16(a, b); }

// What the compiler may not look through.
INLINE Vec in_order(Vec v) noexcept {
  __asm__("" : "+x"(v));
  return v;
}

// Packs saturate, and they interleave blocks of 128 bits; `ordered` does not. g++ 12 takes the blocks of b for the upper half: where nobody reads more than the
// first 128 bits of 256, it packs both blocks of a instead (vpmovsdw, with AVX-512).
INLINE Vec pack_shorts(Vec a, Vec b) noexcept { return in_order(_mm256_packs_epi32(a, b)); }
INLINE Vec ordered(Vec packed) noexcept { return _mm256_permute4x64_epi64(packed, 0xd8); }
// Bytes hold value + Offset: 0, or 128 for signed values.
template <int Offset>
INLINE Vec pack_bytes(Vec a, Vec b) noexcept {
  static_assert(Offset == 0 || Offset == 128, "unsigned or signed");
  if constexpr (Offset == 0) return in_order(_mm256_packus_epi16(a, b));
  return _mm256_xor_si256(in_order(_mm256_packs_epi16(a, b)), _mm256_set1_epi8(-128));
}

INLINE Vec widen(const std::int16_t* p) noexcept { return _mm256_cvtepi16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))); }
INLINE Vec widen(const std::int32_t* p) noexcept { return load(p); }

// acc + products of four bytes or two int16 per lane, by the type of x. The sums of two products of bytes are proved to fit int16. Sums are not merged with the
// next ones: rearranged additions of many products do not fit the registers.
template <class X>
INLINE Vec multiply(Vec acc, Vec x, Vec w) noexcept {
  if constexpr (sizeof(X) == 1) return in_order(add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1))));
  return in_order(add(acc, _mm256_madd_epi16(x, w)));
}

// As `detail::opaque`, for eight.
INLINE __m256 opaque(__m256 v) noexcept {
  __asm__("" : "+x"(v));
  return v;
}

// The input step of `quantise` for the first Left of eight variables; x is read no further.
template <int Left>
INLINE Vec quantise_lanes(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan) noexcept {
  Vec bits;
  if constexpr (Left >= 8) {
    bits = _mm256_loadu_si256(reinterpret_cast<const Vec*>(x));
  } else if constexpr (Left > 0) {
    bits = _mm256_maskload_epi32(reinterpret_cast<const int*>(x), _mm256_cmpgt_epi32(set1(Left), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0)));
  } else {
    bits = set1(0);
  }
  const Vec missing = _mm256_cmpgt_epi32(both(bits, set1(0x7fffffff)), set1(0x7f800000));
  const __m256 v = opaque(_mm256_castsi256_ps(_mm256_andnot_si256(missing, bits)));
  __m256 t = opaque(_mm256_mul_ps(opaque(_mm256_sub_ps(v, _mm256_load_ps(centre))), _mm256_load_ps(scale)));
  t = _mm256_min_ps(_mm256_max_ps(t, _mm256_load_ps(lo)), _mm256_load_ps(hi));
  return _mm256_blendv_epi8(_mm256_cvtps_epi32(t), load(nan), missing);
}

// The input step of the first Left of sixteen variables, as int16 or as bytes.
template <int Offset, int Left, class Y>
INLINE void quantise_part(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan, Y* y) noexcept {
  const Vec a = quantise_lanes<Left>(x, centre, scale, lo, hi, nan);
  const Vec b = quantise_lanes<Left - 8>(x + (Left > 8 ? 8 : 0), centre + 8, scale + 8, lo + 8, hi + 8, nan + 8);
  const Vec shorts = ordered(pack_shorts(a, b));
  if constexpr (sizeof(Y) == 2) {
    store(y, shorts);
  } else {
    _mm_store_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(ordered(pack_bytes<Offset>(shorts, shorts))));
  }
}

// n / d, exactly rounded, for d > 0 and |n| + 2 d < 2^31: an estimate in double, corrected by the integer remainder, so no rounding of a float matters.
template <Round R>
INLINE Vec divide(Vec n, Vec d) noexcept {
  const __m128i low = _mm256_cvttpd_epi32(_mm256_div_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(n)), _mm256_cvtepi32_pd(_mm256_castsi256_si128(d))));
  const __m128i high =
      _mm256_cvttpd_epi32(_mm256_div_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(n, 1)), _mm256_cvtepi32_pd(_mm256_extracti128_si256(d, 1))));
  Vec q = _mm256_set_m128i(high, low);
  Vec above = sub(n, _mm256_mullo_epi32(q, d));
  for (int k = 0; k < 2; ++k) {
    const Vec negative = right<31>(above);
    q = add(q, negative);
    above = add(above, both(negative, d));
  }
  const Vec beyond = _mm256_cmpgt_epi32(above, sub(d, set1(1)));
  q = sub(q, beyond);
  above = sub(above, both(beyond, d));
  const Vec below = sub(d, above);
  if constexpr (R == Round::half_up) q = sub(q, _mm256_cmpgt_epi32(above, sub(below, set1(1))));
  if constexpr (R == Round::half_even) {
    const Vec up = _mm256_and_si256(_mm256_cmpeq_epi32(above, below), sub(set1(0), both(q, set1(1))));
    q = sub(q, _mm256_or_si256(_mm256_cmpgt_epi32(above, below), up));
  }
  return q;
}

// The mean of each feature in place: total * times / (count * over); count 0 gives 0, as does its total.
template <Round R, std::size_t N>
INLINE void mean(std::int32_t (&total)[N], const std::int32_t (&times)[N], const std::int32_t (&over)[N], int count) noexcept {
  const Vec n = set1(count > 0 ? count : 1);
  for (std::size_t i = 0; i < N; i += lanes)
    store(total + i, divide<R>(_mm256_mullo_epi32(load(total + i), load(times + i)), _mm256_mullo_epi32(n, load(over + i))));
}
