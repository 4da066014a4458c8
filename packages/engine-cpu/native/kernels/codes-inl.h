// Quantised pages as rows of numbers: what keys and values are where the arithmetic wants them unpacked, in T, block by block.
// src/fused/quantised/pages.ts of the tensor package has the meaning of the formats.
#pragma once
#include "../abi/heed_cpu.h"
#include "../simd/codes.h"

namespace heed::HEED_ISA {
constexpr int64_t kCodeGroup = 32;  // numbers of HEED_PAGES_INT4 that share a scale and a zero

/// Pages of keys or of values. Strides of tensors are [P, Hkv, ...].
template <class T> struct CodedPages {
  const heed_tensor *codes, *scales, *zeros, *residual;
  int64_t width;
  bool keys;
  void (*load_residual)(T* to, const char* from, int64_t step, int64_t n);
  int64_t residual_bytes;  // of an element
};
HEED_INLINE int64_t OffsetOf(const heed_tensor& t, int64_t page, int64_t head, int64_t row) {
  return page * t.strides[0] + head * t.strides[1] + row * t.strides[2];
}
HEED_INLINE const uint8_t* CodesAt(const heed_tensor& codes, int64_t page, int64_t head, int64_t row) {
  return static_cast<const uint8_t*>(codes.data) + OffsetOf(codes, page, head, row);
}

/// Rows row .. row + n - 1 of a page, `pitch` numbers apart in `to`.
template <class T> using UnpackRows = void (*)(const CodedPages<T>& of, int64_t page, int64_t head, int64_t row, int64_t n, T* to, int64_t pitch);

/// HEED_PAGES_INT8 and HEED_PAGES_E4M3.
template <class T, class K>
HEED_NOINLINE void UnpackScaled(const CodedPages<T>& of, int64_t page, int64_t head, int64_t row, int64_t n, T* to, int64_t pitch) {
  for (int64_t i = 0; i < n; i++, to += pitch) {
    const K* from = reinterpret_cast<const K*>(CodesAt(*of.codes, page, head, row + i));
    const float scale = static_cast<const float*>(of.scales->data)[OffsetOf(*of.scales, page, head, row + i)];
    int64_t d = 0;
    if constexpr (__is_same(T, float))
      for (; d + Width<T> <= of.width; d += Width<T>) Store<T>(to + d, LoadAs(from + d) * Set1(scale));
    for (; d < of.width; d++) to[d] = static_cast<T>(ToFloat(from[d])) * static_cast<T>(scale);
  }
}

/// One row of HEED_PAGES_INT4 whose scales and zeros stand `step` numbers apart in steps of `each` channels.
template <class T>
HEED_INLINE void UnpackSlow(const uint8_t* codes, const float* scales, const float* zeros, int64_t step, int64_t each, int64_t begin,
                            int64_t width, T* to) {
  for (int64_t d = begin; d < width; d++) {
    const int byte = codes[d / kCodeGroup * (kCodeGroup / 2) + d % (kCodeGroup / 2)];
    const int code = d % kCodeGroup < kCodeGroup / 2 ? byte & 15 : byte >> 4;
    to[d] = static_cast<T>(zeros[d / each * step]) + static_cast<T>(scales[d / each * step]) * static_cast<T>(code);
  }
}
/// Whole groups of 32 channels of a row of values. Returns the channels done.
HEED_INLINE int64_t UnpackValues(const uint8_t* codes, const float* scales, const float* zeros, int64_t step, int64_t width, float* to) {
  constexpr int64_t half = kCodeGroup / 2, w = Width<float>;
  const int64_t groups = width / kCodeGroup;
  for (int64_t g = 0; g < groups; g++, to += kCodeGroup) {
    const Vec<float> scale = Set1(scales[g * step]), zero = Set1(zeros[g * step]);
    HEED_UNROLL for (int64_t o = 0; o < half; o += w) {
      const Mask<float> bytes = LoadBytes(codes + g * half + o);
#if HEED_TABLE_OF_16
      const Vec<float> steps = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, table = Fma(steps, scale, zero);
      Store<float>(to + o, LookUp(table, bytes));
      Store<float>(to + o + half, LookUp(table, bytes >> 4));
#else
      Store<float>(to + o, Fma(LowHalves(bytes), scale, zero));
      Store<float>(to + o + half, Fma(HighHalves(bytes), scale, zero));
#endif
    }
  }
  return groups * kCodeGroup;
}
/// Whole groups of 32 channels of n rows of keys that share their scales and zeros, which stay in registers. Returns the channels done.
HEED_INLINE int64_t UnpackKeys(const uint8_t* codes, int64_t row, const float* scales, const float* zeros, int64_t width, int64_t n, float* to,
                               int64_t pitch) {
  constexpr int64_t half = kCodeGroup / 2, w = Width<float>;
  const int64_t groups = width / kCodeGroup;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t o = 0; o < half; o += w) {
      const int64_t d = g * kCodeGroup + o;
      const Vec<float> scale[2] = {Load(scales + d), Load(scales + d + half)}, zero[2] = {Load(zeros + d), Load(zeros + d + half)};
      for (int64_t i = 0; i < n; i++) {
        const Mask<float> bytes = LoadBytes(codes + i * row + g * half + o);
        Store<float>(to + i * pitch + d, Fma(LowHalves(bytes), scale[0], zero[0]));
        Store<float>(to + i * pitch + d + half, Fma(HighHalves(bytes), scale[1], zero[1]));
      }
    }
  return groups * kCodeGroup;
}
/// HEED_PAGES_INT4: a sealed page, or from page P on a residual one.
template <class T>
HEED_NOINLINE void UnpackGroups(const CodedPages<T>& of, int64_t page, int64_t head, int64_t row, int64_t n, T* to, int64_t pitch) {
  const int64_t P = of.codes->shape[0];
  if (page >= P) {
    const heed_tensor& t = *of.residual;
    for (int64_t i = 0; i < n; i++)
      of.load_residual(to + i * pitch, static_cast<const char*>(t.data) + OffsetOf(t, page - P, head, row + i) * of.residual_bytes,
                       t.strides[3] * of.residual_bytes, of.width);
    return;
  }
  const heed_tensor &s = *of.scales, &z = *of.zeros;
  const float *scales = static_cast<const float*>(s.data), *zeros = static_cast<const float*>(z.data);
  for (int64_t i = 0; i < n;) {
    const int64_t t = row + i, group = t / kCodeGroup;
    const uint8_t* codes = CodesAt(*of.codes, page, head, t);
    if (of.keys) {  // [P, Hkv, token group, channel]
      const int64_t left = (group + 1) * kCodeGroup - t, count = left < n - i ? left : n - i, step = of.codes->strides[2];
      const int64_t s_at = OffsetOf(s, page, head, group), z_at = OffsetOf(z, page, head, group);
      int64_t done = 0;
      if constexpr (__is_same(T, float))
        if (s.strides[3] == 1) done = UnpackKeys(codes, step, scales + s_at, zeros + z_at, of.width, count, to + i * pitch, pitch);
      for (int64_t c = 0; c < count; c++)
        UnpackSlow<T>(codes + c * step, scales + s_at, zeros + z_at, s.strides[3], 1, done, of.width, to + (i + c) * pitch);
      i += count;
    } else {  // [P, Hkv, channel group, token]
      const float *scale = scales + OffsetOf(s, page, head, 0) + t * s.strides[3], *zero = zeros + OffsetOf(z, page, head, 0) + t * z.strides[3];
      int64_t done = 0;
      if constexpr (__is_same(T, float)) done = UnpackValues(codes, scale, zero, s.strides[2], of.width, to + i * pitch);
      UnpackSlow<T>(codes, scale, zero, s.strides[2], kCodeGroup, done, of.width, to + i * pitch);
      i++;
    }
  }
}
/// Asks for the scales or zeros of rows row .. row + n - 1 of a page.
template <class T> HEED_INLINE void PrefetchGroups(const CodedPages<T>& of, const heed_tensor& t, int64_t page, int64_t head, int64_t row, int64_t n) {
  const int64_t first = of.keys ? row / kCodeGroup : 0, end = of.keys ? (row + n - 1) / kCodeGroup + 1 : t.shape[2];
  for (int64_t g = first; g < end; g++) {
    const char* at = reinterpret_cast<const char*>(static_cast<const float*>(t.data) + OffsetOf(t, page, head, g) + (of.keys ? 0 : row));
    for (int64_t i = 0; i < (of.keys ? of.width : n) * 4; i += 64) __builtin_prefetch(at + i, 0, 3);
  }
}
}  // namespace heed::HEED_ISA
