using namespace madd256;
static constexpr std::size_t lanes = 8;
static constexpr std::size_t registers = 16;
static constexpr std::size_t chains = 8;  // a product is added after four or five cycles, and two begin in each

// acc + products of four bytes or two int16 per lane, by the type of x; nothing saturates.
template <class X>
INLINE Vec multiply(Vec acc, Vec x, Vec w) noexcept {
  if constexpr (sizeof(X) == 1) return _mm256_dpbusd_epi32(acc, x, w);
  return _mm256_dpwssd_epi32(acc, x, w);
}
