// float16, bfloat16 and the approximations of the special function unit, as PTX defines them.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace heed::emulation {

inline uint32_t BitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline float FromBfloat16(uint16_t bits) { return FloatOf(static_cast<uint32_t>(bits) << 16); }

/// Round to nearest, ties to even; NaN becomes 0x7fff (PTX ISA, cvt).
inline uint16_t ToBfloat16(float x) {
  const uint32_t bits = BitsOf(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float FromFloat16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, rest = bits & 0x7fff;
  if (rest >= 0x7c00) return FloatOf(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Below 0x400 a subnormal: the product with 2^112 is exact and puts all others right as well.
  return FloatOf(sign | BitsOf(FloatOf(rest << 13) * 0x1p112f));
}

/// Round to nearest, ties to even; beyond 65519 infinity; NaN becomes 0x7fff.
inline uint16_t ToFloat16(float x) {
  const uint32_t bits = BitsOf(x), rest = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (rest > 0x7f800000) return 0x7fff;
  if (rest >= 0x477ff000) return sign | 0x7c00;  // 65520 and above
  if (rest < 0x38800000)                         // below 2^-14: the sum with 0.5 rounds to multiples of 2^-24
    return sign | static_cast<uint16_t>(BitsOf(FloatOf(rest) + 0.5f) - 0x3f000000);
  return sign | static_cast<uint16_t>((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}

/// Subnormal numbers become zeros of their sign (.ftz).
inline float FlushSubnormal(float x) {
  const uint32_t bits = BitsOf(x);
  return (bits & 0x7f800000) == 0 ? FloatOf(bits & 0x80000000) : x;
}
/// ex2.approx.ftz.f32: the device's relative error is at most 2^-22, this one's half a unit or so.
inline float Exp2Approx(float x) { return FlushSubnormal(exp2f(FlushSubnormal(x))); }
/// lg2.approx.ftz.f32
inline float Log2Approx(float x) { return FlushSubnormal(log2f(FlushSubnormal(x))); }
/// rcp.approx.ftz.f32: at most one unit in the last place on a device.
inline float ReciprocalApprox(float x) { return FlushSubnormal(1.0f / FlushSubnormal(x)); }

}  // namespace heed::emulation
