using Vec = int32x4_t;                        // int32 lanes, or int16 and bytes where said
static constexpr std::size_t lanes = 4;       // of int32
static constexpr std::size_t registers = 16;  // sums that are held at once
static constexpr std::size_t chains = 4;      // sums in flight that hide the latency of an addition

INLINE Vec load(const void* p) noexcept { return vld1q_s32(static_cast<const std::int32_t*>(p)); }
INLINE void store(void* p, Vec v) noexcept { vst1q_s32(static_cast<std::int32_t*>(p), v); }
INLINE Vec set1(std::int32_t v) noexcept { return vdupq_n_s32(v); }
INLINE Vec add(Vec a, Vec b) noexcept { return vaddq_s32(a, b); }
INLINE Vec sub(Vec a, Vec b) noexcept { return vsubq_s32(a, b); }
INLINE Vec both(Vec a, Vec b) noexcept { return vandq_s32(a, b); }
INLINE Vec least(Vec a, Vec b) noexcept { return vminq_s32(a, b); }
INLINE Vec most(Vec a, Vec b) noexcept { return vmaxq_s32(a, b); }
INLINE Vec left(Vec v, Vec by) noexcept { return vshlq_s32(v, by); }
INLINE Vec right(Vec v, Vec by) noexcept { return vshlq_s32(v, vnegq_s32(by)); }
template <int By>
INLINE Vec right(Vec v) noexcept {
  return vshrq_n_s32(v, By);
}
// v + (bit By of v), for rounding half to even.
template <int By>
INLINE Vec add_odd(Vec v) noexcept {
  return add(v, both(vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), By)), set1(1)));
}

// int16: limits of 8 lanes
INLINE int16x8_t shorts(Vec v) noexcept { return vreinterpretq_s16_s32(v); }
INLINE Vec set1_short(std::int16_t v) noexcept { return vreinterpretq_s32_s16(vdupq_n_s16(v)); }
INLINE Vec least_short(Vec a, Vec b) noexcept { return vreinterpretq_s32_s16(vminq_s16(shorts(a), shorts(b))); }
INLINE Vec most_short(Vec a, Vec b) noexcept { return vreinterpretq_s32_s16(vmaxq_s16(shorts(a), shorts(b))); }

// Packs saturate and leave everything in order.
INLINE Vec pack_shorts(Vec a, Vec b) noexcept { return vreinterpretq_s32_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b))); }
INLINE Vec ordered(Vec packed) noexcept { return packed; }
// Bytes hold value + Offset: 0, or 128 for signed values.
template <int Offset>
INLINE Vec pack_bytes(Vec a, Vec b) noexcept {
  static_assert(Offset == 0 || Offset == 128, "unsigned or signed");
  if constexpr (Offset == 0) return vreinterpretq_s32_u8(vcombine_u8(vqmovun_s16(shorts(a)), vqmovun_s16(shorts(b))));
  const int8x16_t bytes = vcombine_s8(vqmovn_s16(shorts(a)), vqmovn_s16(shorts(b)));
  return vreinterpretq_s32_s8(veorq_s8(bytes, vdupq_n_s8(-128)));
}

INLINE Vec widen(const std::int16_t* p) noexcept { return vmovl_s16(vld1_s16(p)); }
INLINE Vec widen(const std::int32_t* p) noexcept { return load(p); }

// acc + products of two int16 per lane. The weights of a register are those of the first input for four outputs, then those of the second.
template <class X>
INLINE Vec multiply(Vec acc, Vec x, Vec w) noexcept {
  static_assert(sizeof(X) == 2, "pairs of int16");
  const int16x4_t two = vget_low_s16(shorts(x));
  return vmlal_lane_s16(vmlal_lane_s16(acc, vget_low_s16(shorts(w)), two, 0), vget_high_s16(shorts(w)), two, 1);
}

// As `detail::opaque`, for four.
INLINE float32x4_t opaque(float32x4_t v) noexcept {
  __asm__("" : "+w"(v));
  return v;
}

// The input step of `quantise` for the first Left of four variables; x is read no further.
template <int Left>
INLINE Vec quantise_lanes(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan) noexcept {
  Vec bits = set1(0);
  if constexpr (Left >= 4) {
    bits = vreinterpretq_s32_f32(vld1q_f32(x));
  } else if constexpr (Left > 0) {
    alignas(16) std::int32_t part[4] = {};
    std::memcpy(part, x, sizeof(float) * Left);
    bits = load(part);
  }
  const uint32x4_t missing = vcgtq_s32(both(bits, set1(0x7fffffff)), set1(0x7f800000));
  const float32x4_t v = opaque(vreinterpretq_f32_s32(vbicq_s32(bits, vreinterpretq_s32_u32(missing))));
  float32x4_t t = opaque(vmulq_f32(opaque(vsubq_f32(v, vld1q_f32(centre))), vld1q_f32(scale)));
  t = vminq_f32(vmaxq_f32(t, vld1q_f32(lo)), vld1q_f32(hi));
  return vbslq_s32(missing, load(nan), vcvtnq_s32_f32(t));
}

// The input step of the first Left of eight variables, as int16.
template <int Left>
INLINE Vec quantise_eight(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan) noexcept {
  const Vec a = quantise_lanes<Left>(x, centre, scale, lo, hi, nan);
  return pack_shorts(a, quantise_lanes<Left - 4>(x + (Left > 4 ? 4 : 0), centre + 4, scale + 4, lo + 4, hi + 4, nan + 4));
}

// The input step of the first Left of sixteen variables, as int16 or as bytes.
template <int Offset, int Left, class Y>
INLINE void quantise_part(const float* x, const float* centre, const float* scale, const float* lo, const float* hi, const std::int32_t* nan, Y* y) noexcept {
  const Vec a = quantise_eight<Left>(x, centre, scale, lo, hi, nan);
  const Vec b = quantise_eight<Left - 8>(x + (Left > 8 ? 8 : 0), centre + 8, scale + 8, lo + 8, hi + 8, nan + 8);
  if constexpr (sizeof(Y) == 2) {
    store(y, a);
    store(y + 8, b);
  } else {
    store(y, pack_bytes<Offset>(a, b));
  }
}

INLINE int32x2_t divide_two(int32x2_t n, int32x2_t d) noexcept {
  return vmovn_s64(vcvtq_s64_f64(vdivq_f64(vcvtq_f64_s64(vmovl_s32(n)), vcvtq_f64_s64(vmovl_s32(d)))));
}

// n / d, exactly rounded, for d > 0 and |n| + 2 d < 2^31: an estimate in double, corrected by the integer remainder, so no rounding of a float matters.
template <Round R>
INLINE Vec divide(Vec n, Vec d) noexcept {
  const auto above_than = [](Vec a, Vec b) { return vreinterpretq_s32_u32(vcgtq_s32(a, b)); };
  Vec q = vcombine_s32(divide_two(vget_low_s32(n), vget_low_s32(d)), divide_two(vget_high_s32(n), vget_high_s32(d)));
  Vec above = sub(n, vmulq_s32(q, d));
  for (int k = 0; k < 2; ++k) {
    const Vec negative = right<31>(above);
    q = add(q, negative);
    above = add(above, both(negative, d));
  }
  const Vec beyond = above_than(above, sub(d, set1(1)));
  q = sub(q, beyond);
  above = sub(above, both(beyond, d));
  const Vec below = sub(d, above);
  if constexpr (R == Round::half_up) q = sub(q, above_than(above, sub(below, set1(1))));
  if constexpr (R == Round::half_even) {
    const Vec up = vandq_s32(vreinterpretq_s32_u32(vceqq_s32(above, below)), sub(set1(0), both(q, set1(1))));
    q = sub(q, vorrq_s32(above_than(above, below), up));
  }
  return q;
}

// The mean of each feature in place: total * times / (count * over); count 0 gives 0, as does its total.
template <Round R, std::size_t N>
INLINE void mean(std::int32_t (&total)[N], const std::int32_t (&times)[N], const std::int32_t (&over)[N], int count) noexcept {
  const Vec n = set1(count > 0 ? count : 1);
  for (std::size_t i = 0; i < N; i += lanes)
    store(total + i, divide<R>(vmulq_s32(load(total + i), load(times + i)), vmulq_s32(n, load(over + i))));
}
