// Conversion of one element between any two dtypes, and of a strided row through a table of functions (copy.cc).
// To a float: to nearest even, rounded once. Float to integer: toward zero, saturated, NaN is 0. Integer to narrower integer:
// modulo. To bool: x != 0.
#pragma once
#include "../simd/integer.h"

namespace heed::HEED_ISA {
struct Bool {
  uint8_t value;
};

/// Converts n elements; the steps are in bytes.
using RowConverter = void (*)(void* to, int64_t to_step, const void* from, int64_t from_step, int64_t n);
/// The converter between two dtype codes, which must be valid.
RowConverter Converter(int32_t to, int32_t from);

/// double to float, rounded to odd: a later rounding to 16 bits then gives what one rounding of x gives (Boldo, Melquiond
/// 2008).
HEED_INLINE float ToFloatOdd(double x) {
  const float nearest = static_cast<float>(x);
  const double back = static_cast<double>(nearest);
  uint32_t bits = BitCast<uint32_t>(nearest);
  const bool inexact = back != x && x == x, outward = __builtin_fabs(back) > __builtin_fabs(x);
  bits = inexact ? (bits - (outward ? 1u : 0u)) | 1u : bits;
  return BitCast<float>(bits);
}
/// An int64 as a double that rounds to any float of at most 32 bits as the integer itself does: beyond 2^53 the low bits are
/// gathered into one sticky bit.
HEED_INLINE double ToDoubleSticky(int64_t x) {
  const bool wide = x >= (int64_t{1} << 53) || x <= -(int64_t{1} << 53);
  const int64_t sticky = (x & ~int64_t{0x7ff}) | ((x & 0x7ff) != 0 ? 0x400 : 0);
  return static_cast<double>(wide ? sticky : x);
}

// Reals, by way of the arithmetic type.
template <class To> HEED_INLINE To RoundTo(double x) {
  if constexpr (sizeof(To) == 2) return FromFloat<To>(ToFloatOdd(x));
  else return static_cast<To>(x);
}
template <class To> HEED_INLINE To RoundTo(float x) {
  if constexpr (sizeof(To) == 2) return FromFloat<To>(x);
  else return static_cast<To>(x);
}
/// x toward zero, into the range of To; NaN is 0. `low` and `past` are the smallest value and one past the largest.
template <class To, class A> HEED_INLINE To Saturate(A x, To low, To high, A past) {
  const bool below = x <= static_cast<A>(low), above = x >= past, inside = !below && !above && x == x;
  const To value = static_cast<To>(inside ? x : A{0});
  return below ? low : above ? high : value;
}
template <class T> struct Kind {
  static constexpr bool kReal = true, kBool = false;
};
template <> struct Kind<int32_t> {
  static constexpr bool kReal = false, kBool = false;
};
template <> struct Kind<int64_t> {
  static constexpr bool kReal = false, kBool = false;
};
template <> struct Kind<uint8_t> {
  static constexpr bool kReal = false, kBool = false;
};
template <> struct Kind<Bool> {
  static constexpr bool kReal = false, kBool = true;
};

/// x as To.
template <class To, class From> HEED_INLINE To Convert(From x) {
  if constexpr (kSame<To, From>) {
    return x;
  } else if constexpr (Kind<From>::kBool) {
    return Convert<To>(static_cast<int32_t>(x.value != 0));
  } else if constexpr (Kind<From>::kReal) {
    const auto value = ToFloat(x);
    using A = decltype(value + value);
    if constexpr (Kind<To>::kBool) return {static_cast<uint8_t>(value != 0)};
    else if constexpr (Kind<To>::kReal) return RoundTo<To>(value);
    else if constexpr (kSame<To, int32_t>) return Saturate<To, A>(value, INT32_MIN, INT32_MAX, A{2147483648.0});
    else if constexpr (kSame<To, int64_t>) return Saturate<To, A>(value, INT64_MIN, INT64_MAX, A{9223372036854775808.0});
    else return Saturate<To, A>(value, 0, 255, A{256});
  } else {
    if constexpr (Kind<To>::kBool) return {static_cast<uint8_t>(x != 0)};
    else if constexpr (!Kind<To>::kReal) return static_cast<To>(x);
    else if constexpr (sizeof(To) == 2) return RoundTo<To>(ToDoubleSticky(x));
    else return static_cast<To>(x);
  }
}
}  // namespace heed::HEED_ISA
