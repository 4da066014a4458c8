// New keys and values into their pages: row t goes to page slots[t] / page_size, row slots[t] % page_size; -1 is skipped, and so is a slot
// outside of the pages, which the host cannot see. A row of codes has a scale of its own; the codes are those of
// src/fused/quantised/rows.ts of the tensor package: every step is one correctly rounded float operation in both.
#pragma once
#include "../core/convert.cuh"
#include "rms_norm.cuh"

namespace heed {
template <typename To, typename A> DEVICE To rounded(A x) {
  if constexpr (sizeof(To) == 2 && sizeof(A) == 8) return from_float<To>(to_float_odd(x));
  else if constexpr (sizeof(To) == 2) return from_float<To>(x);
  else return static_cast<To>(x);
}
template <typename To, int N, typename A> DEVICE void store_rounded(void* row, int64_t i, int64_t step, int count, const A (&x)[N]) {
  To values[N];
  UNROLL for (int k = 0; k < N; k++) values[k] = rounded<To>(x[k]);
  store_elements(static_cast<To*>(row) + i * step, step, count, values);
}
/// A row of a page of floats, stored in the pages' dtype.
struct FloatRow {
  void* data;
  int64_t step;
  int32_t dtype;
  template <int N, typename A> DEVICE void put(int64_t i, int count, const A (&x)[N]) const {
    switch (dtype) {
      case HEED_FLOAT64: return store_rounded<double>(data, i, step, count, x);
      case HEED_FLOAT32: return store_rounded<float>(data, i, step, count, x);
      case HEED_FLOAT16: return store_rounded<f16>(data, i, step, count, x);
      default: return store_rounded<bf16>(data, i, step, count, x);
    }
  }
};
/// Row `row` of a page's head; pages [P, Hkv, page_size, width].
DEVICE FloatRow float_row(const heed_tensor& pages, int64_t page, int64_t head, int64_t row) {
  const int bytes = pages.dtype == HEED_FLOAT64 ? 8 : pages.dtype == HEED_FLOAT32 ? 4 : 2;
  const int64_t at = page * pages.strides[0] + head * pages.strides[1] + row * pages.strides[2];
  return {static_cast<unsigned char*>(pages.data) + at * bytes, pages.strides[3], pages.dtype};
}
struct Slot { int64_t page, row; };
DEVICE int32_t slot_number(const heed_tensor& slots, int64_t t) { return elements<int32_t>(slots)[t * slots.strides[0]]; }
/// Where slot `number` is; page -1: nowhere. Within the pages a number has 31 bits, and so has a page size that matters.
DEVICE Slot find_slot(int32_t number, const heed_tensor& pages, int64_t first_slot) {
  const int64_t at = number - first_slot, size = pages.shape[2];
  if (at < 0 || at >= pages.shape[0] * size) return {-1, 0};
  const uint32_t each = static_cast<uint32_t>(size > INT32_MAX ? INT32_MAX : size), page = static_cast<uint32_t>(at) / each;
  return {page, static_cast<uint32_t>(at) - page * each};
}
/// Where row t goes; page -1: nowhere.
DEVICE Slot slot_of(const heed_tensor& slots, int64_t t, const heed_tensor& pages, int64_t first_slot) {
  return find_slot(slot_number(slots, t), pages, first_slot);
}

constexpr float kSmallestScale = 1.17549435e-38f;  // the smallest normal float
/// y to the nearest integer, ties to even: past 1.5 * 2^23 a float has no fraction. |y| < 2^22.
DEVICE float round_to_integer(float y) { return (y + 12582912.0f) - 12582912.0f; }
DEVICE uint8_t int8_code(float y) { return static_cast<uint8_t>(static_cast<int>(round_to_integer(y)) + 128); }
/// OCP 8-bit floating point, 4 exponent and 3 mantissa bits; |y| <= 448.
DEVICE uint8_t e4m3_code(float y) {
  const uint32_t bits = float_bits(y) & 0x7fffffff;
  const uint32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
  // Below 2^-6 steps are 2^-9, which are the last bits of a float in [2^14, 2^15).
  const uint32_t subnormal = float_bits(bits_float(bits) + 16384.0f) - (141u << 23);
  const uint32_t code = bits < 121u << 23 ? subnormal : normal;
  return static_cast<uint8_t>((code > 126 ? 126 : code) | (y < 0 ? 0x80 : 0));
}
/// Codes of the row of `own` numbers that get loads; returns the scale, NaN where one of them is not finite. Collective in the block.
template <int N, typename Get>
DEVICE float encode_row(int format, int64_t own, int lane_of_row, int lanes, const Shared<float>& scratch, uint8_t* to, int64_t step, Get get) {
  float most = 0;
  each_vector<N>(own, lane_of_row, lanes, [&](int64_t i, int count) {
    float x[N];
    get(i, count, x);
    UNROLL for (int k = 0; k < N; k++) most = larger(most, x[k] - x[k] == 0 ? fabsf(x[k]) : NAN);
  });
  most = across_lanes(most, lanes, scratch, [](float a, float b) { return larger(a, b); });
  const float wanted = most / (format == HEED_PAGES_INT8 ? 127.0f : 448.0f);
  const float scale = wanted > kSmallestScale ? wanted : kSmallestScale;
  const bool finite = most == most;
  each_vector<N>(own, lane_of_row, lanes, [&](int64_t i, int count) {
    float x[N];
    uint8_t codes[N];
    get(i, count, x);
    UNROLL for (int k = 0; k < N; k++)
      codes[k] = !finite ? 0 : format == HEED_PAGES_INT8 ? int8_code(x[k] / scale) : e4m3_code(x[k] / scale);
    store_elements(to + i * step, step, count, codes);
  });
  return finite ? scale : NAN;
}

/// One head of one token: its place in x [T, Hkv, width], and in the pages.
struct AppendRow {
  const heed_tensor &x, &pages, &scales;
  int64_t t, head;
};
template <typename T>
DEVICE void append_row(const heed_cuda_kv_append& args, const AppendRow& r, bool real, int lane_of_row, const Shared<float>& scratch) {
  using A = Acc<T>;
  constexpr int N = vector_width<T>;
  const heed_kv_append& p = args.problem;
  const Slot slot = real ? slot_of(p.slots, r.t, r.pages, p.first_slot) : Slot{-1, 0};
  const int64_t own = slot.page < 0 ? 0 : r.x.shape[2], step = r.x.strides[2];
  const T* x = elements<T>(r.x) + r.t * r.x.strides[0] + r.head * r.x.strides[1];
  if (p.format == HEED_PAGES_FLOAT) {
    if (own == 0) return;
    const FloatRow to = float_row(r.pages, slot.page, r.head, slot.row);
    each_vector<N>(own, lane_of_row, args.lanes, [&](int64_t i, int count) {
      A values[N];
      load_wide<T>(x + i * step, step, count, values);
      to.put(i, count, values);
    });
    return;
  }
  const int64_t page = own ? slot.page : 0;
  uint8_t* codes = elements<uint8_t>(r.pages) + page * r.pages.strides[0] + r.head * r.pages.strides[1] + slot.row * r.pages.strides[2];
  const float scale = encode_row<N>(p.format, own, lane_of_row, args.lanes, scratch, codes, r.pages.strides[3],
                                    [&](int64_t i, int count, float (&values)[N]) {
                                      A wide[N];
                                      load_wide<T>(x + i * step, step, count, wide);
                                      UNROLL for (int k = 0; k < N; k++) values[k] = static_cast<float>(wide[k]);
                                    });
  if (own && lane_of_row == 0)
    elements<float>(r.scales)[page * r.scales.strides[0] + r.head * r.scales.strides[1] + slot.row * r.scales.strides[2]] = scale;
}
/// One head of a group of tokens, of keys or of values.
struct AppendGroup {
  int64_t index, head;
  bool keys;
};
/// Rows are the heads of keys, then those of values, of one group of tokens after the other.
DEVICE AppendGroup group_at(const heed_cuda_kv_append& args, int64_t row) {
  const int64_t heads = args.problem.k.shape[1], index = divide(row, 2 * heads), h = row - index * 2 * heads;
  return {index, h < heads ? h : h - heads, h < heads};
}
/// The same head of U tokens from t on, vector by vector: their slots, then their loads are under way together.
template <typename T, int U> DEVICE void append_vectors(const heed_kv_append& p, const AppendGroup& group, int lane_of_row, int lanes) {
  constexpr int N = vector_width<T>;
  const heed_tensor &x = group.keys ? p.k : p.v, &pages = group.keys ? p.k_pages : p.v_pages;
  const int64_t t = group.index * U, tokens = p.slots.shape[0];
  const int width = static_cast<int>(x.shape[2]);
  const T* from = elements<T>(x) + t * x.strides[0] + group.head * x.strides[1];
  T* first = elements<T>(pages) + group.head * pages.strides[1];
  int32_t numbers[U];
  UNROLL for (int u = 0; u < U; u++) numbers[u] = slot_number(p.slots, t + u < tokens ? t + u : t);
  T* to[U];  // null: nowhere
  UNROLL for (int u = 0; u < U; u++) {
    const Slot slot = find_slot(t + u < tokens ? numbers[u] : -1, pages, p.first_slot);
    to[u] = slot.page < 0 ? nullptr : first + slot.page * pages.strides[0] + slot.row * pages.strides[2];
  }
  for (int i = lane_of_row * N; i < width; i += lanes * N) {
    T values[U][N];
    UNROLL for (int u = 0; u < U; u++)
      if (to[u]) load_vector(from + u * x.strides[0] + i, values[u]);
    UNROLL for (int u = 0; u < U; u++)
      if (to[u]) store_vector(to[u] + i, values[u]);
  }
}
constexpr int kTokens = 4;  // of a group of vectors
template <typename T> DEVICE void kv_append(const heed_cuda_kv_append& args) {
  const heed_kv_append& p = args.problem;
  const int per_block = block_threads() / args.lanes, lane_of_row = thread_x() % args.lanes;
  const int64_t turn = static_cast<int64_t>(grid_x()) * per_block;
  int64_t first = static_cast<int64_t>(block_x()) * per_block;
  if (args.tokens == kTokens) {
    for (int64_t row = first + thread_x() / args.lanes; row < args.rows; row += turn)
      append_vectors<T, kTokens>(p, group_at(args, row), lane_of_row, args.lanes);
    return;
  }
  const Shared<float> scratch = shared<float>(0, 32);
  for (; first < args.rows; first += turn) {
    const int64_t given = first + thread_x() / args.lanes;
    const AppendGroup at = group_at(args, given < args.rows ? given : 0);
    const AppendRow row = {at.keys ? p.k : p.v, at.keys ? p.k_pages : p.v_pages, at.keys ? p.k_scales : p.v_scales, at.index, at.head};
    append_row<T>(args, row, given < args.rows, lane_of_row, scratch);
  }
}
}  // namespace heed
