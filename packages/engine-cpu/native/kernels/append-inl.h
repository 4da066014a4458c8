// A token's keys or values into its page.
#pragma once
#include "convert-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
/// The heads of one token: head h, component d at data + h * head + d * step, in bytes.
struct Heads {
  char* data;
  int64_t head, step;
  int64_t count, size;
};
/// Row t of x [T, H, D].
HEED_INLINE Heads HeadsOf(const heed_tensor& x, int64_t t) {
  const int64_t bytes = ElementBytes(x.dtype);
  return {static_cast<char*>(x.data) + t * x.strides[0] * bytes, x.strides[1] * bytes, x.strides[2] * bytes, x.shape[1], x.shape[2]};
}
/// Heads of the same number and size, converted.
HEED_INLINE void CopyHeads(const Heads& from, const Heads& to, RowConverter convert) {
  for (int64_t h = 0; h < from.count; h++)
    convert(to.data + h * to.head, to.step, from.data + h * from.head, from.step, from.size);
}
/// Row `row` of page `page` of pages [P, H, page_size, D].
HEED_INLINE Heads RowOfPage(const heed_tensor& pages, int64_t page, int64_t row) {
  const int64_t bytes = ElementBytes(pages.dtype);
  return {static_cast<char*>(pages.data) + (page * pages.strides[0] + row * pages.strides[2]) * bytes, pages.strides[1] * bytes,
          pages.strides[3] * bytes, pages.shape[1], pages.shape[3]};
}
/// The row of a slot.
HEED_INLINE Heads SlotOf(const heed_tensor& pages, int64_t slot) {
  return RowOfPage(pages, slot / pages.shape[2], slot % pages.shape[2]);
}
HEED_INLINE int32_t IntAt(const heed_tensor& x, int64_t i) { return static_cast<const int32_t*>(x.data)[i * x.strides[0]]; }
/// The first of the slots that is neither -1 nor in the pages; -1 when there is none.
HEED_INLINE int64_t FirstBadSlot(const heed_tensor& slots, const heed_tensor& pages) {
  const int64_t count = pages.shape[0] * pages.shape[2];
  for (int64_t t = 0; t < slots.shape[0]; t++)
    if (IntAt(slots, t) < -1 || IntAt(slots, t) >= count) return t;
  return -1;
}
HEED_INLINE bool IsFloat(const heed_tensor& t) { return t.dtype >= HEED_FLOAT64 && t.dtype <= HEED_BFLOAT16; }
}  // namespace heed::HEED_ISA
