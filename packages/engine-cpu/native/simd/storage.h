// Storage types and the type arithmetic is done in: float16 and bfloat16 are loaded to float32 and rounded once at the store.
#pragma once
#include "vec.h"

namespace heed::HEED_ISA {
struct Float16 { uint16_t bits; };
struct BFloat16 { uint16_t bits; };
template <class T> struct Compute { using type = T; };
template <> struct Compute<Float16> { using type = float; };
template <> struct Compute<BFloat16> { using type = float; };
/// The accumulator type of a storage type: float for 16-bit floats, else itself.
template <class T> using Acc = typename Compute<T>::type;

HEED_INLINE float ToFloat(BFloat16 x) { return BitCast<float>(static_cast<uint32_t>(x.bits) << 16); }
HEED_INLINE float ToFloat(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Shift the exponent and mantissa into place and rescale by 2^112; infinities and NaN get the top exponent.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  const float scaled = BitCast<float>(rest << 13) * BitCast<float>(uint32_t{(127 + 112) << 23});
  const uint32_t top = rest >= 0x7c00 ? 0x7f800000u | (rest << 13) : BitCast<uint32_t>(scaled);
  return BitCast<float>(sign | top);
#endif
}
HEED_INLINE float ToFloat(float x) { return x; }
HEED_INLINE double ToFloat(double x) { return x; }

HEED_INLINE BFloat16 ToBFloat16(float x) {
  const uint32_t u = BitCast<uint32_t>(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((u >> 16) | 0x40)};  // NaN stays NaN
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
HEED_INLINE Float16 ToFloat16(float x) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, 0))};
#else
  const uint32_t u = BitCast<uint32_t>(x), sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
  if (rest > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00 | ((rest >> 13) & 0x3ff))};
  if (rest >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 65536 or more
  if (rest < 0x38800000) {  // subnormal: let float addition round at 2^-24
    const float sum = BitCast<float>(rest) + 0.5f;
    return {static_cast<uint16_t>(sign | (BitCast<uint32_t>(sum) - 0x3f000000u))};
  }
  const uint32_t rounded = rest + 0xfff + ((rest >> 13) & 1) - 0x38000000u;
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
#endif
}
template <class T> HEED_INLINE T FromFloat(Acc<T> x);
template <> HEED_ALWAYS_INLINE float FromFloat<float>(float x) { return x; }
template <> HEED_ALWAYS_INLINE double FromFloat<double>(double x) { return x; }
template <> HEED_ALWAYS_INLINE BFloat16 FromFloat<BFloat16>(float x) { return ToBFloat16(x); }
template <> HEED_ALWAYS_INLINE Float16 FromFloat<Float16>(float x) { return ToFloat16(x); }

/// Width<Acc<T>> consecutive elements in the accumulator type.
template <class T> HEED_INLINE Vec<Acc<T>> LoadAs(const T* p);
template <> HEED_ALWAYS_INLINE Vec<float> LoadAs<float>(const float* p) { return Load(p); }
template <> HEED_ALWAYS_INLINE Vec<double> LoadAs<double>(const double* p) { return Load(p); }
template <> HEED_ALWAYS_INLINE Vec<float> LoadAs<BFloat16>(const BFloat16* p) {
  // Intrinsics, because GCC 12 widens half a vector at a time: four instructions for one, a third of a decode step.
#if defined(__AVX512F__)
  return (Vec<float>)((__v16su)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) << 16);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  typedef uint16_t Half __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));
  typedef uint32_t Full __attribute__((vector_size(kVecBytes)));
  return BitCast<Vec<float>>(__builtin_convertvector(*reinterpret_cast<const Half*>(p), Full) << 16);
#endif
}
template <> HEED_ALWAYS_INLINE Vec<float> LoadAs<Float16>(const Float16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // As ToFloat, lanes together: a lane at a time took ten times as long.
  typedef uint16_t Half __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));
  typedef uint32_t Full __attribute__((vector_size(kVecBytes)));
  const Full bits = __builtin_convertvector(*reinterpret_cast<const Half*>(p), Full);
  const Full rest = bits & 0x7fff, scale = Full{} + (uint32_t{127 + 112} << 23);
  const Full scaled = BitCast<Full>(BitCast<Vec<float>>(rest << 13) * BitCast<Vec<float>>(scale));
  return BitCast<Vec<float>>((rest >= 0x7c00 ? 0x7f800000u | (rest << 13) : scaled) | (bits & 0x8000) << 16);
#endif
}
template <class T> HEED_INLINE Vec<Acc<T>> LoadFirstAs(const T* p, int64_t n) {
  if (n >= Width<Acc<T>>) return LoadAs(p);
  Acc<T> lanes[Width<Acc<T>>] __attribute__((aligned(kVecBytes))) = {};
  for (int i = 0; i < n; i++) lanes[i] = ToFloat(p[i]);
  return Load<Acc<T>>(lanes);
}
/// Rounds once to the storage type, to nearest even.
template <class T> HEED_INLINE void StoreAs(T* p, Vec<Acc<T>> x);
template <> HEED_ALWAYS_INLINE void StoreAs<float>(float* p, Vec<float> x) { Store(p, x); }
template <> HEED_ALWAYS_INLINE void StoreAs<double>(double* p, Vec<double> x) { Store(p, x); }
template <> HEED_ALWAYS_INLINE void StoreAs<BFloat16>(BFloat16* p, Vec<float> x) {
  typedef uint16_t Half __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));
  typedef uint32_t Full __attribute__((vector_size(kVecBytes)));
  const Full u = BitCast<Full>(x);
  const Full rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, nan = (u >> 16) | 0x40;
  *reinterpret_cast<Half*>(p) = __builtin_convertvector((u & 0x7fffffff) > 0x7f800000 ? nan : rounded, Half);
}
template <> HEED_ALWAYS_INLINE void StoreAs<Float16>(Float16* p, Vec<float> x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, (__m512)x, 0));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x, 0));
#else
  for (int i = 0; i < Width<float>; i++) p[i] = ToFloat16(x[i]);
#endif
}
template <class T> HEED_INLINE void StoreFirstAs(T* p, Vec<Acc<T>> x, int64_t n) {
  if (n >= Width<Acc<T>>) return StoreAs(p, x);
  for (int i = 0; i < n; i++) p[i] = FromFloat<T>(x[i]);
}

template <class T> struct Tag { using type = T; };
/// The only place where a floating dtype code becomes a type: calls f(Tag<T>{}); returns f's status, or `otherwise`.
template <class F> HEED_INLINE int DispatchFloat(int32_t dtype, int otherwise, const F& f) {
  switch (dtype) {
    case 0: return f(Tag<double>{});
    case 1: return f(Tag<float>{});
    case 2: return f(Tag<Float16>{});
    case 3: return f(Tag<BFloat16>{});
  }
  return otherwise;
}
}  // namespace heed::HEED_ISA
