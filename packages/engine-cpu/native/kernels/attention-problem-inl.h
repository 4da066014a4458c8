// What every way to compute attention forward shares: the problem in the accumulator type T, where its rows lie, the online softmax
// (Milakov and Gimelshein 2018, arXiv:1805.02867) of a row of logits, and how a row leaves.
//   A "unit" is one key head of one sequence; its rows are the queries times the G query heads that read that key head:
//   row r of a block is query first + r / G, head unit.head * G + r % G.
#pragma once
#include "../simd/shuffle.h"
#include "codes-inl.h"
#include "scores-inl.h"

namespace heed::HEED_ISA {
constexpr int64_t kKeyBlock = 64;  // keys between two looks at the running maximum; a multiple of every tile's columns

/// Strides of a tensor of rows, in bytes. Element (batch, row, head, d).
struct RowStrides {
  int64_t batch, row, head, step;
};
HEED_INLINE RowStrides BytesOf(const heed_tensor& t, int64_t bytes) {
  return {t.strides[0] * bytes, t.strides[1] * bytes, t.strides[2] * bytes, t.strides[3] * bytes};
}
/// One sequence of the batch. Its token t stands at row t of `batch`, or in page pages[t / page_size * page_step].
struct Sequence {
  int64_t batch, queries, length, offset;
  const char* q;
  char *out, *lse;
  const int32_t* pages;
};

/// Keys that are walked in blocks of kKeyBlock: the blocks of keys 0 .. sinks - 1, and those of first .. end - 1. Where there are sinks, a
/// block or more lies between.
struct KeySpan {
  int64_t sinks, first, end;

  int64_t SinkBlocks() const { return (sinks + kKeyBlock - 1) / kKeyBlock; }
  int64_t WindowBegin() const { return first / kKeyBlock * kKeyBlock; }
  /// The walk: for (j0 = Begin(); j0 < end; j0 = After(j0)).
  int64_t Begin() const { return sinks > 0 ? 0 : WindowBegin(); }
  int64_t After(int64_t j0) const { return KeyOf(IndexOf(j0) + 1); }
  /// Blocks in the order of the walk.
  int64_t Blocks() const { return SinkBlocks() + (end - WindowBegin() + kKeyBlock - 1) / kKeyBlock; }
  int64_t IndexOf(int64_t j0) const {
    const int64_t block = j0 / kKeyBlock;
    return block < SinkBlocks() ? block : SinkBlocks() + block - first / kKeyBlock;
  }
  int64_t KeyOf(int64_t index) const { return index < SinkBlocks() ? index * kKeyBlock : WindowBegin() + (index - SinkBlocks()) * kKeyBlock; }
};

/// Rows of one task, with its share of the keys.
struct RowBlock {
  int64_t head, heads;     // first key head, number of them: more than one in decoding alone
  int64_t query, queries;  // first query, number of queries
  KeySpan keys;
};

template <class T> struct Problem {
  ScoreRules<T> rules;
  int64_t sequences, Hq, Hkv, G, D, Dv;
  const char *q, *k, *v;
  char *out, *lse;  // lse may be NULL
  RowStrides q_strides, k_strides, v_strides, out_strides, lse_strides;
  int64_t page_size, page_step;  // 0: keys and values are not paged; batch is then the stride between pages
  Sequence (*sequence)(const Problem&, int64_t n);
  const void* parameters;  // of the call, for `sequence`
  // The storage types stand behind these; nothing else knows them.
  void (*load_query)(T* to, const char* from, int64_t step, int64_t n, T factor);
  void (*store_out)(char* to, int64_t step, const T* from, int64_t n, T factor);
  void (*pack_keys)(T* to, const char* const* rows, int64_t step, int64_t D);
  bool (*pack_values)(T* to, const char* const* rows, int64_t step, int64_t Dv);
  void (*decode)(const Problem&, const Sequence&, const RowBlock&, char* scratch, T* partial, int64_t partial_step);
  int64_t kv_bytes;  // of one key or value element
  // Quantised pages, which k and v then are the codes of. `unpack` is NULL for floats.
  CodedPages<T> coded_k, coded_v;
  UnpackRows<T> unpack;
  bool by_groups;  // decode HEED_PAGES_INT4 with scales applied to queries and weights
};
/// Keys that `queries` queries from `query` on see, all that any of them sees.
template <class T> HEED_INLINE KeySpan SpanOf(const Problem<T>& a, const Sequence& s, int64_t query, int64_t queries) {
  KeySpan span = {a.rules.SinkTokens(), a.rules.Visible(s.offset + query, s.length).first,
                  a.rules.Visible(s.offset + query + queries - 1, s.length).end};
  if (span.end < span.first) span.end = span.first;
  if (span.sinks > 0 && span.SinkBlocks() * kKeyBlock >= span.WindowBegin()) span.sinks = span.first = 0;  // one range
  return span;
}
template <class T> HEED_INLINE int64_t Padded(int64_t n) { return RoundUp(n, Width<T>); }
/// Numbers of scratch that kKeyBlock unpacked rows of keys or values take; 0 for floats.
template <class T> HEED_INLINE int64_t UnpackedRows(const Problem<T>& a) {
  return a.unpack == nullptr ? 0 : kKeyBlock * RoundUp(a.D > a.Dv ? a.D : a.Dv, kCodeGroup);
}
/// The same with room for what decoding by groups needs besides: as many scaled queries, and the codes of half a block.
template <class T> HEED_INLINE int64_t UnpackedSize(const Problem<T>& a) {
  return 2 * UnpackedRows(a) + UnpackedRows(a) / 16;
}
/// f(page, row in it, count, keys from j0 before it) for the runs of keys j0 .. j0 + n - 1 that stand in one page.
template <class T, class F> HEED_INLINE void ForEachPage(const Problem<T>& a, const Sequence& s, int64_t j0, int64_t n, const F& f) {
  int64_t page = j0 / a.page_size, row = j0 - page * a.page_size;
  for (int64_t i = 0; i < n; page++, row = 0) {
    const int64_t count = a.page_size - row < n - i ? a.page_size - row : n - i;
    f(static_cast<int64_t>(s.pages[page * a.page_step]), row, count, i);
    i += count;
  }
}
/// FindRows for quantised pages: the rows' numbers, unpacked into `to`.
template <class T>
HEED_NOINLINE void UnpackBlock(const Problem<T>& a, const Sequence& s, const CodedPages<T>& of, int64_t head, int64_t j0, int64_t end,
                               T* to, const char** rows) {
  const int64_t n = end - j0 < kKeyBlock ? end - j0 : kKeyBlock, pitch = Padded<T>(of.width);
  ForEachPage(a, s, j0, n, [&](int64_t page, int64_t row, int64_t count, int64_t i) {
    a.unpack(of, page, head, row, count, to + i * pitch, pitch);
  });
  for (int64_t i = 0; i < kKeyBlock; i++) rows[i] = reinterpret_cast<const char*>(to + (i < n ? i : n - 1) * pitch);
}
/// Scales of the rows of keys j0 .. j0 + kKeyBlock - 1, 0 from `end` on.
template <class T>
HEED_INLINE void FindScales(const Problem<T>& a, const Sequence& s, const heed_tensor& scales, int64_t head, int64_t j0, int64_t end, T* to) {
  const int64_t n = end - j0 < kKeyBlock ? end - j0 : kKeyBlock, step = scales.strides[2];
  ForEachPage(a, s, j0, n, [&](int64_t page, int64_t row, int64_t count, int64_t i) {
    const float* from = static_cast<const float*>(scales.data) + OffsetOf(scales, page, head, row);
    if (step == 1 && __is_same(T, float)) memcpy(to + i, from, static_cast<size_t>(count) * sizeof(float));
    else
      for (int64_t t = 0; t < count; t++) to[i + t] = from[t * step];
  });
  for (int64_t i = n; i < kKeyBlock; i++) to[i] = 0;
}

/// Addresses of the rows of keys (or values) j0 .. j0 + kKeyBlock - 1. A row that does not exist (from `end` on, at most the
/// sequence's length) is replaced by the last that does, so that nothing unwritten is read.
template <class T>
HEED_INLINE void FindRows(const Problem<T>& a, const Sequence& s, const char* data, const RowStrides& strides, int64_t head,
                          int64_t j0, int64_t end, const char** rows) {
  const int64_t n = end - j0 < kKeyBlock ? end - j0 : kKeyBlock;
  const char* base = data + head * strides.head;
  if (a.page_size == 0) {
    base += s.batch * strides.batch + j0 * strides.row;
    for (int64_t i = 0; i < n; i++) rows[i] = base + i * strides.row;
  } else {
    ForEachPage(a, s, j0, n, [&](int64_t page, int64_t row, int64_t count, int64_t from) {
      const char* at = base + page * strides.batch + row * strides.row;
      for (int64_t i = 0; i < count; i++) rows[from + i] = at + i * strides.row;
    });
  }
  for (int64_t i = n; i < kKeyBlock; i++) rows[i] = rows[n - 1];
}

/// State of one row of the online softmax. p = 2^(logit - m); `sum` is kept per lane until the end.
template <class T> HEED_NOINLINE void NothingFinite(T* p, T* sum, T* alpha) {
  // Either nothing is visible, or all that is visible is NaN: the row then becomes NaN, as the formula has it.
  for (int64_t i = 0; i < kKeyBlock; i++) {
    p[i] = p[i] == p[i] ? T{0} : p[i];
    sum[i % Width<T>] += p[i];
  }
  *alpha = 1;
}
/// Turns kKeyBlock logits into p, and updates the row's running maximum m, its lanes of `sum`, and `alpha`, which is what the
/// output so far is to be multiplied by.
template <class T> HEED_INLINE void SoftmaxRow(T* p, T* m, T* sum, T* alpha) {
  constexpr int n = kKeyBlock / Width<T>;
  Vec<T> x[n], most[4] = {Load(p), Load(p + Width<T>), Load(p + 2 * Width<T>), Load(p + 3 * Width<T>)};
  static_assert(n >= 4 && n % 4 == 0, "the maximum is taken in four chains");
  HEED_UNROLL for (int j = 4; j < n; j++) most[j % 4] = Max(Load(p + j * Width<T>), most[j % 4]);
  const T before = *m, top = HorizontalMax<T>(Max(Max(most[0], most[1]), Max(most[2], most[3])));
  const T now = top > before ? top : before;
  if (__builtin_expect(now == -static_cast<T>(__builtin_inf()), 0)) return NothingFinite(p, sum, alpha);
  Vec<T> total = Load(sum);
  if (top > before) {
    *m = now;
    *alpha = Exp2NotPositive<T>(Set1(before - now))[0];
    total *= *alpha;
  } else {
    *alpha = 1;
  }
  HEED_UNROLL for (int j = 0; j < n; j++) x[j] = Exp2NotPositive<T>(Load(p + j * Width<T>) - Set1(now));
  HEED_UNROLL for (int j = 0; j < n; j++) Store<T>(p + j * Width<T>, x[j]);
  HEED_UNROLL for (int step = n / 2; step > 0; step /= 2)
    HEED_UNROLL for (int j = 0; j < step; j++) x[j] += x[j + step];
  Store<T>(sum, total + x[0]);
}
/// Bit j set where logit j is not excluded.
template <class T> HEED_INLINE uint64_t VisibleBits(const T* logits) {
  uint64_t bits = 0;
  for (int64_t j = 0; j < kKeyBlock; j++) bits |= static_cast<uint64_t>(logits[j] != -static_cast<T>(__builtin_inf())) << j;
  return bits;
}

/// Drops p of keys [low, high) of the block at j0, after their sum is taken; clears the bits of dropped keys. Others have p 0.
template <class T> HEED_NOINLINE void DropRow(const ScoreRules<T>& rules, const RowAt& at, T* p, int64_t low, int64_t high, int64_t j0,
                                              uint64_t* bits) {
  low = low / Width<T> * Width<T>;
  high = RoundUp(high, Width<T>);
  T keep[kKeyBlock];
  rules.dropout.Draw(keep + low, high - low, at.batch, at.head, at.query, j0 + low);
  Drop(p + low, keep + low, high - low);
  for (int64_t j = low; bits != nullptr && j < high; j++) *bits &= ~(static_cast<uint64_t>(keep[j] == 0) << j);
}

/// Writes out and lse of row r: `acc` is the sum of p v, `sum` of p (and of the sink), both relative to 2^m. A sum of 0 means
/// that the row saw nothing.
template <class T>
HEED_INLINE void StoreRow(const Problem<T>& a, const Sequence& s, int64_t head, int64_t query, const T* acc, T m, T sum) {
  a.store_out(s.out + query * a.out_strides.row + head * a.out_strides.head, a.out_strides.step, acc, a.Dv,
              sum == 0 ? T{0} : T{1} / sum);
  if (s.lse == nullptr) return;
  const T log_sum = Log<T>(Set1(sum))[0];
  T* lse = reinterpret_cast<T*>(s.lse + query * a.lse_strides.row + head * a.lse_strides.head);
  *lse = sum == 0 ? -static_cast<T>(__builtin_inf()) : m * static_cast<T>(kLn2) + log_sum;
}

/// The rows of a task, and how each starts and ends. Scratch pointers are set by the way that computes them.
template <class T> struct TaskRows {
  const Problem<T>& a;
  const Sequence& s;
  const RowBlock& block;
  int64_t rows, head;  // of one key head
  T *q, *p, *out, *sum, *m, *alpha;  // [rows][..], [rows][kKeyBlock], [rows][Padded(Dv)], [rows][Width], [rows], [rows]
  KeyRange* range;                   // [rows]: keys that a row may see by its window, within the task's
  int64_t sinks;                     // keys below it may be seen, too

  TaskRows(const Problem<T>& problem, const Sequence& sequence, const RowBlock& of)
      : a(problem), s(sequence), block(of), rows(of.queries * problem.G), head(of.head), sinks(problem.rules.SinkTokens()) {}
  int64_t Query(int64_t r) const { return block.query + (r < rows ? r : rows - 1) / a.G; }
  int64_t Head(int64_t r) const { return head * a.G + (r < rows ? r : rows - 1) % a.G; }
  RowAt At(int64_t r) const { return {s.batch, Head(r), Query(r), s.offset + Query(r)}; }
  static int64_t Clamp(int64_t key) { return key < 0 ? 0 : key > kKeyBlock ? kKeyBlock : key; }
  /// Whether of the block at j0 row r sees sink tokens alone: its window begins behind.
  bool SinksAlone(int64_t r, int64_t j0) const { return j0 < sinks && range[r].first >= j0 + kKeyBlock; }
  /// Keys of [j0, j0 + kKeyBlock) that row r may see, relative to j0; those of Gap excepted.
  KeyRange Local(int64_t r, int64_t j0) const {
    const int64_t low = j0 < sinks ? 0 : Clamp(range[r].first - j0);
    const int64_t high = Clamp(SinksAlone(r, j0) && sinks < range[r].end ? sinks - j0 : range[r].end - j0);
    return {low, high < low ? low : high};
  }
  /// Keys between the sink tokens and the window of row r, within Local.
  KeyRange Gap(int64_t r, int64_t j0) const {
    if (j0 >= sinks) return {0, 0};
    const KeyRange local = Local(r, j0);
    const int64_t low = Clamp(sinks - j0), high = Clamp(range[r].first - j0);
    return {low, high > local.end ? local.end : high};
  }
  bool HasGap(int64_t r, int64_t j0) const {
    const KeyRange gap = Gap(r, j0);
    return gap.first < gap.end;
  }
  /// Local of the rows r .. last together. Neither end of their windows falls from row to row.
  KeyRange Union(int64_t r, int64_t last, int64_t j0) const {
    const KeyRange local = Local(r, j0);
    if (SinksAlone(r, j0)) return local;
    const int64_t high = Clamp(range[last].end - j0);
    return {local.first, high < local.first ? local.first : high};
  }
  /// Whether each of the rows r .. last sees all of the keys [low, high) of the block, as far as ranges decide.
  bool SeeAlike(int64_t r, int64_t last, int64_t low, int64_t high, int64_t j0) const {
    const KeyRange local = Local(last, j0);
    return local.first == low && local.end == high && Local(r, j0).end == high && !HasGap(last, j0);
  }
  /// Excludes keys of row r of scores that it may not see by its range.
  void Hide(T* row, int64_t r, const KeyRange& local, int64_t j0) const {
    a.rules.Hide(row, kKeyBlock, local.first, local.end);
    const KeyRange gap = Gap(r, j0);
    a.rules.HideInside(row, gap.first, gap.end);
  }
  /// Scores of row r become logits.
  void Finish(T* row, int64_t r, const KeyRange& local, int64_t j0) const {
    a.rules.Finish(row, kKeyBlock, local.first, local.end, At(r), j0);
    const KeyRange gap = Gap(r, j0);
    a.rules.HideInside(row, gap.first, gap.end);
  }
  /// Rows from `rows` to `padded` become zero queries with the last row's range; their results go nowhere.
  void Start(int64_t padded, int64_t q_row, bool with_sink) {
    memset(out, 0, static_cast<size_t>(padded * Padded<T>(a.Dv)) * sizeof(T));
    memset(sum, 0, static_cast<size_t>(padded * Width<T>) * sizeof(T));
    for (int64_t query = 0, r = 0; query < block.queries; query++) {
      const KeyRange seen = a.rules.Visible(s.offset + block.query + query, s.length);
      const KeySpan& keys = block.keys;
      const KeyRange mine = {seen.first > keys.first ? seen.first : keys.first, seen.end < keys.end ? seen.end : keys.end};
      const char* from = s.q + (block.query + query) * a.q_strides.row + head * a.G * a.q_strides.head;
      for (int64_t g = 0; g < a.G; g++, r++, from += a.q_strides.head) {
        range[r] = mine;
        StartRow(r, q_row, from, head * a.G + g, with_sink);
      }
    }
    for (int64_t r = rows; r < padded; r++) {
      range[r] = range[rows - 1];
      m[r] = -static_cast<T>(__builtin_inf());
      alpha[r] = 1;
      memset(q + r * q_row, 0, static_cast<size_t>(q_row) * sizeof(T));
    }
  }
  void StartRow(int64_t r, int64_t q_row, const char* from, int64_t head, bool with_sink) {
    T* to = q + r * q_row;
    for (int64_t d = a.D; d < q_row; d++) to[d] = 0;
    a.load_query(to, from, a.q_strides.step, a.D, a.rules.query_factor);
    m[r] = with_sink ? a.rules.Sink(head) : -static_cast<T>(__builtin_inf());
    alpha[r] = 1;
    if (m[r] != -static_cast<T>(__builtin_inf())) sum[r * Width<T>] = 1;
  }
  /// To the output; or, when the keys were split, to `partial`, rows of [m, sum, out[Padded(Dv)]].
  void End(T* partial) const {
    const int64_t Dv = Padded<T>(a.Dv);
    for (int64_t r = 0; r < rows; r++) {
      const T total = HorizontalSum<T>(Load(sum + r * Width<T>));
      if (partial == nullptr) {
        StoreRow(a, s, Head(r), Query(r), out + r * Dv, m[r], total);
        continue;
      }
      T* to = partial + r * (Dv + 2);
      to[0] = m[r];
      to[1] = total;
      memcpy(to + 2, out + r * Dv, static_cast<size_t>(Dv) * sizeof(T));
    }
  }
};

template <class T, class Q> HEED_NOINLINE void LoadQuery(T* to, const char* from, int64_t step, int64_t n, T factor) {
  const Q* q = reinterpret_cast<const Q*>(from);
  int64_t i = 0;
  if (step == sizeof(Q))
    for (; i + Width<T> <= n; i += Width<T>) Store<T>(to + i, LoadAs(q + i) * Set1(factor));
  for (; i < n; i++) to[i] = ToFloat(*reinterpret_cast<const Q*>(from + i * step)) * factor;
}
template <class T, class Q> HEED_NOINLINE void StoreOut(char* to, int64_t step, const T* from, int64_t n, T factor) {
  Q* out = reinterpret_cast<Q*>(to);
  int64_t i = 0;
  if (step == sizeof(Q))
    for (; i + Width<T> <= n; i += Width<T>) StoreAs<Q>(out + i, Load(from + i) * Set1(factor));
  for (; i < n; i++) *reinterpret_cast<Q*>(to + i * step) = FromFloat<Q>(from[i] * factor);
}
/// f(Count<n>{}) for the n in 1 .. 4 that a loop's bounds must know while compiling.
template <int N> struct Count { static constexpr int value = N; };
}  // namespace heed::HEED_ISA
