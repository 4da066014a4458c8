// Elements as kernels compute with them: 16-bit floats in float32, everything else in its own type; functions under one name for
// float and double; vectors of neighbouring elements.
#pragma once
#include <math.h>

#include "../../device/device.h"

namespace heed {
template <typename T> struct Accumulator { using type = T; };
template <> struct Accumulator<f16> { using type = float; };
template <> struct Accumulator<bf16> { using type = float; };
template <typename T> using Acc = typename Accumulator<T>::type;

DEVICE float widen(f16 x) { return to_float(x); }
DEVICE float widen(bf16 x) { return to_float(x); }
template <typename T> DEVICE T widen(T x) { return x; }
template <typename T> struct Narrow {
  static DEVICE T from(T x) { return x; }
};
template <> struct Narrow<f16> {
  static DEVICE f16 from(float x) { return from_float<f16>(x); }
};
template <> struct Narrow<bf16> {
  static DEVICE bf16 from(float x) { return from_float<bf16>(x); }
};
template <typename T> DEVICE T narrow(Acc<T> x) { return Narrow<T>::from(x); }

template <typename T> struct Traits;
template <> struct Traits<float> {
  static constexpr bool is_float = true;
  static DEVICE float lowest() { return -INFINITY; }
  static DEVICE float highest() { return INFINITY; }
};
template <> struct Traits<double> {
  static constexpr bool is_float = true;
  static DEVICE double lowest() { return -static_cast<double>(INFINITY); }
  static DEVICE double highest() { return static_cast<double>(INFINITY); }
};
template <> struct Traits<int32_t> {
  using Unsigned = uint32_t;
  static constexpr bool is_float = false;
  static DEVICE int32_t lowest() { return INT32_MIN; }
  static DEVICE int32_t highest() { return INT32_MAX; }
};
template <> struct Traits<int64_t> {
  using Unsigned = uint64_t;
  static constexpr bool is_float = false;
  static DEVICE int64_t lowest() { return INT64_MIN; }
  static DEVICE int64_t highest() { return INT64_MAX; }
};

// Integers wrap: their arithmetic is that of the unsigned type, where C++ defines it.
template <typename A> DEVICE A add(A a, A b) {
  if constexpr (Traits<A>::is_float) return a + b;
  else return static_cast<A>(static_cast<typename Traits<A>::Unsigned>(a) + static_cast<typename Traits<A>::Unsigned>(b));
}
template <typename A> DEVICE A subtract(A a, A b) {
  if constexpr (Traits<A>::is_float) return a - b;
  else return static_cast<A>(static_cast<typename Traits<A>::Unsigned>(a) - static_cast<typename Traits<A>::Unsigned>(b));
}
template <typename A> DEVICE A multiply(A a, A b) {
  if constexpr (Traits<A>::is_float) return a * b;
  else return static_cast<A>(static_cast<typename Traits<A>::Unsigned>(a) * static_cast<typename Traits<A>::Unsigned>(b));
}
// NaN where either is.
template <typename A> DEVICE A larger(A a, A b) { return a > b || a != a ? a : b; }
template <typename A> DEVICE A smaller(A a, A b) { return a < b || a != a ? a : b; }

DEVICE float exponential(float x) { return expf(x); }
DEVICE double exponential(double x) { return exp(x); }
DEVICE float logarithm(float x) { return logf(x); }
DEVICE double logarithm(double x) { return log(x); }
DEVICE float square_root(float x) { return sqrtf(x); }
DEVICE double square_root(double x) { return sqrt(x); }
DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
DEVICE double hyperbolic_tangent(double x) { return tanh(x); }
DEVICE float power(float x, float y) { return powf(x, y); }
DEVICE double power(double x, double y) { return pow(x, y); }
DEVICE float magnitude(float x) { return fabsf(x); }
DEVICE double magnitude(double x) { return fabs(x); }
/// From e = exp(-|x|) <= 1: accurate relative to its value for very negative x too.
template <typename A> DEVICE A sigmoid(A x) {
  const A e = exponential(-magnitude(x));
  return (x < 0 ? e : A(1)) / (1 + e);
}

template <typename T, int N> constexpr int vector_alignment = sizeof(T) * N < 16 ? sizeof(T) * N : 16;
template <typename T, int N> struct alignas(vector_alignment<T, N>) Vector { T at[N]; };
/// Elements of 16 bytes, the widest load.
template <typename T> constexpr int vector_width = 16 / sizeof(T);

template <typename T, int N> DEVICE bool is_vector(const T* p, int64_t step, int n) {
  return N > 1 && step == 1 && n == N && reinterpret_cast<uintptr_t>(p) % vector_alignment<T, N> == 0;
}
template <int N, typename T> DEVICE void load_vector(const T* p, T (&x)[N]) {
  const Vector<T, N> v = *reinterpret_cast<const Vector<T, N>*>(p);
  UNROLL for (int i = 0; i < N; i++) x[i] = v.at[i];
}
template <int N, typename T> DEVICE void store_vector(T* p, const T (&x)[N]) {
  Vector<T, N> v;
  UNROLL for (int i = 0; i < N; i++) v.at[i] = x[i];
  *reinterpret_cast<Vector<T, N>*>(p) = v;
}
/// Whether the elements at p, and at each of `rows` rows `step` apart, can be loaded in vectors of N.
template <int N, typename T> DEVICE bool starts_vectors(const T* p, int64_t step, int64_t rows) {
  return reinterpret_cast<uintptr_t>(p) % vector_alignment<T, N> == 0 && (rows == 1 || step * sizeof(T) % vector_alignment<T, N> == 0);
}
/// x = the n <= N elements at p, `step` apart, and zeros; one vector where they lie so.
template <int N, typename T> DEVICE void load_elements(const T* p, int64_t step, int n, T (&x)[N]) {
  if (is_vector<T, N>(p, step, n)) return load_vector(p, x);
  UNROLL for (int i = 0; i < N; i++) x[i] = i < n ? p[i * step] : T{};
}
template <int N, typename T> DEVICE void store_elements(T* p, int64_t step, int n, const T (&x)[N]) {
  if (is_vector<T, N>(p, step, n)) return store_vector(p, x);
  UNROLL for (int i = 0; i < N; i++)
    if (i < n) p[i * step] = x[i];
}
/// The same in the accumulator's type.
template <typename T, int N> DEVICE void load_wide(const T* p, int64_t step, int n, Acc<T> (&x)[N]) {
  T raw[N];
  load_elements(p, step, n, raw);
  UNROLL for (int i = 0; i < N; i++) x[i] = widen(raw[i]);
}
template <typename T, int N> DEVICE void store_narrow(T* p, int64_t step, int n, const Acc<T> (&x)[N]) {
  T raw[N];
  UNROLL for (int i = 0; i < N; i++) raw[i] = narrow<T>(x[i]);
  store_elements(p, step, n, raw);
}
}  // namespace heed
