// Numbers in 8 bits, as quantised pages keep them beside a scale: int8 as code - 128, and float8 E4M3 (OCP 8-bit Floating Point
// Specification 1.0: sign, 4 bits of exponent with bias 7, 3 of fraction; largest 448, no infinities, 0x7f and 0xff are NaN).
#pragma once
#include "storage.h"

namespace heed::HEED_ISA {
struct Int8Code { uint8_t bits; };
struct E4M3Code { uint8_t bits; };
struct NibbleCode { uint8_t bits; };  // two codes 0 .. 15: see LoadColumns
template <> struct Compute<Int8Code> { using type = float; };
template <> struct Compute<NibbleCode> { using type = float; };
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
/// The low, and the high, half of bytes as numbers 0 .. 15. With AVX-512 by a look-up, which needs no masking of the other half.
HEED_INLINE Vec<float> LowHalves(Mask<float> bytes) {
#if HEED_TABLE_OF_16
  const Vec<float> table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return LookUp(table, bytes);
#else
  return ToFloats(bytes & 15);
#endif
}
HEED_INLINE Vec<float> HighHalves(Mask<float> bytes) { return ToFloats(bytes >> 4); }

template <> HEED_ALWAYS_INLINE Vec<float> LoadAs<Int8Code>(const Int8Code* p) {
  return ToFloats(LoadBytes(reinterpret_cast<const uint8_t*>(p))) - Set1(128.0f);
}
template <> HEED_ALWAYS_INLINE Vec<float> LoadAs<E4M3Code>(const E4M3Code* p) {
  // As a float16 with the same exponent field and the sign moved up: 2^-8 of the number. Sign extension leaves the sign in the top bit of
  // the exponent as well, where NaN belongs instead: one more unit of NaN's fraction carries into that bit, and no other code's does.
#if defined(__AVX512F__)
  const __m128i code = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i field = _mm256_slli_epi16(_mm256_cvtepi8_epi16(code), 7), sum = _mm256_add_epi16(field, _mm256_set1_epi16(0x80));
  const __m256i half = _mm256_ternarylogic_epi32(field, sum, _mm256_set1_epi16(0x4000), 0x78);  // C ? A ^ B : A
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, half) * Set1(256.0f);
#elif defined(__F16C__)
  const __m128i code = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i field = _mm_slli_epi16(_mm_cvtepi8_epi16(code), 7), sum = _mm_add_epi16(field, _mm_set1_epi16(0x80));
  const __m128i top = _mm_set1_epi16(0x4000), half = _mm_or_si128(_mm_andnot_si128(top, field), _mm_and_si128(top, _mm_xor_si128(sum, field)));
  return (Vec<float>)_mm256_cvtph_ps(half) * Set1(256.0f);
#else
  // As ToFloat, lanes together.
  const Mask<float> code = LoadBytes(reinterpret_cast<const uint8_t*>(p)), rest = code & 0x7f;
  const Vec<float> normal = BitCast<Vec<float>>((rest << 20) + (120 << 23)), subnormal = ToFloats(rest) * Set1(0x1p-9f);
  const Mask<float> size = rest < 8 ? BitCast<Mask<float>>(subnormal) : BitCast<Mask<float>>(normal);
  return BitCast<Vec<float>>((rest == 0x7f ? size | 0x7fc00000 : size) | (code & 0x80) << 24);
#endif
}

/// Columns d .. d + lanes - 1 of a row, d a multiple of the width.
template <class C> HEED_INLINE Vec<Acc<C>> LoadColumns(const C* row, int64_t d, int64_t lanes) { return LoadFirstAs(row + d, lanes); }
/// Of 32 columns in 16 bytes, byte i holds column i in its low and column 16 + i in its high half. Rows are padded to 32 columns, so that
/// whole vectors can be read.
template <> HEED_ALWAYS_INLINE Vec<float> LoadColumns<NibbleCode>(const NibbleCode* row, int64_t d, int64_t) {
  return LowHalves(LoadBytes(reinterpret_cast<const uint8_t*>(row) + d / 32 * 16 + d % 16) >> ((d & 16) == 0 ? 0 : 4));
}
template <class C> HEED_INLINE int64_t RowBytes(int64_t columns) { return columns * static_cast<int64_t>(sizeof(C)); }
template <> HEED_ALWAYS_INLINE int64_t RowBytes<NibbleCode>(int64_t columns) { return (columns + 1) / 2; }

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
