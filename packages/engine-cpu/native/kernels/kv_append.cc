// New keys and values into their pages: row t goes to page slots[t] / page_size, row slots[t] % page_size; -1 is skipped.
#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "convert-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
namespace {
/// Row t of x [T, Hkv, D] to row `row` of page `page` of pages [P, Hkv, page_size, D].
void AppendRow(const heed_tensor& x, const heed_tensor& pages, int64_t t, int64_t page, int64_t row, RowConverter convert) {
  const int64_t x_bytes = ElementBytes(x.dtype), page_bytes = ElementBytes(pages.dtype);
  const char* from = static_cast<const char*>(x.data) + t * x.strides[0] * x_bytes;
  char* to = static_cast<char*>(pages.data) + (page * pages.strides[0] + row * pages.strides[2]) * page_bytes;
  for (int64_t head = 0; head < x.shape[1]; head++)
    convert(to + head * pages.strides[1] * page_bytes, pages.strides[3] * page_bytes, from + head * x.strides[1] * x_bytes,
            x.strides[2] * x_bytes, x.shape[2]);
}
bool IsFloat(const heed_tensor& t) { return t.dtype >= HEED_FLOAT64 && t.dtype <= HEED_BFLOAT16; }
}  // namespace

int kv_append(const heed_kv_append& p) {
  if (!IsFloat(p.k) || !IsFloat(p.v) || !IsFloat(p.k_pages) || !IsFloat(p.v_pages))
    return Fail(HEED_UNSUPPORTED, "[kv_append] not defined for dtypes %d and %d", p.k.dtype, p.k_pages.dtype);
  const int64_t T = p.slots.shape[0], page_size = p.k_pages.shape[2], slots = p.k_pages.shape[0] * page_size;
  const auto slot_of = [&](int64_t t) { return static_cast<const int32_t*>(p.slots.data)[t * p.slots.strides[0]]; };
  for (int64_t t = 0; t < T; t++)
    if (slot_of(t) < -1 || slot_of(t) >= slots)
      return Fail(HEED_INVALID, "[kv_append] slot %d of row %ld is outside -1..%ld", slot_of(t), static_cast<long>(t),
                  static_cast<long>(slots - 1));
  const RowConverter convert_k = Converter(p.k_pages.dtype, p.k.dtype), convert_v = Converter(p.v_pages.dtype, p.v.dtype);
  const int64_t elements = p.k.shape[1] * (p.k.shape[2] + p.v.shape[2]);
  ParallelRange(T, (kTaskElements + elements) / (elements + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      const int32_t slot = slot_of(t);
      if (slot < 0) continue;
      AppendRow(p.k, p.k_pages, t, slot / page_size, slot % page_size, convert_k);
      AppendRow(p.v, p.v_pages, t, slot / page_size, slot % page_size, convert_v);
    }
  });
  return HEED_OK;
}
}  // namespace heed::HEED_ISA
