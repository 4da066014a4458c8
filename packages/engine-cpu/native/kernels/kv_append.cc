// New keys and values into their pages: row t goes to page slots[t] / page_size, row slots[t] % page_size; -1 is skipped.
#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "append-inl.h"

namespace heed::HEED_ISA {
int kv_append(const heed_kv_append& p) {
  if (!IsFloat(p.k) || !IsFloat(p.v) || !IsFloat(p.k_pages) || !IsFloat(p.v_pages))
    return Fail(HEED_UNSUPPORTED, "[kv_append] not defined for dtypes %d and %d", p.k.dtype, p.k_pages.dtype);
  if (const int64_t t = FirstBadSlot(p.slots, p.k_pages); t >= 0)
    return Fail(HEED_INVALID, "[kv_append] slot %d of row %ld is outside -1..%ld", IntAt(p.slots, t), static_cast<long>(t),
                static_cast<long>(p.k_pages.shape[0] * p.k_pages.shape[2] - 1));
  const RowConverter convert_k = Converter(p.k_pages.dtype, p.k.dtype), convert_v = Converter(p.v_pages.dtype, p.v.dtype);
  const int64_t elements = p.k.shape[1] * (p.k.shape[2] + p.v.shape[2]);
  ParallelRange(p.slots.shape[0], (kTaskElements + elements) / (elements + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      const int32_t slot = IntAt(p.slots, t);
      if (slot < 0) continue;
      CopyHeads(HeadsOf(p.k, t), SlotOf(p.k_pages, slot), convert_k);
      CopyHeads(HeadsOf(p.v, t), SlotOf(p.v_pages, slot), convert_v);
    }
  });
  return HEED_OK;
}
}  // namespace heed::HEED_ISA
