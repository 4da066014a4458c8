// One block of attention's backward pass: kRowBlock query rows against kKeyBlock keys. FlashAttention-2's five products
// (Dao, arXiv 2307.08691, algorithm 2), probabilities recomputed from the log-sum-exp of the forward pass:
//   S = Q K^T,  dP = dO V^T,  P = exp(S - lse),  dS = P * (dP - delta) [* softcap slope],  delta_i = sum_d dO_i . out_i
//   dV += P^T dO,  dK += dS^T Q,  dQ += dS K
// The G query heads of a key head are rows of one matrix: row r is query r / G of head r % G, so dK and dV sum over the group.
// A pair that is not visible has P = dS = 0 by selection; what stands in its operands is kept out by MultiplyVisible.
#pragma once
#include "matmul-inl.h"
#include "scores-inl.h"

namespace heed::HEED_ISA {
/// About the rows of a block (a multiple of G) and its keys: for D = 128 in float32 the block's operands take 0.5 MiB of L2.
constexpr int64_t kRowsWanted = 96;
constexpr int64_t kKeyBlock = 128;

HEED_INLINE int64_t RoundUpTo(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
/// Row length in elements: n rounded up to an odd number of cache lines, so that a column of rows spreads over all sets of L1.
template <class T> HEED_INLINE int64_t RowLength(int64_t n) {
  const int64_t line = 64 / int64_t{sizeof(T)}, lines = (n + line - 1) / line;
  return (lines | 1) * line;
}

/// The numbers of a call that blocks need.
struct BackwardShape {
  int64_t batch, queries, keys, heads, key_heads, group, d, dv;
  int64_t q_row, o_row;          // row lengths of packed q and k, and of packed d_out
  int64_t rows, block_queries, block_rows, row_blocks, key_blocks;  // of one key head
};
/// A block of query rows of one key head, packed: q times ScoreRules::query_factor, d_out, and a log-sum-exp in base 2 and delta
/// per row. finite 0: some element of q or d_out is not finite.
template <class T> struct QueryRows {
  T *q, *d_out, *lse, *delta;
  int64_t begin, count;          // rows of the key head
};
/// A block of keys: transposed panels of kTileCols<T> keys (depth by key) and rows, whose end is `count` keys.
template <class T> struct KeyRows {
  T *k_panels, *v_panels, *k;
  int64_t begin, count;
  bool finite;
};
/// Where the scores of a block stand: probabilities, d_scores and the slope of the softcap, [rows][kKeyBlock] with row length score_row.
template <class T> struct ScoreBlock {
  static constexpr int64_t kRow = kKeyBlock + 64 / int64_t{sizeof(T)};
  T *p, *ds, *slope;
  uint8_t* visible;              // [rows][kKeyBlock], written for blocks that are not finite: 0, kSeen, or kSeen | kKept
  int32_t* first;                // per tile of kTileRows rows: the range of keys whose p and ds are computed; zero beyond
  int32_t* end;
};

/// A pair that is visible, and one whose weight is not dropped.
constexpr uint8_t kSeen = 1, kKept = 2;

/// x[0 .. n) *= factor; returns whether the products are finite (0 * x is NaN otherwise).
template <class T> HEED_INLINE bool ScaleRow(T* x, int64_t n, T factor) {
  Vec<T> test = {};
  for (int64_t i = 0; i < n; i += Width<T>) {
    const Vec<T> y = Load<T>(x + i) * Set1(factor);
    test += y * Set1(T{0});
    Store<T>(x + i, y);
  }
  return HorizontalSum<T>(test) == 0;
}
template <class T> HEED_INLINE T DotRow(const T* x, const T* y, int64_t n) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < n; i += Width<T>) sum = Fma(Load<T>(x + i), Load<T>(y + i), sum);
  return HorizontalSum<T>(sum);
}

/// One row of a block, from products to probabilities: p holds scores, ds holds dP on entry, both for n keys from j0 on. Under dropout dP
/// is dropped first, since dS takes the gradient of the dropped weights to that of the softmax, and P last, for dV.
template <class T>
HEED_NOINLINE void FinishRow(const ScoreRules<T>& rules, const RowAt& at, T* p, T* ds, T* slope, int64_t n, int64_t low,
                             int64_t high, const KeyRange& gap, int64_t j0, T lse, T delta, uint8_t* visible, bool before_softcap) {
  const T hidden = static_cast<T>(-__builtin_inf());
  const bool capped = rules.cap != 0 && !before_softcap;
  rules.Finish(p, n, low, high, at, j0, capped ? slope : nullptr);
  rules.HideInside(p, gap.first, gap.end);
  T keep[kKeyBlock];
  const bool drops = rules.dropout.On();
  if (drops) {
    rules.dropout.Draw(keep, n, at.batch, at.head, at.query, j0);
    Drop(ds, keep, n);
  }
  if (visible != nullptr)
    for (int64_t i = 0; i < n; i++) visible[i] = p[i] == hidden ? 0 : drops && keep[i] == 0 ? kSeen : kSeen | kKept;
  for (int64_t i = 0; i < n; i += Width<T>) {
    const Vec<T> x = Load<T>(p + i);
    const Mask<T> out = x == Set1(hidden);
    const Vec<T> y = Select<T>(out, Vec<T>{}, Exp2NotPositive<T>(x - Set1(lse)));
    Vec<T> d = y * (Load<T>(ds + i) - Set1(delta));
    if (capped) d *= Load<T>(slope + i);
    Store<T>(p + i, y);
    Store<T>(ds + i, Select<T>(out, Vec<T>{}, d));
  }
  if (drops) Drop(p, keep, n);
}
template <class T> HEED_INLINE void ZeroOutside(T* row, int64_t first, int64_t end) {
  memset(row, 0, sizeof(T) * first);
  memset(row + end, 0, sizeof(T) * (kKeyBlock - end));
}

/// P and dS of a block. before_softcap leaves the softcap's slope out of dS: the gradient of an additive mask.
template <class T>
HEED_NOINLINE void ComputeScores(const BackwardShape& s, const ScoreRules<T>& rules, int64_t batch, int64_t key_head,
                                 const QueryRows<T>& q, const KeyRows<T>& k, const ScoreBlock<T>& to, bool careful,
                                 bool before_softcap) {
  constexpr int64_t w = Width<T>, row = ScoreBlock<T>::kRow;
  const int64_t length = rules.Length(batch), offset = rules.Offset(batch, length);
  const auto clamp = [&](int64_t key) { return key < k.begin ? 0 : key > k.begin + k.count ? k.count : key - k.begin; };
  const bool has_sinks = rules.SinkTokens() > k.begin;
  const int64_t sinks = clamp(rules.SinkTokens());
  for (int64_t r = 0; r < q.count; r += kTileRows) {
    const int64_t high = q.count - r < kTileRows ? q.count - r : kTileRows;
    const int64_t nearest = rules.Visible(offset + (q.begin + r) / s.group, length).first;
    const int64_t from = has_sinks ? 0 : clamp(nearest) / w * w;
    // Of keys before all windows of the tile, the sink tokens alone are seen.
    const bool alone = has_sinks && nearest >= k.begin + k.count;
    int64_t end = RoundUpTo(alone ? sinks : clamp(rules.Visible(offset + (q.begin + r + high - 1) / s.group, length).end), w);
    if (end < from) end = from;
    to.first[r / kTileRows] = static_cast<int32_t>(from);
    to.end[r / kTileRows] = static_cast<int32_t>(end);
    for (int64_t j = from; j < end;) {
      const int64_t panel = j / kTileCols<T>, within = j % kTileCols<T>;
      const int64_t wide = end - j < kTileCols<T> - within ? end - j : kTileCols<T> - within;
      const int64_t at = panel * kTileCols<T>;
      const T *keys = k.k_panels + at * s.d + within, *values = k.v_panels + at * s.dv + within;
      RunTile<T, Walk::kAcross, false>(
          {q.q + r * s.q_row, s.q_row, keys, kTileCols<T>, s.d, to.p + r * row + j, row}, high, wide / w);
      RunTile<T, Walk::kAcross, false>(
          {q.d_out + r * s.o_row, s.o_row, values, kTileCols<T>, s.dv, to.ds + r * row + j, row}, high, wide / w);
      j += wide;
    }
    for (int64_t i = r; i < r + high; i++) {
      T *p = to.p + i * row, *ds = to.ds + i * row;
      const int64_t query = (q.begin + i) / s.group, head = key_head * s.group + (q.begin + i) % s.group;
      const KeyRange seen = rules.Visible(offset + query, length);
      const bool nothing = q.lse[i] == static_cast<T>(-__builtin_inf());
      const int64_t low = has_sinks ? 0 : clamp(seen.first);
      int64_t top = nothing ? low : alone && sinks < clamp(seen.end) ? sinks : clamp(seen.end);
      if (top < low) top = low;
      const int64_t window = clamp(seen.first) < top ? clamp(seen.first) : top;
      const KeyRange gap = has_sinks ? KeyRange{sinks, window} : KeyRange{from, from};
      if (from < end)
        FinishRow<T>(rules, {batch, head, query, offset + query}, p + from, ds + from, to.slope, end - from, low - from, top - from,
                     {gap.first - from, gap.end - from}, k.begin + from, q.lse[i], q.delta[i],
                     careful ? to.visible + i * kKeyBlock + from : nullptr, before_softcap);
      ZeroOutside(p, from, end);
      ZeroOutside(ds, from, end);
      if (careful) memset(to.visible + i * kKeyBlock, 0, from), memset(to.visible + i * kKeyBlock + end, 0, kKeyBlock - end);
    }
  }
}

/// Where the sums of a block go: rows of the key block (row lengths q_row and o_row) and rows of the query block.
template <class T> struct BackwardSums {
  T *dk, *dv, *dq;
};
/// c += A^T B for the keys of a block: A = p or ds, B = d_out or q.
template <class T>
HEED_NOINLINE void MultiplyDown(const T* scores, const ScoreBlock<T>& block, int64_t rows, int64_t keys, const T* b,
                                int64_t b_row, T* c, int64_t cols) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t col = 0; col < cols; col += kTileCols<T>) {
    const int64_t vecs = ((cols - col < kTileCols<T> ? cols - col : kTileCols<T>) + Width<T> - 1) / Width<T>;
    int64_t from = 0, to = 0;
    for (int64_t j = 0; j < keys; j += kTileRows) {
      // Both ends of the tiles' ranges rise with the row: the tiles that meet these keys are neighbours. But later tiles may see sink tokens
      // alone, and end with them.
      while (from < tiles && block.end[from] <= j) from++;
      if (to < from) to = from;
      while (to < tiles && block.first[to] < j + kTileRows) to++;
      int64_t until = to;
      while (until > from && block.end[until - 1] <= j) until--;
      const int64_t begin = from * kTileRows, end = until * kTileRows < rows ? until * kTileRows : rows;
      if (begin >= end) continue;
      const T* a = scores + begin * ScoreBlock<T>::kRow + j;
      RunTile<T, Walk::kDown, true>(
          {a, ScoreBlock<T>::kRow, b + begin * b_row + col, b_row, end - begin, c + j * b_row + col, b_row},
          keys - j < kTileRows ? keys - j : kTileRows, vecs);
    }
  }
}
/// dq += dS K for the rows of a block.
template <class T>
HEED_NOINLINE void MultiplyAcross(const ScoreBlock<T>& block, int64_t rows, int64_t keys, const T* k, int64_t k_row, T* dq,
                                  int64_t cols) {
  for (int64_t col = 0; col < cols; col += kTileCols<T>) {
    const int64_t vecs = ((cols - col < kTileCols<T> ? cols - col : kTileCols<T>) + Width<T> - 1) / Width<T>;
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t from = block.first[r / kTileRows], last = block.end[r / kTileRows], end = last < keys ? last : keys;
      if (from >= end) continue;
      const T* a = block.ds + r * ScoreBlock<T>::kRow + from;
      RunTile<T, Walk::kAcross, true>(
          {a, ScoreBlock<T>::kRow, k + from * k_row + col, k_row, end - from, dq + r * k_row + col, k_row},
          rows - r < kTileRows ? rows - r : kTileRows, vecs);
    }
  }
}
/// The three products of a block in which some operand is not finite: only visible pairs are touched, in the same order of
/// additions, so that finite rows get the bits they would have had.
template <class T>
HEED_NOINLINE void MultiplyVisible(const BackwardShape& s, const QueryRows<T>& q, const KeyRows<T>& k, const ScoreBlock<T>& block,
                                   const BackwardSums<T>& sums) {
  const auto add = [](T* to, T factor, const T* from, int64_t n) {
    for (int64_t x = 0; x < n; x += Width<T>) Store<T>(to + x, Fma(Set1(factor), Load<T>(from + x), Load<T>(to + x)));
  };
  for (int64_t i = 0; i < q.count; i++)
    for (int64_t j = 0; j < k.count; j++) {
      const uint8_t visible = block.visible[i * kKeyBlock + j];
      if (!visible) continue;
      const T p = block.p[i * ScoreBlock<T>::kRow + j], ds = block.ds[i * ScoreBlock<T>::kRow + j];
      if (visible & kKept) add(sums.dv + j * s.o_row, p, q.d_out + i * s.o_row, s.dv);
      add(sums.dk + j * s.q_row, ds, q.q + i * s.q_row, s.d);
      add(sums.dq + i * s.q_row, ds, k.k + j * s.q_row, s.d);
    }
}
}  // namespace heed::HEED_ISA
