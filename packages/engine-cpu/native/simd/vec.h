// The seam between kernels and instruction sets: GCC / Clang vectors as wide as the target allows, and the few operations that
// the vector extensions lack. Kernels are written against this file only.
#pragma once
#include "../targets/target.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace heed::HEED_ISA {
#if defined(__AVX512F__)
constexpr int kVecBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32, kRegisters = 16;
#else
constexpr int kVecBytes = 16, kRegisters = 16;
#endif

template <class T> struct Lanes;
template <> struct Lanes<float> {
  typedef float V __attribute__((vector_size(kVecBytes)));
  typedef float U __attribute__((vector_size(kVecBytes), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(kVecBytes)));
  using Int = int32_t;
  static constexpr int kCount = kVecBytes / 4;
};
template <> struct Lanes<double> {
  typedef double V __attribute__((vector_size(kVecBytes)));
  typedef double U __attribute__((vector_size(kVecBytes), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(kVecBytes)));
  using Int = int64_t;
  static constexpr int kCount = kVecBytes / 8;
};
/// A vector of T (float or double), Width<T> lanes wide; Mask<T> holds -1 or 0 per lane, as comparisons give it.
template <class T> using Vec = typename Lanes<T>::V;
template <class T> using Mask = typename Lanes<T>::I;
template <class T> constexpr int Width = Lanes<T>::kCount;

template <class T> HEED_INLINE Vec<T> Set1(T x) { return x - Vec<T>{}; }  // x - 0 keeps the sign of -0
template <class T> HEED_INLINE Vec<T> Load(const T* p) { return *reinterpret_cast<const typename Lanes<T>::U*>(p); }
template <class T> HEED_INLINE void Store(T* p, Vec<T> x) { *reinterpret_cast<typename Lanes<T>::U*>(p) = x; }
/// a * b + c; one rounding where the target has FMA. Spelt out, because -ffp-contract=fast leaves the choice to the compiler, and GCC
/// tuned for Zen splits a lone chain of them: the same sum would then have other bits in another loop.
#if defined(__AVX512F__)
HEED_INLINE Vec<float> Fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
HEED_INLINE Vec<double> Fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
HEED_INLINE Vec<float> Fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
HEED_INLINE Vec<double> Fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm256_fmadd_pd(a, b, c); }
#else
template <class V> HEED_INLINE V Fma(V a, V b, V c) { return a * b + c; }
#endif
/// 64-bit lanes, and the products of their low halves.
typedef uint64_t U64 __attribute__((vector_size(kVecBytes)));
#if defined(__AVX512F__)
HEED_INLINE U64 MultiplyLow(U64 a, U64 b) { return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
HEED_INLINE U64 MultiplyLow(U64 a, U64 b) { return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
#elif defined(__x86_64__)
HEED_INLINE U64 MultiplyLow(U64 a, U64 b) { return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b); }
#else
HEED_INLINE U64 MultiplyLow(U64 a, U64 b) { return (a & uint64_t{0xffffffff}) * (b & uint64_t{0xffffffff}); }
#endif
/// b where a is NaN, so Max(x, running) forgets a NaN in x; the NaN comes back through exp(x - max).
template <class V> HEED_INLINE V Max(V a, V b) { return a > b ? a : b; }
template <class V> HEED_INLINE V Min(V a, V b) { return a < b ? a : b; }
/// Square root, correctly rounded.
template <class T> HEED_INLINE Vec<T> Sqrt(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_sqrt_ps((__m512)x);
  else return (Vec<T>)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_sqrt_ps((__m256)x);
  else return (Vec<T>)_mm256_sqrt_pd((__m256d)x);
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm_sqrt_ps((__m128)x);
  else return (Vec<T>)_mm_sqrt_pd((__m128d)x);
#else
  for (int i = 0; i < Width<T>; i++) x[i] = sizeof(T) == 4 ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
  return x;
#endif
}
/// Lanes 0 .. n - 1 true. n may be negative or beyond the width.
template <class T> HEED_INLINE Mask<T> FirstLanes(int64_t n) {
  Mask<T> index;
  HEED_UNROLL for (int i = 0; i < Width<T>; i++) index[i] = i;
  const int64_t w = Width<T>;
  return index < static_cast<typename Lanes<T>::Int>(n < 0 ? 0 : n > w ? w : n);
}
template <class T> HEED_INLINE Vec<T> Select(Mask<T> m, Vec<T> yes, Vec<T> no) { return m ? yes : no; }
/// The first n lanes from memory, the rest zero; nothing beyond p[n - 1] is read.
template <class T> HEED_INLINE Vec<T> LoadFirst(const T* p, int64_t n) {
  if (n >= Width<T>) return Load(p);
  T lanes[Width<T>] __attribute__((aligned(kVecBytes))) = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return Load<T>(lanes);
}
template <class T> HEED_INLINE void StoreFirst(T* p, Vec<T> x, int64_t n) {
  if (n >= Width<T>) return Store(p, x);
  for (int i = 0; i < n; i++) p[i] = x[i];
}
template <class To, class From> HEED_INLINE To BitCast(From x) {
  static_assert(sizeof(To) == sizeof(From), "BitCast keeps the size");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
}  // namespace heed::HEED_ISA
