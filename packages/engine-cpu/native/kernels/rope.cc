// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): each pair (a, b) of the first rotary_dim components turns by
// the angle of its token's position: a cos - b sin, b cos + a sin. Pairs are (j, j + rotary_dim / 2) or (2j, 2j + 1); the
// tables hold the angles.
#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "rope-inl.h"

namespace heed::HEED_ISA {
namespace {
RopeShape MakeShape(const heed_rope& p) {
  const int64_t bytes = ElementBytes(p.x.dtype), table = ElementBytes(p.cos.dtype);
  RopeShape s;
  s.pairs = p.rotary_dim / 2, s.rest = p.x.shape[3] - 2 * s.pairs;
  s.x_step = p.x.strides[3] * bytes, s.out_step = p.out.strides[3] * bytes;
  s.x_head = p.x.strides[2] * bytes, s.out_head = p.out.strides[2] * bytes, s.heads = p.x.shape[2];
  s.cos_step = p.cos.strides[1] * table, s.sin_step = p.sin.strides[1] * table;
  s.interleaved = p.pairing != HEED_PAIRS_HALF, s.inverse = p.inverse != 0;
  s.copy = Converter(p.out.dtype, p.x.dtype);
  return s;
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
  const int status = DispatchFloat(p.x.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) {
    ParallelRange(B * S, (kTaskElements + H * D - 1) / (H * D), [&](int64_t begin, int64_t end, int) {
      for (int64_t token = begin; token < end; token++) {
        const int64_t b = token / S, s = token % S;
        const int32_t position = *reinterpret_cast<const int32_t*>(At(p.positions, b, s));
        RotateToken<T>(shape, At(p.x, b, s), const_cast<char*>(At(p.out, b, s)), At(p.cos, position), At(p.sin, position));
      }
    });
    return HEED_OK;
  });
  return status == HEED_UNSUPPORTED ? Fail(status, "[rope] not defined for dtype %d", p.x.dtype) : status;
}
}  // namespace heed::HEED_ISA
