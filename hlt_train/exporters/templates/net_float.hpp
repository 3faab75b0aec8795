// clip((x - centre) * scale, lo, hi) in float32, one operation at a time; NaN gives `nan`.
inline float standardise(const float* x, float centre, float scale, float lo, float hi, float nan) noexcept {
  const std::uint32_t bits = load_bits(x);
  if (is_nan(bits)) return nan;
  const float z = normalise(bits, centre, scale);
  return z < lo ? lo : (z > hi ? hi : z);
}

inline float relu(float y) noexcept { return y > 0.0f ? y : 0.0f; }
inline float tanh(float y) noexcept { return std::tanh(y); }
inline float silu(float y) noexcept { return y / (1.0f + std::exp(-y)); }
// The tanh form; 0x1.988454p-1 is sqrt(2 / pi).
inline float gelu(float y) noexcept { return 0.5f * y * (1.0f + std::tanh(0x1.988454p-1f * (y + 0.044715f * (y * y * y)))); }
