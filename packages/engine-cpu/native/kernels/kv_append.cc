// New keys and values into their pages: row t goes to page slots[t] / page_size, row slots[t] % page_size; -1 is skipped. A row of codes
// has a scale of its own, so that no row is ever encoded twice.
#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "../runtime/scratch.h"
#include "append-inl.h"
#include "encode-inl.h"

namespace heed::HEED_ISA {
namespace {
/// Row t of x [T, Hkv, D] as codes, by way of `row_of_floats`.
template <class K>
void EncodeRow(const heed_tensor& x, const heed_tensor& pages, const heed_tensor& scales, int64_t t, int64_t page, int64_t row,
               RowConverter convert, float* row_of_floats) {
  const int64_t x_bytes = ElementBytes(x.dtype), width = x.shape[2];
  const char* from = static_cast<const char*>(x.data) + t * x.strides[0] * x_bytes;
  uint8_t* to = static_cast<uint8_t*>(pages.data) + page * pages.strides[0] + row * pages.strides[2];
  float* scale = static_cast<float*>(scales.data) + page * scales.strides[0] + row * scales.strides[2];
  for (int64_t head = 0; head < x.shape[1]; head++) {
    convert(row_of_floats, sizeof(float), from + head * x.strides[1] * x_bytes, x.strides[2] * x_bytes, width);
    scale[head * scales.strides[1]] = EncodeScaled<K>(to + head * pages.strides[1], row_of_floats, width);
  }
}
/// f(t, page, row) for every row that is stored, in parallel.
template <class F> void ForEachRow(const heed_kv_append& p, const F& f) {
  const int64_t T = p.slots.shape[0], page_size = p.k_pages.shape[2];
  const int64_t elements = p.k.shape[1] * (p.k.shape[2] + p.v.shape[2]);
  ParallelRange(T, (kTaskElements + elements) / (elements + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      const int64_t slot = IntAt(p.slots, t);
      if (slot >= 0) f(t, (slot - p.first_slot) / page_size, (slot - p.first_slot) % page_size);
    }
  });
}
template <class K> int AppendCodes(const heed_kv_append& p) {
  const RowConverter convert = Converter(HEED_FLOAT32, p.k.dtype);
  const int64_t widest = p.k.shape[2] > p.v.shape[2] ? p.k.shape[2] : p.v.shape[2];
  bool out_of_memory = false;
  ForEachRow(p, [&](int64_t t, int64_t page, int64_t row) {
    float* floats = static_cast<float*>(ThreadScratch(static_cast<uint64_t>(RoundUp(widest, Width<float>)) * sizeof(float)));
    if (floats == nullptr) return __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    EncodeRow<K>(p.k, p.k_pages, p.k_scales, t, page, row, convert, floats);
    if (p.v.shape[2] > 0) EncodeRow<K>(p.v, p.v_pages, p.v_scales, t, page, row, convert, floats);
  });
  return out_of_memory ? Fail(HEED_OUT_OF_MEMORY, "[kv_append] no memory for a row of %ld numbers", static_cast<long>(widest)) : HEED_OK;
}
int AppendFloats(const heed_kv_append& p) {
  const RowConverter convert_k = Converter(p.k_pages.dtype, p.k.dtype), convert_v = Converter(p.v_pages.dtype, p.v.dtype);
  ForEachRow(p, [&](int64_t t, int64_t page, int64_t row) {
    CopyHeads(HeadsOf(p.k, t), RowOfPage(p.k_pages, page, row), convert_k);
    CopyHeads(HeadsOf(p.v, t), RowOfPage(p.v_pages, page, row), convert_v);
  });
  return HEED_OK;
}
}  // namespace

int kv_append(const heed_kv_append& p) {
  const bool floats = p.format == HEED_PAGES_FLOAT && IsFloat(p.k_pages) && IsFloat(p.v_pages);
  const bool codes = p.format == HEED_PAGES_INT8 || p.format == HEED_PAGES_E4M3;
  if (!IsFloat(p.k) || !IsFloat(p.v) || (!floats && !codes))
    return Fail(HEED_UNSUPPORTED, "[kv_append] not defined for dtypes %d and %d, format %d", p.k.dtype, p.k_pages.dtype, p.format);
  const int64_t T = p.slots.shape[0], end = p.first_slot + p.k_pages.shape[0] * p.k_pages.shape[2];
  for (int64_t t = 0; t < T; t++) {
    const int32_t slot = IntAt(p.slots, t);
    if (slot != -1 && (slot < p.first_slot || slot >= end))
      return Fail(HEED_INVALID, "[kv_append] slot %d of row %ld is outside %ld..%ld", slot, static_cast<long>(t),
                  p.first_slot == 0 ? -1L : static_cast<long>(p.first_slot), static_cast<long>(end - 1));
  }
  if (floats) return AppendFloats(p);
  return p.format == HEED_PAGES_INT8 ? AppendCodes<Int8Code>(p) : AppendCodes<E4M3Code>(p);
}
}  // namespace heed::HEED_ISA
