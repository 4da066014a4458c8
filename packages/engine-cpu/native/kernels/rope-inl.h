// Rotation of the heads of one token. Every kernel that rotates does it by these functions, so that all give the same bits:
// products are added by Fma, which leaves the compiler no choice of roundings.
#pragma once
#include "block-inl.h"
#include "convert-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
/// The heads of one token as they lie in memory, and how they turn. Steps are in bytes.
struct RopeShape {
  int64_t pairs, rest;       // rest: components that pass through
  int64_t x_step, out_step;  // between components
  int64_t x_head, out_head, heads;
  int64_t cos_step, sin_step;
  bool interleaved, inverse;
  RowConverter copy;  // of components that pass through
};
/// Pairs (j, j + pairs) of all heads of one token. x and out may be the same memory: a block is read before it is written.
template <class T> HEED_NOINLINE void RotateHalves(const RopeShape& s, const char* x, char* out, const char* cos, const char* sin) {
  using A = Acc<T>;
  Buffer<A> a_buffer, b_buffer, cos_buffer, sin_buffer, first, second;
  ForEachBlock(s.pairs, [&](int64_t start, int64_t n) {
    const A* c = Fetch<A>(cos + start * s.cos_step, s.cos_step, n, cos_buffer.at);
    const A* d = Fetch<A>(sin + start * s.sin_step, s.sin_step, n, sin_buffer.at);
    for (int64_t head = 0; head < s.heads; head++) {
      const char* from = x + head * s.x_head + start * s.x_step;
      const A* a = Fetch<T>(from, s.x_step, n, a_buffer.at);
      const A* b = Fetch<T>(from + s.pairs * s.x_step, s.x_step, n, b_buffer.at);
      for (int64_t i = 0; i < n; i += Width<A>) {
        const Vec<A> va = Load(a + i), vb = Load(b + i), vc = Load(c + i), vs = s.inverse ? -Load(d + i) : Load(d + i);
        Store<A>(first.at + i, Fma(va, vc, -(vb * vs)));
        Store<A>(second.at + i, Fma(vb, vc, va * vs));
      }
      char* to = out + head * s.out_head + start * s.out_step;
      Deliver<T>(to, s.out_step, n, first.at);
      Deliver<T>(to + s.pairs * s.out_step, s.out_step, n, second.at);
    }
  });
}
/// Pairs (2j, 2j + 1): x times (c c ...) plus its neighbours times (-s s ...), so that rows are read as they lie.
template <class T>
HEED_NOINLINE void RotateInterleaved(const RopeShape& s, const char* x, char* out, const char* cos, const char* sin) {
  using A = Acc<T>;
  Buffer<A> x_buffer, y, cos_buffer, sin_buffer;
  Mask<A> neighbour;
  for (int i = 0; i < Width<A>; i++) neighbour[i] = i ^ 1;
  const A sign = s.inverse ? -1 : 1;
  ForEachBlock(2 * s.pairs, [&](int64_t start, int64_t n) {
    for (int64_t i = 0; i < n; i += 2) {
      const int64_t pair = (start + i) / 2;
      cos_buffer.at[i] = cos_buffer.at[i + 1] = *Element<A>(cos, pair * s.cos_step);
      sin_buffer.at[i + 1] = sign * *Element<A>(sin, pair * s.sin_step);
      sin_buffer.at[i] = -sin_buffer.at[i + 1];
    }
    for (int64_t head = 0; head < s.heads; head++) {
      const A* a = Fetch<T>(x + head * s.x_head + start * s.x_step, s.x_step, n, x_buffer.at);
      for (int64_t i = 0; i < n; i += Width<A>) {
        const Vec<A> v = Load(a + i);
        Store<A>(y.at + i, Fma(v, Load(cos_buffer.at + i), __builtin_shuffle(v, neighbour) * Load(sin_buffer.at + i)));
      }
      Deliver<T>(out + head * s.out_head + start * s.out_step, s.out_step, n, y.at);
    }
  });
}
/// All heads of one token, what passes through included. cos and sin: the rows of its position. x and out may be the same memory.
template <class T> HEED_INLINE void RotateToken(const RopeShape& s, const char* x, char* out, const char* cos, const char* sin) {
  if (s.interleaved) RotateInterleaved<T>(s, x, out, cos, sin);
  else RotateHalves<T>(s, x, out, cos, sin);
  if (s.rest == 0 || x == out) return;
  const char* from = x + 2 * s.pairs * s.x_step;
  char* to = out + 2 * s.pairs * s.out_step;
  for (int64_t h = 0; h < s.heads; h++) s.copy(to + h * s.out_head, s.out_step, from + h * s.x_head, s.x_step, s.rest);
}
}  // namespace heed::HEED_ISA
