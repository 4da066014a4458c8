// Rotation of the first rotary_dim components of a head (Su et al. 2021, arXiv:2104.09864): (a, b) becomes (a cos - b sin,
// b cos + a sin). Every kernel that rotates does it by turn_unit, so that all give the same bits.
#pragma once
#include "rms_norm.cuh"

namespace heed {
/// How a head turns: the rows of the tables that belong to its token. A position outside of the tables gives NaN.
template <typename A> struct Turn {
  const A *cos, *sin;
  int64_t cos_step, sin_step;
  int pairs, size;  // of the head: its components
  bool interleaved, inverse, known;
};
template <typename A>
DEVICE Turn<A> turn_at(const heed_tensor& cos, const heed_tensor& sin, int64_t position, int64_t size, int rotary_dim, int pairing, bool inverse) {
  const bool known = position >= 0 && position < cos.shape[0];
  const int64_t row = known ? position : 0;
  return {elements<A>(cos) + row * cos.strides[0], elements<A>(sin) + row * sin.strides[0], cos.strides[1], sin.strides[1],
          rotary_dim / 2, static_cast<int>(size), pairing != HEED_PAIRS_HALF, inverse, known};
}
/// Units that a head is cut into: vectors of pairs, then vectors of what passes through.
template <int N> DEVICE int units_of_turn(int pairs, int size, bool interleaved) {
  const int turned = interleaved ? 2 * pairs : pairs;
  return (turned + N - 1) / N + (size - 2 * pairs + N - 1) / N;
}
template <int N, typename A> DEVICE void load_angles(const Turn<A>& t, int pair, int count, A (&c)[N], A (&s)[N]) {
  load_elements(t.cos + pair * t.cos_step, t.cos_step, count, c);
  load_elements(t.sin + pair * t.sin_step, t.sin_step, count, s);
  UNROLL for (int k = 0; k < N; k++) {
    if (t.inverse) s[k] = -s[k];
    if (!t.known) c[k] = s[k] = NAN;
  }
}
/// Unit `unit` of a head: get(place, count, values) loads neighbours of it, put stores them.
template <int N, typename A, typename Get, typename Put> DEVICE void turn_unit(const Turn<A>& t, int unit, Get get, Put put) {
  const int turned = t.interleaved ? 2 * t.pairs : t.pairs, units = (turned + N - 1) / N;
  A a[N];
  if (unit >= units) {
    const int at = 2 * t.pairs + (unit - units) * N, count = t.size - at < N ? t.size - at : N;
    get(at, count, a);
    return put(at, count, a);
  }
  const int at = unit * N, count = turned - at < N ? turned - at : N;
  if (t.interleaved) {
    A c[N / 2], s[N / 2];
    load_angles(t, at / 2, count / 2, c, s);
    get(at, count, a);
    UNROLL for (int k = 0; k < N / 2; k++) {
      const A first = a[2 * k], second = a[2 * k + 1];
      a[2 * k] = fused(first, c[k], -(second * s[k]));
      a[2 * k + 1] = fused(second, c[k], first * s[k]);
    }
    return put(at, count, a);
  }
  A b[N], c[N], s[N];
  load_angles(t, at, count, c, s);
  get(at, count, a);
  get(at + t.pairs, count, b);
  UNROLL for (int k = 0; k < N; k++) {
    const A first = a[k];
    a[k] = fused(first, c[k], -(b[k] * s[k]));
    b[k] = fused(b[k], c[k], first * s[k]);
  }
  put(at, count, a);
  put(at + t.pairs, count, b);
}
/// Threads take units in turn, those of a head one after the other, so that neighbouring threads touch neighbouring vectors.
template <typename T> DEVICE void rope(const heed_cuda_rope& args) {
  using A = Acc<T>;
  constexpr int N = vector_width<T>;
  const heed_rope& p = args.problem;
  const int64_t S = p.x.shape[1], H = p.x.shape[2], D = p.x.shape[3];
  const int per_head = units_of_turn<N>(p.rotary_dim / 2, static_cast<int>(D), p.pairing != HEED_PAIRS_HALF);
  for (int64_t unit = first_unit(); unit < args.units; unit += unit_step()) {
    const int64_t row = divide(unit, per_head), token = divide(row, H), h = row - token * H, b = divide(token, S), s = token - b * S;
    const int64_t position = elements<int32_t>(p.positions)[b * p.positions.strides[0] + s * p.positions.strides[1]];
    const Turn<A> t = turn_at<A>(p.cos, p.sin, position, D, p.rotary_dim, p.pairing, p.inverse != 0);
    const T* x = elements<T>(p.x) + b * p.x.strides[0] + s * p.x.strides[1] + h * p.x.strides[2];
    T* out = elements<T>(p.out) + b * p.out.strides[0] + s * p.out.strides[1] + h * p.out.strides[2];
    turn_unit<N>(
        t, static_cast<int>(unit - row * per_head),
        [&](int64_t i, int count, A (&v)[N]) { load_wide<T>(x + i * p.x.strides[3], p.x.strides[3], count, v); },
        [&](int64_t i, int count, const A (&v)[N]) { store_narrow<T>(out + i * p.out.strides[3], p.out.strides[3], count, v); });
  }
}
}  // namespace heed
