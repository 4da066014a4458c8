// From q.k to the logits of softmax, a row segment at a time: scale, softcap, ALiBi, additive or boolean mask, and the range of keys
// that length, causality and window leave. The meaning of each is in docs/conventions.md.
//   Logits are in base 2: logit = log2(e) * s, so that p = 2^(logit - m). Keys that are not to be seen get -inf by selection, never
//   by arithmetic: a NaN there leaves no trace. A kernel multiplies q by `query_factor` once, instead of every score.
// T is the accumulator type, float or double.
#pragma once
#include "../abi/heed_cpu.h"
#include "../simd/storage.h"
#include "dropout-inl.h"
#include "exp-inl.h"

namespace heed::HEED_ISA {
constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

/// Keys first .. end - 1; first <= end.
struct KeyRange {
  int64_t first, end;
};
/// Where a row of scores stands: batch, query head, query, and the query's position in the sequence (offset + query).
struct RowAt {
  int64_t batch, head, query, position;
};

/// mask[0], mask[stride], ... as T into to[0 .. n).
template <class T, class M> HEED_INLINE void ConvertRow(T* to, const M* from, int64_t stride, int64_t n) {
  int64_t i = 0;
  if constexpr (__is_same(Acc<M>, T))
    if (stride == 1)
      for (; i + Width<T> <= n; i += Width<T>) Store<T>(to + i, LoadAs(from + i));
  for (; i < n; i++) to[i] = static_cast<T>(ToFloat(from[i * stride]));
}
/// s += log2(e) * mask; -inf in the mask excludes the key whatever its score.
template <class T, class M> HEED_NOINLINE void AddMask(T* s, const char* mask, int64_t stride, int64_t n) {
  constexpr int64_t kPiece = 64;
  const T infinity = static_cast<T>(__builtin_inf());
  T bias[kPiece];
  for (int64_t at = 0; at < n; at += kPiece) {
    const int64_t m = n - at < kPiece ? n - at : kPiece;
    ConvertRow<T, M>(bias, reinterpret_cast<const M*>(mask) + at * stride, stride, m);
    for (int64_t i = 0; i < m; i++)
      s[at + i] = bias[i] == -infinity ? -infinity : s[at + i] + bias[i] * static_cast<T>(kLog2E);
  }
}
/// Excludes the keys whose mask byte is 0.
template <class T> HEED_NOINLINE void KeepWhereTrue(T* s, const char* mask, int64_t stride, int64_t n) {
  const T infinity = static_cast<T>(__builtin_inf());
  if (stride == 1) {
    for (int64_t i = 0; i < n; i++) s[i] = mask[i] ? s[i] : -infinity;
  } else {
    for (int64_t i = 0; i < n; i++) s[i] = mask[i * stride] ? s[i] : -infinity;
  }
}

/// heed_scores, resolved once per call.
template <class T> struct ScoreRules {
  T query_factor;               // what q is multiplied by: scale * log2(e), or scale / softcap
  T cap;                        // softcap * log2(e); 0: no softcap
  const heed_scores* scores;
  int64_t queries, keys;        // S, Sk
  const T* slopes;              // [Hq] or NULL
  const T* sinks;               // [Hq] or NULL
  int64_t slope_stride, sink_stride;
  void (*apply_mask)(T* s, const char* mask, int64_t stride, int64_t n);  // NULL: no mask
  int64_t mask_bytes;           // size of a mask element
  Dropout<T> dropout;

  /// True when logits differ from query_factor * q.k by exclusion through the key range only.
  bool Plain() const { return cap == 0 && slopes == nullptr && apply_mask == nullptr; }
  /// Keys that exist in this sequence: kv_lengths[batch], clamped to what the tensor holds.
  int64_t Length(int64_t batch) const {
    const heed_tensor& t = scores->kv_lengths;
    if (t.data == nullptr) return keys;
    const int64_t n = static_cast<const int32_t*>(t.data)[batch * t.strides[0]];
    return n < 0 ? 0 : n > keys ? keys : n;
  }
  /// Position of query 0.
  int64_t Offset(int64_t batch, int64_t length) const {
    if (scores->offset_mode == HEED_OFFSET_CONSTANT) return scores->query_offset;
    if (scores->offset_mode == HEED_OFFSET_END) return length - queries;
    const heed_tensor& t = scores->query_offsets;
    return static_cast<const int32_t*>(t.data)[batch * t.strides[0]];
  }
  /// Keys below this stay visible before the window's first key, up to its end.
  int64_t SinkTokens() const { return scores->sink_tokens; }
  /// Keys within the length and the window of the query at `position`. Neither end falls as the position rises, so the range of a
  /// block of queries runs from its first query's first key to its last query's end.
  KeyRange Visible(int64_t position, int64_t length) const {
    const int64_t left = scores->window_left, right = scores->window_right;
    int64_t first = left < 0 || position - left < 0 ? 0 : position - left;
    int64_t end = right < 0 || position + right >= length ? length : position + right + 1;
    if (end < 0) end = 0;
    if (first > length) first = length;
    return {first, end < first ? first : end};
  }
  /// log2(e) * sink of a query head; -inf without sinks.
  T Sink(int64_t head) const {
    return sinks == nullptr ? static_cast<T>(-__builtin_inf()) : sinks[head * sink_stride] * static_cast<T>(kLog2E);
  }
  /// row[0 .. n) holds q.k (q multiplied by query_factor) of keys j0 .. j0 + n - 1, of which [low, high) may be visible by their
  /// range; on return it holds logits, -inf where excluded. n is a multiple of Width<T>; only mask elements of [low, high) are read.
  /// slope, when given, gets d logit / d (log2(e) * scale * q.k) = 1 - tanh^2 in [low, high), and 1 without a softcap.
  void Finish(T* row, int64_t n, int64_t low, int64_t high, const RowAt& at, int64_t j0, T* slope = nullptr) const {
    if (cap != 0) Softcap(row, low, high, slope);
    else if (slope != nullptr)
      for (int64_t i = low; i < high; i++) slope[i] = 1;
    if (slopes != nullptr) Alibi(row, low, high, slopes[at.head * slope_stride] * static_cast<T>(-kLog2E), at.position - j0);
    if (apply_mask != nullptr && low < high) {
      const int64_t* s = scores->mask.strides;
      const int64_t element = at.batch * s[0] + at.head * s[1] + at.query * s[2] + (j0 + low) * s[3];
      apply_mask(row + low, static_cast<const char*>(scores->mask.data) + element * mask_bytes, s[3], high - low);
    }
    Hide(row, n, low, high);
  }
  /// -inf outside [low, high).
  static void Hide(T* row, int64_t n, int64_t low, int64_t high) {
    const Vec<T> none = Set1(static_cast<T>(-__builtin_inf()));
    for (int64_t i = 0; i < n; i += Width<T>) {
      if (low <= i && i + Width<T> <= high) continue;
      Store<T>(row + i, Select<T>(FirstLanes<T>(high - i) & ~FirstLanes<T>(low - i), Load(row + i), none));
    }
  }
  /// -inf in [low, high).
  static void HideInside(T* row, int64_t low, int64_t high) {
    for (int64_t i = low; i < high; i++) row[i] = -static_cast<T>(__builtin_inf());
  }

 private:
  // Whole vectors around [low, high): what lies outside is hidden afterwards.
  void Softcap(T* row, int64_t low, int64_t high, T* slope) const {
    for (int64_t i = low / Width<T> * Width<T>; i < high; i += Width<T>) {
      const Vec<T> t = Tanh<T>(Load(row + i));
      Store<T>(row + i, t * Set1(cap));
      if (slope != nullptr) Store<T>(slope + i, Set1(T{1}) - t * t);
    }
  }
  static void Alibi(T* row, int64_t low, int64_t high, T factor, int64_t distance) {
    for (int64_t i = low; i < high; i++) {
      const int64_t d = distance - i;
      row[i] += factor * static_cast<T>(d < 0 ? -d : d);
    }
  }
};

/// Rules of one call on S queries and Sk keys. The plan has checked shapes and dtypes; an impossible mask dtype leaves `valid` false.
template <class T> HEED_INLINE ScoreRules<T> MakeScoreRules(const heed_scores& s, int64_t queries, int64_t keys, bool* valid) {
  ScoreRules<T> r = {};
  const bool capped = s.softcap > 0;
  r.query_factor = static_cast<T>(capped ? s.scale / s.softcap : s.scale * kLog2E);
  r.cap = capped ? static_cast<T>(s.softcap * kLog2E) : T{0};
  r.scores = &s;
  r.queries = queries;
  r.keys = keys;
  r.slopes = static_cast<const T*>(s.alibi_slopes.data);
  r.sinks = static_cast<const T*>(s.sinks.data);
  r.slope_stride = s.alibi_slopes.strides[0];
  r.sink_stride = s.sinks.strides[0];
  r.dropout = {static_cast<T>(s.dropout_factor), s.dropout_threshold, s.dropout_seed};
  *valid = true;
  if (s.mask.data == nullptr) return r;
  r.mask_bytes = 1;
  if (s.mask.dtype == HEED_BOOL || s.mask.dtype == HEED_UINT8) {
    r.apply_mask = KeepWhereTrue<T>;
    return r;
  }
  const int status = DispatchFloat(s.mask.dtype, HEED_UNSUPPORTED, [&](auto tag) {
    using M = typename decltype(tag)::type;
    r.mask_bytes = sizeof(M);
    r.apply_mask = AddMask<T, M>;
    return 0;
  });
  *valid = status == 0;
  return r;
}
}  // namespace heed::HEED_ISA
