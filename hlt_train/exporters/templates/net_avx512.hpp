using Vec = __m512i;                    // int32 lanes, or int16 and bytes where said
static constexpr std::size_t lanes = 16;       // of int32
static constexpr std::size_t registers = 16;   // sums that are held at once
static constexpr std::size_t chains = 1;       // sums in flight that hide the latency of an addition

INLINE Vec load(const void* p) noexcept { return _mm512_load_si512(p); }
INLINE void store(void* p, Vec v) noexcept { _mm512_store_si512(p, v); }
INLINE Vec set1(std::int32_t v) noexcept { return _mm512_set1_epi32(v); }
INLINE Vec add(Vec a, Vec b) noexcept { return _mm512_add_epi32(a, b); }
INLINE Vec sub(Vec a, Vec b) noexcept { return _mm512_sub_epi32(a, b); }
INLINE Vec both(Vec a, Vec b) noexcept { return _mm512_and_si512(a, b); }
INLINE Vec least(Vec a, Vec b) noexcept { return _mm512_maskz_min_epi32(0xffff, a, b); }
INLINE Vec most(Vec a, Vec b) noexcept { return _mm512_maskz_max_epi32(0xffff, a, b); }
INLINE Vec left(Vec v, Vec by) noexcept { return _mm512_maskz_sllv_epi32(0xffff, v, by); }
INLINE Vec right(Vec v, Vec by) noexcept { return _mm512_maskz_srav_epi32(0xffff, v, by); }
template <int By>
INLINE Vec right(Vec v) noexcept {
  return _mm512_maskz_srai_epi32(0xffff, v, By);
}
// v + (bit By of v), for rounding half to even.
template <int By>
INLINE Vec add_odd(Vec v) noexcept {
  return _mm512_mask_add_epi32(v, _mm512_test_epi32_mask(v, set1(1 << By)), v, set1(1));
}

// int16: limits of 32 lanes
INLINE Vec set1_short(std::int16_t v) noexcept { return _mm512_set1_epi16(v); }
INLINE Vec least_short(Vec a, Vec b) noexcept { return _mm512_min_epi16(a, b); }
INLINE Vec most_short(Vec a, Vec b) noexcept { return _mm512_max_epi16(a, b); }

// What the compiler may not look through.
INLINE Vec in_order(Vec v) noexcept {
  __asm__("" : "+v"(v));
  return v;
}

// Packs saturate, and they interleave blocks of 128 bits; `ordered` does not. g++ 12 takes the blocks of b for the upper half: where nobody reads more than the
// first 128 bits of 256, it packs both blocks of a instead (vpmovsdw, with AVX-512).
INLINE Vec pack_shorts(Vec a, Vec b) noexcept { return in_order(_mm512_packs_epi32(a, b)); }
INLINE Vec ordered(Vec packed) noexcept { return _mm512_maskz_permutexvar_epi64(0xff, _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), packed); }
// Bytes hold value + Offset: 0, or 128 for signed values.
template <int Offset>
INLINE Vec pack_bytes(Vec a, Vec b) noexcept {
  static_assert(Offset == 0 || Offset == 128, "unsigned or signed");
  if constexpr (Offset == 0) return in_order(_mm512_packus_epi16(a, b));
  return _mm512_xor_si512(in_order(_mm512_packs_epi16(a, b)), _mm512_set1_epi8(-128));
}

INLINE Vec widen(const std::int16_t* p) noexcept {
  return _mm512_maskz_cvtepi16_epi32(0xffff, _mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE Vec widen(const std::int32_t* p) noexcept { return load(p); }

// acc + products of four bytes or two int16 per lane, by the type of x. The sums of two products of bytes are proved to fit int16. Sums are not merged with the
// next ones: rearranged additions of many products do not fit the registers.
template <class X>
INLINE Vec multiply(Vec acc, Vec x, Vec w) noexcept {
  if constexpr (sizeof(X) == 1) return in_order(add(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1))));
  return in_order(add(acc, _mm512_madd_epi16(x, w)));
}

// As `detail::opaque`, for sixteen.
INLINE __m512 opaque(__m512 v) noexcept {
  __asm__("" : "+v"(v));
  return v;
}

// The input step of `quantise` for the first Left of sixteen variables, as int16 or as bytes; x is read no further.
template <int Offset, int Left, class Y>
INLINE void quantise_part(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan, Y* y) noexcept {
  constexpr __mmask16 there = static_cast<__mmask16>(Left >= 16 ? 0xffff : (1 << Left) - 1);
  const Vec bits = _mm512_maskz_loadu_epi32(there, x);
  const __mmask16 present = _mm512_cmple_epi32_mask(both(bits, set1(0x7fffffff)), set1(0x7f800000));
  const __m512 v = opaque(_mm512_castsi512_ps(_mm512_maskz_mov_epi32(present, bits)));
  __m512 t = opaque(_mm512_mul_ps(opaque(_mm512_sub_ps(v, _mm512_load_ps(centre))), _mm512_load_ps(scale)));
  t = _mm512_maskz_min_ps(0xffff, _mm512_maskz_max_ps(0xffff, t, _mm512_load_ps(lo)), _mm512_load_ps(hi));
  const Vec n = _mm512_mask_cvtps_epi32(load(nan), present, t);
  if constexpr (sizeof(Y) == 2) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(y), _mm512_maskz_cvtepi32_epi16(0xffff, n));
  } else {
    const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, n);
    _mm_store_si128(reinterpret_cast<__m128i*>(y), Offset == 0 ? bytes : _mm_xor_si128(bytes, _mm_set1_epi8(-128)));
  }
}
