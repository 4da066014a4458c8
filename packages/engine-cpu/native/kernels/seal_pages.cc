// Full residual pages into pages of 4 bits (KIVI: Liu et al. 2024, arXiv:2402.02750): keys per channel over kCodeGroup tokens, values per
// token over kCodeGroup channels. zero = the smallest number, scale = span / 15, code = round((x - zero) / scale).
#include "../runtime/kernel_table.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "codes-inl.h"
#include "convert-inl.h"
#include "encode-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
namespace {
/// Scale and zero of numbers between low and high; NaN when `wrong` is, or the span is not finite.
HEED_INLINE void Limits(float low, float high, float wrong, float* scale, float* zero) {
  const float span = high - low, nothing = (span - span) + wrong, step = span / 15;
  *scale = (step > kSmallestScale ? step : kSmallestScale) + nothing;
  *zero = low + nothing;
}
/// The nearest of 16 steps, ties to even; 0 in a group that is NaN.
HEED_INLINE float Nearest(float x, float scale, float zero) {
  const float y = ((x - zero) / scale + 0x1.8p23f) - 0x1.8p23f;
  return y == y ? (y < 15 ? y : 15) : 0;
}
struct Sealing {
  const heed_tensor &pages, &scales, &zeros, &residual;
  int64_t width, padded;  // padded to whole groups
  RowConverter convert;

  float* Row(float* scratch, int64_t i) const { return scratch + i * padded; }
  /// Row `row` of residual page `from` as floats, 0 from width on.
  void Load(int64_t from, int64_t head, int64_t row, float* to) const {
    const int64_t bytes = ElementBytes(residual.dtype);
    convert(to, sizeof(float), static_cast<const char*>(residual.data) + OffsetOf(residual, from, head, row) * bytes,
            residual.strides[3] * bytes, width);
    for (int64_t d = width; d < padded; d++) to[d] = 0;
  }
  /// Codes in `row`, as floats, to bytes.
  void Pack(const float* row, int64_t page, int64_t head, int64_t t) const {
    constexpr int64_t half = kCodeGroup / 2;
    uint8_t* to = static_cast<uint8_t*>(pages.data) + OffsetOf(pages, page, head, t);
    for (int64_t g = 0; g < padded / kCodeGroup; g++)
      for (int64_t i = 0; i < half; i++) {
        const float* pair = row + g * kCodeGroup + i;
        to[g * half + i] = static_cast<uint8_t>(static_cast<int>(pair[0]) + 16 * static_cast<int>(pair[half]));
      }
  }
  /// Tokens first .. first + n - 1, one group. scratch: [kCodeGroup + 5][padded].
  void Keys(int64_t from, int64_t page, int64_t head, int64_t first, int64_t n, float* scratch) const {
    float *low = Row(scratch, kCodeGroup), *high = Row(scratch, kCodeGroup + 1), *wrong = Row(scratch, kCodeGroup + 2);
    float *scale = Row(scratch, kCodeGroup + 3), *zero = Row(scratch, kCodeGroup + 4);
    for (int64_t i = 0; i < n; i++) {
      float* row = Row(scratch, i);
      Load(from, head, first + i, row);
      for (int64_t d = 0; d < padded; d++) {
        low[d] = i == 0 || row[d] < low[d] ? row[d] : low[d];
        high[d] = i == 0 || row[d] > high[d] ? row[d] : high[d];
        wrong[d] = (i == 0 ? 0 : wrong[d]) + (row[d] - row[d]);
      }
    }
    float* scales_at = static_cast<float*>(scales.data) + OffsetOf(scales, page, head, first / kCodeGroup);
    float* zeros_at = static_cast<float*>(zeros.data) + OffsetOf(zeros, page, head, first / kCodeGroup);
    for (int64_t d = 0; d < padded; d++) {
      Limits(low[d], high[d], wrong[d], scale + d, zero + d);
      if (d < width) scales_at[d * scales.strides[3]] = scale[d], zeros_at[d * zeros.strides[3]] = zero[d];
    }
    for (int64_t i = 0; i < n; i++) {
      float* row = Row(scratch, i);
      for (int64_t d = 0; d < padded; d++) row[d] = Nearest(row[d], scale[d], zero[d]);
      Pack(row, page, head, first + i);
    }
  }
  void Values(int64_t from, int64_t page, int64_t head, int64_t t, float* row) const {
    Load(from, head, t, row);
    for (int64_t g = 0; g < padded / kCodeGroup; g++) {
      float* part = row + g * kCodeGroup;
      const int64_t n = width - g * kCodeGroup < kCodeGroup ? width - g * kCodeGroup : kCodeGroup;
      float low = part[0], high = part[0], wrong = 0, scale, zero;
      for (int64_t d = 0; d < n; d++) {
        low = part[d] < low ? part[d] : low;
        high = part[d] > high ? part[d] : high;
        wrong += part[d] - part[d];
      }
      Limits(low, high, wrong, &scale, &zero);
      static_cast<float*>(scales.data)[OffsetOf(scales, page, head, g) + t * scales.strides[3]] = scale;
      static_cast<float*>(zeros.data)[OffsetOf(zeros, page, head, g) + t * zeros.strides[3]] = zero;
      for (int64_t d = 0; d < n; d++) part[d] = Nearest(part[d], scale, zero);
    }
    Pack(row, page, head, t);
  }
};
Sealing MakeSealing(const heed_tensor& pages, const heed_tensor& scales, const heed_tensor& zeros, const heed_tensor& residual) {
  const int64_t width = residual.shape[3];
  return {pages, scales, zeros, residual, width, RoundUp(width, kCodeGroup), Converter(HEED_FLOAT32, residual.dtype)};
}
bool InRange(const heed_tensor& numbers, int64_t count) {
  for (int64_t i = 0; i < numbers.shape[0]; i++) {
    const int32_t page = static_cast<const int32_t*>(numbers.data)[i * numbers.strides[0]];
    if (page < 0 || page >= count) return false;
  }
  return true;
}
}  // namespace

int seal_pages(const heed_seal_pages& p) {
  if (!InRange(p.from, p.k_residual.shape[0]) || !InRange(p.to, p.k_pages.shape[0]))
    return Fail(HEED_INVALID, "[seal_pages] a page is outside 0..%ld, or a residual page outside 0..%ld",
                static_cast<long>(p.k_pages.shape[0] - 1), static_cast<long>(p.k_residual.shape[0] - 1));
  const Sealing k = MakeSealing(p.k_pages, p.k_scales, p.k_zeros, p.k_residual);
  const Sealing v = MakeSealing(p.v_pages, p.v_scales, p.v_zeros, p.v_residual);
  const int64_t heads = p.k_pages.shape[1], page_size = p.k_pages.shape[2];
  const int64_t numbers = (kCodeGroup + 5) * (k.padded > v.padded ? k.padded : v.padded);
  bool out_of_memory = false;
  ParallelFor(p.from.shape[0] * heads, [&](int64_t i, int) {
    const int64_t from = static_cast<const int32_t*>(p.from.data)[i / heads * p.from.strides[0]], head = i % heads;
    const int64_t to = static_cast<const int32_t*>(p.to.data)[i / heads * p.to.strides[0]];
    float* scratch = static_cast<float*>(ThreadScratch(static_cast<uint64_t>(numbers) * sizeof(float)));
    if (scratch == nullptr) return __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    for (int64_t t = 0; t < page_size; t += kCodeGroup)
      k.Keys(from, to, head, t, page_size - t < kCodeGroup ? page_size - t : kCodeGroup, scratch);
    for (int64_t t = 0; t < page_size; t++) v.Values(from, to, head, t, scratch);
  });
  return out_of_memory ? Fail(HEED_OUT_OF_MEMORY, "[seal_pages] no memory for %ld numbers", static_cast<long>(numbers)) : HEED_OK;
}
}  // namespace heed::HEED_ISA
