// Numbers into the codes of quantised pages. The composed form (src/fused/quantised of the tensor package) gives the same codes: every
// step is one correctly rounded float operation in both.
#pragma once
#include "../simd/codes.h"
#include "../simd/shuffle.h"

namespace heed::HEED_ISA {
constexpr float kSmallestScale = 0x1p-126f;  // the smallest normal float: smaller scales would lose digits, or be 0

/// n numbers as codes; returns their scale, NaN when one of them is not finite. x has room for whole vectors and is not kept.
template <class K> HEED_NOINLINE float EncodeScaled(uint8_t* to, float* x, int64_t n) {
  constexpr int64_t w = Width<float>;
  for (int64_t i = n; i % w != 0; i++) x[i] = 0;
  Vec<float> most = {}, wrong = {};  // v - v is 0, or NaN for NaN and the infinities
  for (int64_t i = 0; i < n; i += w) {
    const Vec<float> v = Load(x + i);
    most = Max(BitCast<Vec<float>>(BitCast<Mask<float>>(v) & 0x7fffffff), most);
    wrong += v - v;
  }
  if (HorizontalSum<float>(wrong) != 0) {
    memset(to, 0, static_cast<size_t>(n));
    return __builtin_nanf("");
  }
  const float wanted = HorizontalMax<float>(most) / kLargestCode<K>;
  const float scale = wanted > kSmallestScale ? wanted : kSmallestScale;
  int64_t i = 0;
  for (; i + w <= n; i += w) StoreBytes(to + i, Encode<K>(Load(x + i) / Set1(scale)));
  if (i < n) {
    uint8_t codes[w];
    StoreBytes(codes, Encode<K>(Load(x + i) / Set1(scale)));
    memcpy(to + i, codes, static_cast<size_t>(n - i));
  }
  return scale;
}
}  // namespace heed::HEED_ISA
