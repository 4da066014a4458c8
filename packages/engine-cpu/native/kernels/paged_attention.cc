// Attention forward over pages of keys and values, in place (PagedAttention: Kwon et al. 2023, arXiv:2309.06180), for a ragged batch
// that may mix prefill and decode. A sequence's queries stand at its end.
#include "../runtime/status.h"
#include "attention-run.h"

namespace heed::HEED_ISA {
namespace {
HEED_INLINE int64_t At(const heed_tensor& t, int64_t i) { return static_cast<const int32_t*>(t.data)[i * t.strides[0]]; }

template <class T> Sequence SequenceOf(const Problem<T>& a, int64_t n) {
  const heed_paged_attention& p = *static_cast<const heed_paged_attention*>(a.parameters);
  const int64_t row = At(p.query_indptr, n), queries = At(p.query_indptr, n + 1) - row, length = At(p.lengths, n);
  return {0,
          queries,
          length,
          length - queries,
          a.q + row * a.q_strides.row,
          a.out + row * a.out_strides.row,
          a.lse == nullptr ? nullptr : a.lse + row * a.lse_strides.row,
          static_cast<const int32_t*>(p.indices.data) + At(p.indptr, n) * a.page_step};
}
/// Byte strides of [T, H, d] rows (batch 0) and of [P, Hkv, page_size, d] pages (batch: from page to page).
RowStrides TokenStrides(const heed_tensor& t, int64_t bytes) {
  return {0, t.strides[0] * bytes, t.strides[1] * bytes, t.strides[2] * bytes};
}
RowStrides PageStrides(const heed_tensor& t, int64_t bytes) {
  return {t.strides[0] * bytes, t.strides[2] * bytes, t.strides[1] * bytes, t.strides[3] * bytes};
}
int64_t FloatBytes(int32_t dtype) { return dtype == HEED_FLOAT64 ? 8 : dtype == HEED_FLOAT32 ? 4 : 2; }

template <class T> int Paged(const heed_paged_attention& p) {
  bool valid;
  Problem<T> a = {};
  a.rules = MakeScoreRules<T>(p.scores, 0, 0, &valid);
  if (!valid) return Fail(HEED_UNSUPPORTED, "[paged_attention] the mask must be bool or float; got dtype code %d", p.scores.mask.dtype);
  a.sequences = p.lengths.shape[0];
  a.Hq = p.q.shape[1];
  a.Hkv = p.k_pages.shape[1];
  if (a.sequences == 0 || a.Hq == 0 || p.q.shape[0] == 0) return HEED_OK;
  a.G = a.Hq / a.Hkv;
  a.D = p.q.shape[2];
  a.Dv = p.out.shape[2];
  a.q = static_cast<const char*>(p.q.data);
  a.k = static_cast<const char*>(p.k_pages.data);
  a.v = static_cast<const char*>(p.v_pages.data);
  a.out = static_cast<char*>(p.out.data);
  a.lse = static_cast<char*>(p.lse.data);
  a.q_strides = TokenStrides(p.q, FloatBytes(p.q.dtype));
  a.out_strides = TokenStrides(p.out, FloatBytes(p.q.dtype));
  const int64_t page_bytes = p.format == HEED_PAGES_FLOAT ? FloatBytes(p.k_pages.dtype) : 1;
  a.k_strides = PageStrides(p.k_pages, page_bytes);
  a.v_strides = PageStrides(p.v_pages, page_bytes);
  a.lse_strides = TokenStrides(p.lse, sizeof(T));
  a.page_size = p.k_pages.shape[2];
  a.page_step = p.indices.strides[0];
  a.parameters = &p;
  a.sequence = SequenceOf<T>;
  if (p.format == HEED_PAGES_FLOAT) return RunAttention(a, p.q.dtype, p.k_pages.dtype, "paged_attention");
  a.coded_k = {&p.k_pages, &p.k_scales, &p.k_zeros, &p.k_residual, a.D, true, nullptr, 0};
  a.coded_v = {&p.v_pages, &p.v_scales, &p.v_zeros, &p.v_residual, a.Dv, false, nullptr, 0};
  return RunQuantised(a, p.q.dtype, p.format, "paged_attention");
}
}  // namespace

int paged_attention(const heed_paged_attention& p) { return p.q.dtype == HEED_FLOAT64 ? Paged<double>(p) : Paged<float>(p); }
}  // namespace heed::HEED_ISA
