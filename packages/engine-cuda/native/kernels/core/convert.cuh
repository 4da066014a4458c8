// Conversion between any two dtypes. To a float: to nearest even, rounded once. Float to integer: toward zero, saturated, NaN is 0.
// Integer to narrower integer: modulo. To bool: x != 0.
#pragma once
#include "../../abi/heed_cuda_args.h"
#include "numbers.cuh"

namespace heed {
/// double to float, rounded to odd: a later rounding to 16 bits then gives what one rounding of x gives (Boldo, Melquiond 2008).
DEVICE float to_float_odd(double x) {
  const float nearest = static_cast<float>(x);
  const double back = static_cast<double>(nearest);
  if (back == x || x != x) return nearest;
  union { float value; uint32_t bits; } odd = {nearest};
  if (fabs(back) > fabs(x)) odd.bits--;  // toward zero; an infinity becomes the largest float
  odd.bits |= 1;
  return odd.value;
}
template <typename To> DEVICE To float_to_integer(double x) {
  constexpr double most = sizeof(To) == 8 ? 9223372036854775808.0 : sizeof(To) == 4 ? 2147483648.0 : 256.0;
  constexpr double least = sizeof(To) == 1 ? 0.0 : -most;
  if (x != x) return 0;
  if (x >= most) return static_cast<To>(sizeof(To) == 8 ? INT64_MAX : sizeof(To) == 4 ? INT32_MAX : UINT8_MAX);
  if (x <= least) return static_cast<To>(sizeof(To) == 8 ? INT64_MIN : sizeof(To) == 4 ? INT32_MIN : 0);
  return static_cast<To>(x);
}

/// A value of any dtype on its way: a float as `real`, anything else as `whole`.
struct Wide {
  double real;
  int64_t whole;
};
DEVICE bool is_float_dtype(int32_t dtype) { return dtype <= HEED_BFLOAT16; }

template <typename T, int N> DEVICE void load_real(const heed_tensor& t, int64_t offset, int64_t step, int n, Wide (&x)[N]) {
  Acc<T> values[N];
  load_wide<T>(static_cast<const T*>(t.data) + offset, step, n, values);
  UNROLL for (int i = 0; i < N; i++) x[i] = {static_cast<double>(values[i]), 0};
}
template <typename T, int N> DEVICE void load_whole(const heed_tensor& t, int64_t offset, int64_t step, int n, Wide (&x)[N]) {
  T values[N];
  load_elements(static_cast<const T*>(t.data) + offset, step, n, values);
  UNROLL for (int i = 0; i < N; i++) x[i] = {0, static_cast<int64_t>(values[i])};
}
template <int N> DEVICE void load_any(const heed_tensor& t, int64_t offset, int64_t step, int n, Wide (&x)[N]) {
  switch (t.dtype) {
    case HEED_FLOAT64: return load_real<double>(t, offset, step, n, x);
    case HEED_FLOAT32: return load_real<float>(t, offset, step, n, x);
    case HEED_FLOAT16: return load_real<f16>(t, offset, step, n, x);
    case HEED_BFLOAT16: return load_real<bf16>(t, offset, step, n, x);
    case HEED_INT32: return load_whole<int32_t>(t, offset, step, n, x);
    case HEED_INT64: return load_whole<int64_t>(t, offset, step, n, x);
    default: return load_whole<uint8_t>(t, offset, step, n, x);
  }
}

template <typename T> struct Convert {  // the integers
  static DEVICE T from(Wide x, bool real) { return real ? float_to_integer<T>(x.real) : static_cast<T>(x.whole); }
};
template <> struct Convert<double> {
  static DEVICE double from(Wide x, bool real) { return real ? x.real : static_cast<double>(x.whole); }
};
template <> struct Convert<float> {
  static DEVICE float from(Wide x, bool real) { return real ? static_cast<float>(x.real) : static_cast<float>(x.whole); }
};
template <> struct Convert<f16> {
  static DEVICE f16 from(Wide x, bool real) { return from_float<f16>(to_float_odd(Convert<double>::from(x, real))); }
};
template <> struct Convert<bf16> {
  static DEVICE bf16 from(Wide x, bool real) { return from_float<bf16>(to_float_odd(Convert<double>::from(x, real))); }
};
struct Bool { uint8_t value; };
template <> struct Convert<Bool> {
  static DEVICE Bool from(Wide x, bool real) { return {static_cast<uint8_t>(real ? x.real != 0 : x.whole != 0)}; }
};
template <typename T, int N>
DEVICE void store_as(const heed_tensor& t, int64_t offset, int64_t step, int n, const Wide (&x)[N], bool real) {
  T values[N];
  UNROLL for (int i = 0; i < N; i++) values[i] = Convert<T>::from(x[i], real);
  store_elements(static_cast<T*>(t.data) + offset, step, n, values);
}
template <int N>
DEVICE void store_any(const heed_tensor& t, int64_t offset, int64_t step, int n, const Wide (&x)[N], bool real) {
  switch (t.dtype) {
    case HEED_FLOAT64: return store_as<double>(t, offset, step, n, x, real);
    case HEED_FLOAT32: return store_as<float>(t, offset, step, n, x, real);
    case HEED_FLOAT16: return store_as<f16>(t, offset, step, n, x, real);
    case HEED_BFLOAT16: return store_as<bf16>(t, offset, step, n, x, real);
    case HEED_INT32: return store_as<int32_t>(t, offset, step, n, x, real);
    case HEED_INT64: return store_as<int64_t>(t, offset, step, n, x, real);
    case HEED_UINT8: return store_as<uint8_t>(t, offset, step, n, x, real);
    default: return store_as<Bool>(t, offset, step, n, x, real);
  }
}
}  // namespace heed
