// Numbers in 8 bits, as quantised pages keep them beside a scale: int8 as code - 128, and float8 E4M3 (OCP 8-bit Floating Point
// Specification 1.0: sign, 4 bits of exponent with bias 7, 3 of fraction; largest 448, no infinities, 0x7f and 0xff are NaN).
#pragma once
#include "storage.h"

namespace heed::HEED_ISA {
struct Int8Code { uint8_t bits; };
struct E4M3Code { uint8_t bits; };
template <> struct Compute<Int8Code> { using type = float; };
template <> struct Compute<E4M3Code> { using type = float; };
/// Whether a row of K needs a scale; and the largest number that a code stands for.
template <class K> constexpr bool kIsCode = false;
template <> constexpr bool kIsCode<Int8Code> = true;
template <> constexpr bool kIsCode<E4M3Code> = true;
template <class K> constexpr float kLargestCode = 0;
template <> constexpr float kLargestCode<Int8Code> = 127;
template <> constexpr float kLargestCode<E4M3Code> = 448;

HEED_INLINE float ToFloat(Int8Code x) { return static_cast<float>(static_cast<int>(x.bits) - 128); }
HEED_INLINE float ToFloat(E4M3Code x) {
  const uint32_t rest = x.bits & 0x7f, sign = static_cast<uint32_t>(x.bits & 0x80) << 24;
  const float normal = BitCast<float>((rest << 20) + (uint32_t{120} << 23)), subnormal = static_cast<float>(rest) * 0x1p-9f;
  const uint32_t size = rest == 0x7f ? 0x7fc00000u : BitCast<uint32_t>(rest < 8 ? subnormal : normal);
  return BitCast<float>(sign | size);
}

/// Width<float> bytes as integer lanes.
HEED_INLINE Mask<float> LoadBytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Mask<float>)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (Mask<float>)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  typedef uint8_t Bytes __attribute__((vector_size(Width<float>), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Mask<float>);
#endif
}
HEED_INLINE Mask<float> LoadWords(const uint32_t* p) { return BitCast<Mask<float>>(Load(reinterpret_cast<const float*>(p))); }
/// The low bytes of integer lanes 0 .. 255.
HEED_INLINE void StoreBytes(uint8_t* p, Mask<float> x) {
  typedef uint8_t Bytes __attribute__((vector_size(Width<float>), aligned(1), may_alias));
  *reinterpret_cast<Bytes*>(p) = __builtin_convertvector(x, Bytes);
}
HEED_INLINE Vec<float> ToFloats(Mask<float> x) { return __builtin_convertvector(x, Vec<float>); }
#if defined(__AVX512F__)
#define HEED_TABLE_OF_16 1
/// Lane i is lane x[i] mod 16 of the table.
HEED_INLINE Vec<float> LookUp(Vec<float> table, Mask<float> x) { return (Vec<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)x, (__m512)table); }
#else
#define HEED_TABLE_OF_16 0
#endif
/// Code (0 .. 15) in the low four bits of lanes as a number.
HEED_INLINE Vec<float> LowCode(Mask<float> x) {
#if HEED_TABLE_OF_16
  const Vec<float> table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return LookUp(table, x);
#else
  return ToFloats(x & 15);
#endif
}
/// The low, and the high, half of bytes as numbers 0 .. 15. With AVX-512 by a look-up, which needs no masking of the other half.
HEED_INLINE Vec<float> LowHalves(Mask<float> bytes) { return LowCode(bytes); }
HEED_INLINE Vec<float> HighHalves(Mask<float> bytes) { return ToFloats(bytes >> 4); }

template <> HEED_ALWAYS_INLINE Vec<float> LoadAs<Int8Code>(const Int8Code* p) {
  return ToFloats(LoadBytes(reinterpret_cast<const uint8_t*>(p))) - Set1(128.0f);
}
#if defined(__AVX512F__) || defined(__F16C__)
// E4M3 as a float16 with the same exponent field and the sign moved up: 2^-8 of the number. Sign extension leaves the sign in the top bit of
// the exponent as well, where NaN belongs instead: one more unit of NaN's fraction carries into that bit, and no other code's does.
#if defined(__AVX512F__)
HEED_INLINE __m512i E4M3Halves(__m256i code) {
  const __m512i field = _mm512_slli_epi16(_mm512_cvtepi8_epi16(code), 7), sum = _mm512_add_epi16(field, _mm512_set1_epi16(0x80));
  return _mm512_ternarylogic_epi32(field, sum, _mm512_set1_epi16(0x4000), 0x78);  // A ^ B & C
}
#else
HEED_INLINE __m256i E4M3Halves(__m128i code) {
  const __m256i field = _mm256_slli_epi16(_mm256_cvtepi8_epi16(code), 7), sum = _mm256_add_epi16(field, _mm256_set1_epi16(0x80));
  return _mm256_xor_si256(field, _mm256_and_si256(sum, _mm256_set1_epi16(0x4000)));
}
#endif
#endif
/// What LoadUnits gives has to be multiplied by.
template <class C> constexpr float kUnit = 1;
#if defined(__F16C__)
template <> constexpr float kUnit<E4M3Code> = 256;
#endif
/// 2 Width consecutive numbers, in units of kUnit.
template <class C> HEED_INLINE void LoadUnits(const C* p, Vec<Acc<C>> (&to)[2]) {
  to[0] = LoadAs(p);
  to[1] = LoadAs(p + Width<Acc<C>>);
}
#if defined(__F16C__)
template <> HEED_ALWAYS_INLINE void LoadUnits<E4M3Code>(const E4M3Code* p, Vec<float> (&to)[2]) {
#if defined(__AVX512F__)
  const __m512i halves = E4M3Halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  to[0] = (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm512_castsi512_si256(halves));
  to[1] = (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm512_maskz_extracti64x4_epi64(0xff, halves, 1));
#else
  const __m256i halves = E4M3Halves(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  to[0] = (Vec<float>)_mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  to[1] = (Vec<float>)_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
#endif
}
#endif
template <> HEED_ALWAYS_INLINE Vec<float> LoadAs<E4M3Code>(const E4M3Code* p) {
#if defined(__AVX512F__)
  const __m256i code = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm512_castsi512_si256(E4M3Halves(code))) * Set1(256.0f);
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm256_castsi256_si128(E4M3Halves(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))) * Set1(256.0f);
#else
  // As ToFloat, lanes together.
  const Mask<float> code = LoadBytes(reinterpret_cast<const uint8_t*>(p)), rest = code & 0x7f;
  const Vec<float> normal = BitCast<Vec<float>>((rest << 20) + (120 << 23)), subnormal = ToFloats(rest) * Set1(0x1p-9f);
  const Mask<float> size = rest < 8 ? BitCast<Mask<float>>(subnormal) : BitCast<Mask<float>>(normal);
  return BitCast<Vec<float>>((rest == 0x7f ? size | 0x7fc00000 : size) | (code & 0x80) << 24);
#endif
}

/// The first n of Width consecutive numbers, the rest zero, in units of kUnit.
template <class C> HEED_INLINE Vec<Acc<C>> LoadFirstUnits(const C* p, int64_t n) {
  if constexpr (kUnit<C> == 1) return LoadFirstAs(p, n);
  else return LoadFirstAs(p, n) * Set1(1 / kUnit<C>);
}
template <class C> HEED_INLINE int64_t RowBytes(int64_t columns) { return columns * static_cast<int64_t>(sizeof(C)); }

/// y to the nearest integer, ties to even: past 1.5 * 2^23 a float has no fraction. |y| < 2^22.
HEED_INLINE Vec<float> RoundToInteger(Vec<float> y) {
  const Vec<float> shift = Set1(0x1.8p23f);
  return (y + shift) - shift;
}
/// The nearest codes of |y| <= kLargestCode<K>, ties to even.
template <class K> HEED_INLINE Mask<float> Encode(Vec<float> y);
template <> HEED_ALWAYS_INLINE Mask<float> Encode<Int8Code>(Vec<float> y) {
  return __builtin_convertvector(RoundToInteger(y), Mask<float>) + 128;
}
template <> HEED_ALWAYS_INLINE Mask<float> Encode<E4M3Code>(Vec<float> y) {
  const Mask<float> sign = (y < Set1(0.0f)) & 0x80, bits = BitCast<Mask<float>>(y) & 0x7fffffff;
  const Mask<float> normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
  // Below 2^-6 steps are 2^-9, which are the last bits of a float in [2^14, 2^15).
  const Mask<float> subnormal = BitCast<Mask<float>>(BitCast<Vec<float>>(bits) + Set1(0x1p14f)) - (141 << 23);
  const Mask<float> code = bits < (121 << 23) ? subnormal : normal;
  return (code > 126 ? Mask<float>{} + 126 : code) | sign;
}
}  // namespace heed::HEED_ISA
