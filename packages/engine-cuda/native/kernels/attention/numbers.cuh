// Keys and values one number at a time, in whatever way they are stored; docs/kernels/paged-quantised.md has the formats.
#pragma once
#include "problem.cuh"

namespace heed {

template <class A>
DEVICE A number_at(const heed_tensor& t, int64_t i) {
  if (t.dtype == HEED_FLOAT64) return static_cast<A>(static_cast<const double*>(t.data)[i]);
  return static_cast<A>(float_at(t, i));
}
// OCP 8-bit floating point, 4 exponent and 3 mantissa bits: through float16, whose exponent field it fits.
DEVICE float from_e4m3(uint8_t code) {
  if ((code & 0x7f) == 0x7f) return NAN;
  const uint16_t sign = static_cast<uint16_t>((code & 0x80) << 8), rest = static_cast<uint16_t>((code & 0x7f) << 7);
  return to_float(f16{static_cast<uint16_t>(sign | rest)}) * 256;
}

// The rows of one sequence's keys, or of its values.
struct StoredRows {
  const heed_tensor &pages, &scales, &zeros, &residual;
  int format;
  bool keys;
};
DEVICE StoredRows stored_keys(const heed_cuda_attention& p) { return {p.k, p.k_scales, p.k_zeros, p.k_residual, p.format, true}; }
DEVICE StoredRows stored_values(const heed_cuda_attention& p) { return {p.v, p.v_scales, p.v_zeros, p.v_residual, p.format, false}; }

// Number c of token j of a key head.
template <class A>
DEVICE A stored_number(const StoredRows& r, const Sequence& s, int head, int j, int c) {
  if (!s.pages) return number_at<A>(r.pages, s.batch * r.pages.strides[0] + j * r.pages.strides[1] + head * r.pages.strides[2] + c * r.pages.strides[3]);
  const int row = j % s.page_size;
  const int64_t page = s.pages[j / s.page_size];
  if (r.format == HEED_PAGES_INT4 && page >= r.pages.shape[0]) {
    const heed_tensor& t = r.residual;
    return number_at<A>(t, (page - r.pages.shape[0]) * t.strides[0] + head * t.strides[1] + row * t.strides[2] + c * t.strides[3]);
  }
  const int64_t at = page * r.pages.strides[0] + head * r.pages.strides[1] + row * r.pages.strides[2];
  if (r.format == HEED_PAGES_FLOAT) return number_at<A>(r.pages, at + c * r.pages.strides[3]);
  const uint8_t* codes = static_cast<const uint8_t*>(r.pages.data) + at;
  const int64_t scales = page * r.scales.strides[0] + head * r.scales.strides[1];
  const float* scale = static_cast<const float*>(r.scales.data) + scales;
  if (r.format != HEED_PAGES_INT4) {
    const uint8_t code = codes[c * r.pages.strides[3]];
    const float number = r.format == HEED_PAGES_E4M3 ? from_e4m3(code) : static_cast<float>(code - 128);
    return static_cast<A>(scale[row * r.scales.strides[2]]) * static_cast<A>(number);
  }
  const int byte = c / 32 * 16 + c % 16;
  const int code = codes[byte * r.pages.strides[3]] >> c % 32 / 16 * 4 & 15;
  const int64_t group = r.keys ? row / 32 * r.scales.strides[2] + c * r.scales.strides[3] : c / 32 * r.scales.strides[2] + row * r.scales.strides[3];
  const float zero = (static_cast<const float*>(r.zeros.data) + scales)[group];
  return static_cast<A>(zero) + static_cast<A>(scale[group]) * static_cast<A>(code);
}

}  // namespace heed
