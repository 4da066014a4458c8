// Norm, rotation and append of a step's tokens in one pass: a token's heads stay in the first-level cache from the projected row to
// the page. Built of the same row functions as rms_norm.cc, rope.cc and kv_append.cc, with the same roundings between them.
#include "../runtime/kernel_table.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "append-inl.h"
#include "rms_norm-inl.h"
#include "rope-inl.h"

namespace heed::HEED_ISA {
namespace {
/// How q or k is normalised: rows of n components by factors gain; no gain, no norm.
template <class A> struct Norm {
  const A* gain;
  int64_t n;
  double eps;
};
/// What one thread works in: two rows in the arithmetic type, and a token's heads in the storage type.
template <class T> struct Room {
  Acc<T>*x, *y;
  T* heads;
};
template <class T> Heads Dense(T* data, const Heads& like) {
  return {reinterpret_cast<char*>(data), like.size * static_cast<int64_t>(sizeof(T)), sizeof(T), like.count, like.size};
}
/// The row that starts at head `first`: one head, or all of them one after the other.
template <class T> const Acc<T>* RowOfHeads(const Heads& x, int64_t first, int64_t n, Acc<T>* scratch) {
  if (n == x.size) return WholeRow<T>(x.data + first * x.head, x.step, n, scratch);
  for (int64_t h = 0; h < x.count; h++) FetchRow<T>(x.data + h * x.head, x.step, x.size, scratch + h * x.size);
  for (int64_t i = n; i < Padded<Acc<T>>(n); i++) scratch[i] = 0;
  return scratch;
}
/// x normalised, rounded to its dtype, in room.heads.
template <class T> Heads Normalise(const Heads& x, const Norm<Acc<T>>& norm, const Room<T>& room) {
  const int64_t all = x.count * x.size;
  for (int64_t at = 0; at < all; at += norm.n) {
    NormaliseRow<Acc<T>>(RowOfHeads<T>(x, at / x.size, norm.n, room.x), norm.gain, norm.n, norm.eps, room.y);
    DeliverRow<T>(room.heads + at, sizeof(T), norm.n, room.y);
  }
  return Dense(room.heads, x);
}
/// x turned by the angles of token t.
template <class T> void Rotate(const heed_norm_rope_append& p, int64_t t, const Heads& x, const Heads& out, RowConverter copy) {
  const int64_t bytes = sizeof(Acc<T>), position = IntAt(p.positions, t), pairs = p.rotary_dim / 2;
  const RopeShape shape = {pairs, x.size - 2 * pairs, x.step, out.step, x.head, out.head, x.count, p.cos.strides[1] * bytes,
                           p.sin.strides[1] * bytes, p.pairing != HEED_PAIRS_HALF, false, copy};
  RotateToken<T>(shape, x.data, out.data, static_cast<const char*>(p.cos.data) + position * p.cos.strides[0] * bytes,
                 static_cast<const char*>(p.sin.data) + position * p.sin.strides[0] * bytes);
}
template <class T> struct Step {
  Norm<Acc<T>> q, k;
  RowConverter copy, to_k_pages, to_v_pages;
};
template <class T> void RunToken(const heed_norm_rope_append& p, const Step<T>& step, int64_t t, const Room<T>& room) {
  const bool turns = p.cos.data != nullptr;
  const Heads out = HeadsOf(p.out, t);
  Heads q = HeadsOf(p.q, t), k = HeadsOf(p.k, t);
  if (step.q.gain != nullptr) q = Normalise<T>(q, step.q, room);
  if (turns) Rotate<T>(p, t, q, out, step.copy);
  else CopyHeads(q, out, step.copy);
  const int32_t slot = IntAt(p.slots, t);
  if (slot < 0) return;
  if (step.k.gain != nullptr) k = Normalise<T>(k, step.k, room);
  if (turns) {
    const Heads turned = Dense(room.heads, k);
    Rotate<T>(p, t, k, turned, step.copy);
    k = turned;
  }
  CopyHeads(k, SlotOf(p.k_pages, slot), step.to_k_pages);
  CopyHeads(HeadsOf(p.v, t), SlotOf(p.v_pages, slot), step.to_v_pages);
}
int NoMemory(int64_t n) {
  return Fail(HEED_OUT_OF_MEMORY, "[norm_rope_append] no memory for rows of %ld", static_cast<long>(n));
}
int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T> int Run(const heed_norm_rope_append& p) {
  using A = Acc<T>;
  const int64_t q_row = p.q.shape[1] * p.q.shape[2], k_row = p.k.shape[1] * p.k.shape[2], longest = Most(q_row, k_row);
  // A vector more: the last head of a row may be fetched by whole vectors.
  const int64_t padded = Padded<A>(longest) + Width<A>;
  A* gains = static_cast<A*>(SharedScratch(0, 2 * padded * sizeof(A)));
  if (gains == nullptr) return NoMemory(longest);
  const auto norm = [&](const heed_tensor& weight, A* gain) -> Norm<A> {
    if (weight.data == nullptr) return {nullptr, 0, p.eps};
    FillGain<A>(weight, p.unit_offset != 0, weight.shape[0], gain);
    return {gain, weight.shape[0], p.eps};
  };
  const Step<T> step = {norm(p.q_weight, gains), norm(p.k_weight, gains + padded), Converter(p.q.dtype, p.q.dtype),
                        Converter(p.k_pages.dtype, p.k.dtype), Converter(p.v_pages.dtype, p.v.dtype)};
  const int64_t elements = q_row + k_row + p.v.shape[1] * p.v.shape[2];
  int32_t failed = 0;
  ParallelRange(p.slots.shape[0], (kTaskElements + elements) / (elements + 1), [&](int64_t begin, int64_t end, int) {
    A* scratch = static_cast<A*>(ThreadScratch(padded * (2 * sizeof(A) + sizeof(T))));
    if (scratch == nullptr) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    const Room<T> room = {scratch, scratch + padded, reinterpret_cast<T*>(scratch + 2 * padded)};
    for (int64_t t = begin; t < end; t++) RunToken<T>(p, step, t, room);
  });
  return failed ? NoMemory(longest) : HEED_OK;
}
}  // namespace

int norm_rope_append(const heed_norm_rope_append& p) {
  if (!IsFloat(p.q) || p.k.dtype != p.q.dtype || p.v.dtype != p.q.dtype || !IsFloat(p.k_pages) || !IsFloat(p.v_pages))
    return Fail(HEED_UNSUPPORTED, "[norm_rope_append] not defined for dtypes %d, %d, %d into pages of %d and %d", p.q.dtype, p.k.dtype,
                p.v.dtype, p.k_pages.dtype, p.v_pages.dtype);
  if (const int64_t t = FirstBadSlot(p.slots, p.k_pages); t >= 0)
    return Fail(HEED_INVALID, "[norm_rope_append] slot %d of row %ld is outside -1..%ld", IntAt(p.slots, t), static_cast<long>(t),
                static_cast<long>(p.k_pages.shape[0] * p.k_pages.shape[2] - 1));
  for (int64_t t = 0; p.cos.data != nullptr && t < p.slots.shape[0]; t++)
    if (IntAt(p.positions, t) < 0 || IntAt(p.positions, t) >= p.cos.shape[0])
      return Fail(HEED_INVALID, "[norm_rope_append] position %d is outside the tables of %ld rows", IntAt(p.positions, t),
                  static_cast<long>(p.cos.shape[0]));
  return DispatchFloat(p.q.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) { return Run<T>(p); });
}
}  // namespace heed::HEED_ISA
