// Eight 16-bit floats at a time as float32, and their products. INLINE: to be compiled for the processor of the function around it.
#pragma once
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))

namespace heed::emulation {

enum class Half { kFloat16, kBfloat16 };

typedef float Eight __attribute__((vector_size(32)));
typedef uint32_t EightBits __attribute__((vector_size(32)));

// In the low halves of registers: numbers.h, FromFloat16. Where the exponent is 31 the product's becomes 255.
INLINE void WidenFloat16(const EightBits& half, Eight& wide) {
  const EightBits rest = half & 0x7fff;
  const EightBits scaled = reinterpret_cast<EightBits>(reinterpret_cast<Eight>(rest << 13) * 0x1p112f);
  const EightBits special = reinterpret_cast<EightBits>(rest > 0x7bff) & 0x7f800000;
  wide = reinterpret_cast<Eight>(scaled | special | (half & 0x8000) << 16);
}

// The low halves of eight registers as float32, and the high ones.
template <Half type> INLINE void Widen(const EightBits& bits, Eight& low, Eight& high) {
  if (type == Half::kBfloat16) {
    low = reinterpret_cast<Eight>(bits << 16);
    high = reinterpret_cast<Eight>(bits & 0xffff0000);
  } else {
    WidenFloat16(bits & 0xffff, low);
    WidenFloat16(bits >> 16, high);
  }
}

// A row of a times b [16, 8], of which `even` and `odd` are the rows of these numbers; `low` and `high` are the row's there.
INLINE void MultiplyRow(const Eight& low, const Eight& high, const Eight (&even)[8], const Eight (&odd)[8], Eight& sum) {
  sum = Eight{};
#pragma GCC unroll 8
  for (int pair = 0; pair < 8; pair++) {
    sum += low[pair] * even[pair];
    sum += high[pair] * odd[pair];
  }
}

}  // namespace heed::emulation
