// Codes of 8 bits in registers.
#pragma once
#include "numbers.cuh"

namespace heed {

// The dtype of 16-bit T.
template <class T> constexpr int kDtype = HEED_BFLOAT16;
template <> constexpr int kDtype<f16> = HEED_FLOAT16;

template <class T>
DEVICE uint32_t from_e4m3x2(uint16_t codes) {
  const uint32_t halves = e4m3_to_f16x2(codes);
  if constexpr (kDtype<T> == HEED_FLOAT16) return halves;
  const Pair x = unpack2<f16>(halves);
  return pack2<T>(x.low, x.high);
}
// code - 128: float16 of exponent 10 has the code in its last bits; bfloat16 of exponent 7 its last seven, and the first decides what
// is too much, 128 or 256.
template <class T>
DEVICE uint32_t from_int8x2(uint32_t codes, uint32_t selector) {
  if constexpr (kDtype<T> == HEED_FLOAT16) return subtract2<T>(permute_bytes(codes, 0x64646464, selector), 0x64806480);
  return subtract2<T>(permute_bytes(codes & 0x7f7f7f7f, 0x43434343, selector), permute_bytes(~codes & 0x80808080, 0x43434343, selector));
}
// Two codes as T: exact, both formats fit 8 significant bits. Of a word its two halves, or its even and its odd bytes.
template <class T, bool kE4m3, bool kPairs>
DEVICE void unpack_codes(uint32_t codes, uint32_t& first, uint32_t& second) {
  if constexpr (kE4m3) {
    const uint32_t pairs = kPairs ? codes : permute_bytes(codes, 0, 0x3120);
    first = from_e4m3x2<T>(static_cast<uint16_t>(pairs));
    second = from_e4m3x2<T>(static_cast<uint16_t>(pairs >> 16));
  } else {
    constexpr uint32_t kFirst = kPairs ? 0x4140 : 0x4240, kSecond = kPairs ? 0x4342 : 0x4341;
    first = from_int8x2<T>(codes, kFirst);
    second = from_int8x2<T>(codes, kSecond);
  }
}

}  // namespace heed
