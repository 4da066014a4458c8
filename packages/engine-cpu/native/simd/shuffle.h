// Lanes moved between and within vectors by patterns that are constants.
#pragma once
#include "vec.h"

namespace heed::HEED_ISA {
/// 0 .. N - 1 as template arguments: shuffle patterns must be constants, or the compiler builds them at run time, lane by lane.
template <int N, int... I> struct Indices : Indices<N - 1, N - 1, I...> {};
template <int... I> struct Indices<0, I...> {};
/// Lane i of the result is lane P::At(i) of a followed by b.
template <class P, class V, int... I> HEED_INLINE V ShuffleLanes(V a, V b, Indices<0, I...>) {
  return __builtin_shufflevector(a, b, P::At(I)...);
}
template <class T, class P> HEED_INLINE Vec<T> Shuffle(Vec<T> a, Vec<T> b) {
  return ShuffleLanes<P>(a, b, Indices<Width<T>>{});
}
/// 16 bytes from each of p, p + step, ... (in bytes).
HEED_INLINE Vec<float> LoadQuads(const uint8_t* p, [[maybe_unused]] int64_t step) {
#if defined(__AVX2__)
  const auto at = [=](int i) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + i * step)); };
  const __m256 two = _mm256_insertf128_ps(_mm256_castps128_ps256(at(0)), at(1), 1);
#if defined(__AVX512F__)
  const __m512 three = _mm512_maskz_insertf32x4(0xffff, _mm512_castps256_ps512(two), at(2), 2);
  return (Vec<float>)_mm512_maskz_insertf32x4(0xffff, three, at(3), 3);
#else
  return (Vec<float>)two;
#endif
#else
  return Load(reinterpret_cast<const float*>(p));
#endif
}
template <int Half> struct Swap { static constexpr int At(int i) { return i ^ Half; } };
/// The largest lane; a NaN may be forgotten.
template <class T, int Half = Width<T> / 2> HEED_INLINE T HorizontalMax(Vec<T> x) {
  x = Max(x, Shuffle<T, Swap<Half>>(x, x));
  if constexpr (Half > 1) return HorizontalMax<T, Half / 2>(x);
  else return x[0];
}
template <class T, int Half = Width<T> / 2> HEED_INLINE T HorizontalSum(Vec<T> x) {
  x = x + Shuffle<T, Swap<Half>>(x, x);
  if constexpr (Half > 1) return HorizontalSum<T, Half / 2>(x);
  else return x[0];
}

/// The halves of two vectors, their lanes alternating.
template <int W, int From> struct Riffle { static constexpr int At(int i) { return (i & 1) * W + i / 2 + From; } };
/// Transposes Width x Width in place: log2(Width) rounds, each interleaving row i with row i + Width / 2.
template <class T> HEED_INLINE void Transpose(Vec<T> (&r)[Width<T>]) {
  constexpr int w = Width<T>;
  HEED_UNROLL for (int stage = 1; stage < w; stage *= 2) {
    Vec<T> t[w];
    HEED_UNROLL for (int i = 0; i < w / 2; i++) {
      t[2 * i] = Shuffle<T, Riffle<w, 0>>(r[i], r[i + w / 2]);
      t[2 * i + 1] = Shuffle<T, Riffle<w, w / 2>>(r[i], r[i + w / 2]);
    }
    HEED_UNROLL for (int i = 0; i < w; i++) r[i] = t[i];
  }
}
}  // namespace heed::HEED_ISA
