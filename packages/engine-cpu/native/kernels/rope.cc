// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): each pair (a, b) of the first rotary_dim components turns by
// the angle of its token's position: a cos - b sin, b cos + a sin. Pairs are (j, j + rotary_dim / 2) or (2j, 2j + 1); the
// tables hold the angles.
#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "block-inl.h"
#include "convert-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
namespace {
struct RopeShape {
  int64_t pairs, rest;       // rest: components that pass through
  int64_t x_step, out_step;  // bytes between components
  int64_t x_head, out_head, heads;
  int64_t cos_step, sin_step;
  bool inverse;
};
RopeShape MakeShape(const heed_rope& p) {
  const int64_t bytes = ElementBytes(p.x.dtype), table = ElementBytes(p.cos.dtype);
  RopeShape s;
  s.pairs = p.rotary_dim / 2, s.rest = p.x.shape[3] - 2 * s.pairs;
  s.x_step = p.x.strides[3] * bytes, s.out_step = p.out.strides[3] * bytes;
  s.x_head = p.x.strides[2] * bytes, s.out_head = p.out.strides[2] * bytes, s.heads = p.x.shape[2];
  s.cos_step = p.cos.strides[1] * table, s.sin_step = p.sin.strides[1] * table;
  s.inverse = p.inverse != 0;
  return s;
}
/// Pairs (j, j + pairs) of all heads of one token. x and out may be the same memory: a block is read before it is written.
template <class T> void RotateHalves(const RopeShape& s, const char* x, char* out, const char* cos, const char* sin) {
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
        Store<A>(first.at + i, va * vc - vb * vs);
        Store<A>(second.at + i, vb * vc + va * vs);
      }
      char* to = out + head * s.out_head + start * s.out_step;
      Deliver<T>(to, s.out_step, n, first.at);
      Deliver<T>(to + s.pairs * s.out_step, s.out_step, n, second.at);
    }
  });
}
/// Pairs (2j, 2j + 1): x times (c c ...) plus its neighbours times (-s s ...), so that rows are read as they lie.
template <class T> void RotateInterleaved(const RopeShape& s, const char* x, char* out, const char* cos, const char* sin) {
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
        Store<A>(y.at + i, v * Load(cos_buffer.at + i) + __builtin_shuffle(v, neighbour) * Load(sin_buffer.at + i));
      }
      Deliver<T>(out + head * s.out_head + start * s.out_step, s.out_step, n, y.at);
    }
  });
}
const char* At(const heed_tensor& t, int64_t i, int64_t j = 0) {
  return static_cast<const char*>(t.data) + (i * t.strides[0] + j * t.strides[1]) * ElementBytes(t.dtype);
}
}  // namespace

int rope(const heed_rope& p) {
  const RopeShape shape = MakeShape(p);
  const int64_t B = p.x.shape[0], S = p.x.shape[1], H = p.x.shape[2], D = p.x.shape[3];
  if (B * S * H * D == 0) return HEED_OK;
  for (int64_t i = 0; i < B * S; i++) {
    const int32_t position = *reinterpret_cast<const int32_t*>(At(p.positions, i / S, i % S));
    if (position < 0 || position >= p.cos.shape[0])
      return Fail(HEED_INVALID, "[rope] position %d is outside the tables of %ld rows", position,
                  static_cast<long>(p.cos.shape[0]));
  }
  const RowConverter copy_row = Converter(p.out.dtype, p.x.dtype);
  const int status = DispatchFloat(p.x.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) {
    ParallelRange(B * S, (kTaskElements + H * D - 1) / (H * D), [&](int64_t begin, int64_t end, int) {
      for (int64_t token = begin; token < end; token++) {
        const int64_t b = token / S, s = token % S;
        const int32_t position = *reinterpret_cast<const int32_t*>(At(p.positions, b, s));
        const char* x = At(p.x, b, s);
        char* out = const_cast<char*>(At(p.out, b, s));
        if (p.pairing == HEED_PAIRS_HALF) RotateHalves<T>(shape, x, out, At(p.cos, position), At(p.sin, position));
        else RotateInterleaved<T>(shape, x, out, At(p.cos, position), At(p.sin, position));
        if (shape.rest == 0 || x == out) continue;
        const int64_t passed = 2 * shape.pairs;
        for (int64_t h = 0; h < H; h++)
          copy_row(out + h * shape.out_head + passed * shape.out_step, shape.out_step,
                   x + h * shape.x_head + passed * shape.x_step, shape.x_step, shape.rest);
      }
    });
    return HEED_OK;
  });
  return status == HEED_UNSUPPORTED ? Fail(status, "[rope] not defined for dtype %d", p.x.dtype) : status;
}
}  // namespace heed::HEED_ISA
