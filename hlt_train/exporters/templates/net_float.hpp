// clip((x - centre) * scale, lo, hi) in float32, one operation at a time; NaN gives `nan`.
static inline float standardise(const float* x, float centre, float scale, float lo, float hi, float nan) noexcept {
  const std::uint32_t bits = load_bits(x);
  if (is_nan(bits)) return nan;
  const float z = normalise(bits, centre, scale);
  return z < lo ? lo : (z > hi ? hi : z);
}

static inline float relu(float y) noexcept { return y > 0.0f ? y : 0.0f; }
static inline float tanh(float y) noexcept { return std::tanh(y); }
static inline float silu(float y) noexcept { return y / (1.0f + std::exp(-y)); }
// The tanh form; 0x1.988454p-1 is sqrt(2 / pi).
static inline float gelu(float y) noexcept { return 0.5f * y * (1.0f + std::tanh(0x1.988454p-1f * (y + 0.044715f * (y * y * y)))); }

// y = x w + b. The inner loop runs over outputs, which needs no other order of summation to be vectorised.
template <std::size_t I, std::size_t O>
static inline void affine_float(const float (&x)[I], const float (&w)[I][O], const float (&b)[O], float (&y)[O]) noexcept {
  for (int o = 0; o < static_cast<int>(O); ++o) y[o] = b[o];
  for (int i = 0; i < static_cast<int>(I); ++i) {
    for (int o = 0; o < static_cast<int>(O); ++o) y[o] += x[i] * w[i][o];
  }
}
