// Full residual pages into HEED_PAGES_INT4 (KIVI: Liu et al. 2024, arXiv:2402.02750): keys per channel over groups of 32 tokens, values per
// token over groups of 32 channels. A group's zero is its smallest number, its scale a fifteenth of its span; byte b of 16 holds
// the codes of channels b and b + 16 of 32. src/fused/quantised/groups.ts of the tensor package gives the same codes and scales.
#pragma once
#include "append.cuh"

namespace heed {
constexpr int kGroup = 32, kHalfGroup = 16;
/// Smallest and largest number of a group.
struct Span {
  float low = INFINITY, high = -INFINITY;
  DEVICE void add(float x) {
    low = smaller(low, x);
    high = larger(high, x);
  }
};
struct Steps {
  float scale, zero;  // NaN in a group that is not finite, or spans more than a float can
  DEVICE uint32_t code(float x) const {
    const float step = round_to_integer((x - zero) / scale);
    return step != step ? 0 : static_cast<uint32_t>(step < 15 ? step : 15);
  }
};
DEVICE Steps steps_of(const Span& s) {
  const float span = s.high - s.low, nothing = span * 0;  // NaN where the span is not finite
  return {larger(span / 15, kSmallestScale) + nothing, s.low + nothing};
}
/// Pages of keys, or of values.
struct SealedPages {
  const heed_tensor &codes, &scales, &zeros, &residual;
};
/// One page of one head, on its way.
template <typename T> struct Sealing {
  const SealedPages& pages;
  const T* from;
  uint8_t* codes;
  float *scales, *zeros;
  DEVICE float at(int64_t row, int64_t channel) const {
    return widen(from[row * pages.residual.strides[2] + channel * pages.residual.strides[3]]);
  }
  DEVICE void put(int64_t row, int64_t byte, uint32_t code) const {
    codes[row * pages.codes.strides[2] + byte * pages.codes.strides[3]] = static_cast<uint8_t>(code);
  }
  DEVICE void put(const Steps& s, int64_t i, int64_t j) const {
    scales[i * pages.scales.strides[2] + j * pages.scales.strides[3]] = s.scale;
    zeros[i * pages.zeros.strides[2] + j * pages.zeros.strides[3]] = s.zero;
  }
};
template <typename T> DEVICE Sealing<T> sealing(const SealedPages& p, int64_t from, int64_t to, int64_t head) {
  return {p, elements<T>(p.residual) + from * p.residual.strides[0] + head * p.residual.strides[1],
          elements<uint8_t>(p.codes) + to * p.codes.strides[0] + head * p.codes.strides[1],
          elements<float>(p.scales) + to * p.scales.strides[0] + head * p.scales.strides[1],
          elements<float>(p.zeros) + to * p.zeros.strides[0] + head * p.zeros.strides[1]};
}
/// Byte `byte` of the rows of token group `group`: two channels, or one at the end of a row.
template <typename T> DEVICE void seal_keys(const Sealing<T>& s, int64_t group, int64_t byte) {
  const int64_t width = s.pages.residual.shape[3], size = s.pages.residual.shape[2], first = group * kGroup;
  const int64_t end = first + kGroup < size ? first + kGroup : size;
  const int64_t low = byte / kHalfGroup * kGroup + byte % kHalfGroup, high = low + kHalfGroup;
  Steps steps[2] = {{1, 0}, {1, 0}};
  for (int half = 0; half < 2; half++) {
    const int64_t channel = half ? high : low;
    if (channel >= width) continue;
    Span span;
    for (int64_t row = first; row < end; row++) span.add(s.at(row, channel));
    steps[half] = steps_of(span);
    s.put(steps[half], group, channel);
  }
  for (int64_t row = first; row < end; row++) {
    const uint32_t a = low < width ? steps[0].code(s.at(row, low)) : 0, b = high < width ? steps[1].code(s.at(row, high)) : 0;
    s.put(row, byte, a | b << 4);
  }
}
/// The 16 bytes of channel group `group` of a token.
template <typename T> DEVICE void seal_values(const Sealing<T>& s, int64_t row, int64_t group) {
  const int64_t width = s.pages.residual.shape[3], first = group * kGroup, end = first + kGroup < width ? first + kGroup : width;
  Span span;
  for (int64_t c = first; c < end; c++) span.add(s.at(row, c));
  const Steps steps = steps_of(span);
  s.put(steps, group, row);
  for (int b = 0; b < kHalfGroup; b++) {
    const int64_t low = first + b, high = low + kHalfGroup;
    const uint32_t a = low < width ? steps.code(s.at(row, low)) : 0, c = high < width ? steps.code(s.at(row, high)) : 0;
    s.put(row, group * kHalfGroup + b, a | c << 4);
  }
}
/// Units of a page: those of keys (token group, byte), then those of values (token, channel group). T: of the residual pages.
template <typename T> DEVICE void seal_pages(const heed_cuda_seal_pages& args) {
  const heed_seal_pages& p = args.problem;
  const int64_t heads = p.k_residual.shape[1], of_keys = args.key_units, per_head = of_keys + args.value_units;
  const SealedPages keys = {p.k_pages, p.k_scales, p.k_zeros, p.k_residual}, values = {p.v_pages, p.v_scales, p.v_zeros, p.v_residual};
  for (int64_t unit = first_unit(); unit < args.units; unit += unit_step()) {
    const int64_t row = divide(unit, per_head), i = divide(row, heads), head = row - i * heads, within = unit - row * per_head;
    const int64_t from = elements<int32_t>(p.from)[i * p.from.strides[0]], to = elements<int32_t>(p.to)[i * p.to.strides[0]];
    if (from < 0 || from >= p.k_residual.shape[0] || to < 0 || to >= p.k_pages.shape[0]) continue;  // the host cannot see them
    if (within < of_keys) {
      const int64_t group = divide(within, p.k_pages.shape[3]);
      seal_keys(sealing<T>(keys, from, to, head), group, within - group * p.k_pages.shape[3]);
    } else {
      const int64_t groups = p.v_scales.shape[2], token = divide(within - of_keys, groups);
      seal_values(sealing<T>(values, from, to, head), token, within - of_keys - token * groups);
    }
  }
}
}  // namespace heed
