// Unary and binary operations. A kernel holds every operation of its dtype and branches once a unit, the same way in every thread: the
// bytes bound these kernels, not the branch, and the library stays small.
#pragma once
#include "numbers.cuh"
#include "walk.cuh"

namespace heed {
template <typename A, int N> DEVICE void apply_unary(int op, A (&x)[N]) {
  const auto each = [&](auto f) {
    UNROLL for (int i = 0; i < N; i++) x[i] = f(x[i]);
  };
  switch (op) {
    case HEED_SQUARE: return each([](A v) { return multiply(v, v); });
    case HEED_NEG:  // -x, not 0 - x, which loses the sign of zero
      if constexpr (Traits<A>::is_float) return each([](A v) { return -v; });
      else return each([](A v) { return subtract(A(0), v); });
    case HEED_ABS:
      if constexpr (Traits<A>::is_float) return each([](A v) { return magnitude(v); });
      else return each([](A v) { return v < 0 ? subtract(A(0), v) : v; });
  }
  if constexpr (Traits<A>::is_float) {
    switch (op) {
      case HEED_EXP: return each([](A v) { return exponential(v); });
      case HEED_LOG: return each([](A v) { return logarithm(v); });
      case HEED_SQRT: return each([](A v) { return square_root(v); });
      case HEED_RSQRT: return each([](A v) { return 1 / square_root(v); });
      case HEED_RECIPROCAL: return each([](A v) { return 1 / v; });
      case HEED_TANH: return each([](A v) { return hyperbolic_tangent(v); });
      case HEED_SIGMOID: return each([](A v) { return sigmoid(v); });
      case HEED_SILU: return each([](A v) { return v * sigmoid(v); });
    }
  }
}
template <typename T, int N> DEVICE void unary_units(const heed_cuda_unary& args) {
  const heed_unary& p = args.problem;
  const int64_t x_step = p.x.strides[p.x.rank - 1], out_step = p.out.strides[p.out.rank - 1];
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const Unit<2> at = locate(args.walk, unit, 0, p.out, p.x);
    Acc<T> x[N];
    load_wide<T>(elements<T>(p.x) + at.offsets.at[1], x_step, at.count, x);
    if (p.op == HEED_IS_FINITE) {
      uint8_t finite[N];
      UNROLL for (int i = 0; i < N; i++) finite[i] = x[i] - x[i] == 0;  // inf - inf and NaN - NaN are NaN
      store_elements(elements<uint8_t>(p.out) + at.offsets.at[0], out_step, at.count, finite);
    } else {
      apply_unary(p.op, x);
      store_narrow<T>(elements<T>(p.out) + at.offsets.at[0], out_step, at.count, x);
    }
  }
}
template <typename T> DEVICE void unary(const heed_cuda_unary& args) {
  if (args.walk.width == 1) unary_units<T, 1>(args);
  else unary_units<T, vector_width<T>>(args);
}
template <int N> DEVICE void not_units(const heed_cuda_unary& args) {
  const heed_unary& p = args.problem;
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const Unit<2> at = locate(args.walk, unit, 0, p.out, p.x);
    uint8_t x[N];
    load_elements(elements<uint8_t>(p.x) + at.offsets.at[1], p.x.strides[p.x.rank - 1], at.count, x);
    UNROLL for (int i = 0; i < N; i++) x[i] = x[i] == 0;
    store_elements(elements<uint8_t>(p.out) + at.offsets.at[0], p.out.strides[p.out.rank - 1], at.count, x);
  }
}

template <typename A, int N> DEVICE void apply_binary(int op, A (&a)[N], const A (&b)[N]) {
  const auto each = [&](auto f) {
    UNROLL for (int i = 0; i < N; i++) a[i] = f(a[i], b[i]);
  };
  switch (op) {
    case HEED_ADD: return each([](A x, A y) { return add(x, y); });
    case HEED_SUB: return each([](A x, A y) { return subtract(x, y); });
    case HEED_MUL: return each([](A x, A y) { return multiply(x, y); });
    case HEED_MAX: return each([](A x, A y) { return larger(x, y); });
    case HEED_MIN: return each([](A x, A y) { return smaller(x, y); });
  }
  if constexpr (Traits<A>::is_float) {
    switch (op) {
      case HEED_DIV: return each([](A x, A y) { return x / y; });
      case HEED_POW: return each([](A x, A y) { return power(x, y); });
    }
  }
}
template <typename A, int N> DEVICE void compare(int op, const A (&a)[N], const A (&b)[N], uint8_t (&out)[N]) {
  UNROLL for (int i = 0; i < N; i++)
    out[i] = op == HEED_EQUAL ? a[i] == b[i] : op == HEED_LESS ? a[i] < b[i] : a[i] <= b[i];
}
/// a where keep, else what the operation puts there: a selection, so that a NaN which is not kept is gone.
template <typename A, int N> DEVICE void select(int op, A (&a)[N], const uint8_t (&keep)[N]) {
  const A other = op == HEED_MASK_ZERO ? A(0) : Traits<A>::lowest();
  UNROLL for (int i = 0; i < N; i++) a[i] = keep[i] != 0 ? a[i] : other;
}
template <typename T, int N> DEVICE void binary_units(const heed_cuda_binary& args) {
  const heed_binary& p = args.problem;
  const int last = p.out.rank - 1, op = p.op;
  const int64_t a_step = p.a.strides[last], b_step = p.b.strides[last], out_step = p.out.strides[last];
  const bool masks = op == HEED_MASK_ZERO || op == HEED_MASK_NEG_INF, compares = op >= HEED_EQUAL && op <= HEED_LESS_EQUAL;
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const Unit<3> at = locate(args.walk, unit, 0, p.out, p.a, p.b);
    Acc<T> a[N], b[N];
    uint8_t flags[N];
    load_wide<T>(elements<T>(p.a) + at.offsets.at[1], a_step, at.count, a);
    if (masks) load_elements(elements<uint8_t>(p.b) + at.offsets.at[2], b_step, at.count, flags);
    else load_wide<T>(elements<T>(p.b) + at.offsets.at[2], b_step, at.count, b);
    if (compares) {
      compare(op, a, b, flags);
      store_elements(elements<uint8_t>(p.out) + at.offsets.at[0], out_step, at.count, flags);
      continue;
    }
    if (masks) select(op, a, flags);
    else apply_binary(op, a, b);
    store_narrow<T>(elements<T>(p.out) + at.offsets.at[0], out_step, at.count, a);
  }
}
template <typename T> DEVICE void binary(const heed_cuda_binary& args) {
  if (args.walk.width == 1) binary_units<T, 1>(args);
  else binary_units<T, vector_width<T>>(args);
}
template <int N> DEVICE void logical_units(const heed_cuda_binary& args) {
  const heed_binary& p = args.problem;
  const int last = p.out.rank - 1;
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const Unit<3> at = locate(args.walk, unit, 0, p.out, p.a, p.b);
    uint8_t a[N], b[N];
    load_elements(elements<uint8_t>(p.a) + at.offsets.at[1], p.a.strides[last], at.count, a);
    load_elements(elements<uint8_t>(p.b) + at.offsets.at[2], p.b.strides[last], at.count, b);
    UNROLL for (int i = 0; i < N; i++)
      a[i] = p.op == HEED_AND ? (a[i] != 0) & (b[i] != 0) : (a[i] != 0) | (b[i] != 0);
    store_elements(elements<uint8_t>(p.out) + at.offsets.at[0], p.out.strides[last], at.count, a);
  }
}
}  // namespace heed
