// Attention for few query rows, where the time is that of reading the cache once. Keys and values are read in place, whatever their
// storage type, by all rows of a key head together; the values of a block are prefetched while its keys are used, and the next keys
// while its values are. Long caches are split over keys by the caller and combined by log-sum-exp (Flash-Decoding, Dao et al. 2023).
#pragma once
#include "attention-problem-inl.h"
#include "tile-inl.h"

namespace heed::HEED_ISA {
// Most rows of this way. With AVX-512 it does 180 GFLOP/s at 64 rows (d 128, 8192 keys), and packing first 115; with AVX2 the two
// cross between 32 rows (72 and 54 GFLOP/s) and 48 (72 and 83).
constexpr int64_t kDecodeRows = kRegisters == 32 ? 64 : 32;

/// Of two vectors that hold groups of Group lanes: the first (From 0) or second (From Group / 2) halves of all groups.
template <int Group, int From> struct Halves {
  static constexpr int At(int i) { return i / (Group / 2) * Group + i % (Group / 2) + From; }
};
/// Sums of Width vectors by log2(Width) steps of halving and joining: lane i is the sum of r[i].
template <class T, int Group = Width<T>> HEED_INLINE Vec<T> SumEach(Vec<T> (&r)[Width<T>]) {
  HEED_UNROLL for (int i = 0; i < Group / 2; i++)
    r[i] = Shuffle<T, Halves<Group, 0>>(r[2 * i], r[2 * i + 1]) + Shuffle<T, Halves<Group, Group / 2>>(r[2 * i], r[2 * i + 1]);
  if constexpr (Group > 2) return SumEach<T, Group / 2>(r);
  else return r[0];
}
HEED_INLINE void PrefetchRow(const char* row, int64_t bytes) {
  HEED_UNROLL for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 3);
}

/// sums[g][i] += q[g][d ...] * key i[d ...], `lanes` of a vector, for R rows and N keys.
template <class T, class K, int R, int N>
HEED_INLINE void DotStep(Vec<T> (&sums)[Width<T>], const T* q, int64_t q_row, const K* const (&row)[N], int64_t d, int64_t lanes) {
  Vec<T> key[N];
  HEED_UNROLL for (int i = 0; i < N; i++) key[i] = LoadFirstAs(row[i] + d, lanes);
  HEED_UNROLL for (int g = 0; g < R; g++) {
    const Vec<T> x = Load(q + g * q_row + d);
    HEED_UNROLL for (int i = 0; i < N; i++) sums[g * N + i] = Fma(x, key[i], sums[g * N + i]);
  }
}

/// One task: up to kDecodeRows rows, in groups of at most four.
template <class T, class K> struct DecodeTask : TaskRows<T> {
  using Base = TaskRows<T>;
  using Base::a, Base::s, Base::block, Base::rows, Base::q, Base::p, Base::out, Base::sum, Base::m, Base::alpha, Base::range, Base::Local;
  static constexpr int kGroup = Width<T> < 4 ? Width<T> : 4;
  int64_t padded, D, Dv;  // rows, D and Dv rounded up
  const char *key_rows[2][kKeyBlock], *values[kKeyBlock];
  const char **keys, **next_keys;

  static int64_t Bytes(int64_t rows, int64_t D, int64_t Dv) {
    const int64_t padded = RoundUp(rows, 4);
    return (padded * (Padded<T>(D) + kKeyBlock + Padded<T>(Dv) + Width<T>) + 2 * RoundUp(padded, 16)) * static_cast<int64_t>(sizeof(T)) +
           padded * static_cast<int64_t>(sizeof(KeyRange));
  }
  DecodeTask(const Problem<T>& problem, const Sequence& sequence, const RowBlock& of, char* scratch)
      : Base(problem, sequence, of), padded(RoundUp(Base::rows, 4)), D(Padded<T>(problem.D)), Dv(Padded<T>(problem.Dv)) {
    q = reinterpret_cast<T*>(scratch);
    p = q + padded * D;
    out = p + padded * kKeyBlock;
    sum = out + padded * Dv;
    m = sum + padded * Width<T>;
    alpha = m + RoundUp(padded, 16);
    range = reinterpret_cast<KeyRange*>(alpha + RoundUp(padded, 16));
  }
  /// p[r + i][j] = q[r + i] . key j for R rows and the keys [0, n) of the block (rounded up: later ones repeat the last).
  template <int R> __attribute__((noinline)) void Dots(int64_t r, int64_t n, bool prefetch) const {
    constexpr int at_once = Width<T> / R;
    const int64_t whole = a.D / Width<T> * Width<T>, tail = a.D - whole, q_row = D;
    const int64_t bytes = prefetch ? a.Dv * static_cast<int64_t>(sizeof(K)) : 0;
    const T* rows_of_q = q + r * D;
    T* to = p + r * kKeyBlock;
    for (int64_t j = 0; j < n; j += at_once) {
      Vec<T> sums[Width<T>] = {};
      const K* row[at_once];
      HEED_UNROLL for (int i = 0; i < at_once; i++) row[i] = reinterpret_cast<const K*>(keys[j + i]);
      // In a burst: asked for one by one among the products, they came 10 % slower from memory (float32, 8192 and 32,768 keys).
      for (int i = 0; i < at_once; i++) PrefetchRow(values[j + i], bytes);
      for (int64_t d = 0; d < whole; d += Width<T>) DotStep<T, K, R>(sums, rows_of_q, q_row, row, d, Width<T>);
      if (tail > 0) DotStep<T, K, R>(sums, rows_of_q, q_row, row, whole, tail);
      T lanes[Width<T>];
      Store<T>(lanes, SumEach<T>(sums));
      HEED_UNROLL for (int i = 0; i < R; i++) memcpy(to + i * kKeyBlock + j, lanes + i * at_once, at_once * sizeof(T));
    }
  }
  /// out[r + i][c ...] = alpha * out + p @ V for R rows, Vecs vectors of columns (`tail` lanes when it is one) and keys [low, high).
  template <int R, int Vecs>
  __attribute__((noinline)) void Accumulate(int64_t r, int64_t c, int64_t tail, int64_t low, int64_t high, bool prefetch) const {
    Vec<T> acc[R][Vecs];
    T* to = out + r * Dv + c;
    HEED_UNROLL for (int i = 0; i < R; i++)
      HEED_UNROLL for (int x = 0; x < Vecs; x++) acc[i][x] = Load(to + i * Dv + x * Width<T>) * Set1(alpha[r + i]);
    const T* weights = p + r * kKeyBlock;
    const int64_t ahead = c * static_cast<int64_t>(sizeof(K));
    for (int64_t j = low; j < high; j++) {
      const K* row = reinterpret_cast<const K*>(values[j]) + c;
      if (prefetch) PrefetchRow(next_keys[j] + ahead, Vecs * Width<T> * static_cast<int64_t>(sizeof(K)));
      Vec<T> value[Vecs];
      HEED_UNROLL for (int x = 0; x < Vecs; x++)
        value[x] = Vecs == 1 ? LoadFirstAs(row, tail) : LoadAs(row + x * Width<T>);
      HEED_UNROLL for (int i = 0; i < R; i++) {
        const Vec<T> weight = Set1(weights[i * kKeyBlock + j]);
        HEED_UNROLL for (int x = 0; x < Vecs; x++) acc[i][x] = Fma(weight, value[x], acc[i][x]);
      }
    }
    HEED_UNROLL for (int i = 0; i < R; i++)
      HEED_UNROLL for (int x = 0; x < Vecs; x++) Store<T>(to + i * Dv + x * Width<T>, acc[i][x]);
  }
  template <int R> void AccumulateRows(int64_t r, int64_t low, int64_t high, bool prefetch) {
    constexpr int64_t wide = kTileVecs * Width<T>;
    int64_t c = 0;
    for (; c + wide <= a.Dv; c += wide) Accumulate<R, kTileVecs>(r, c, Width<T>, low, high, prefetch);
    for (; c < a.Dv; c += Width<T>) Accumulate<R, 1>(r, c, a.Dv - c < Width<T> ? a.Dv - c : Width<T>, low, high, prefetch);
  }
  /// f(rows as a Count, r) for groups of four, then two, then one.
  template <class F> void Groups(const F& f) {
    int64_t r = 0;
    for (; rows - r >= kGroup || rows - r == 3; r += kGroup) f(Count<kGroup>{}, r);
    if (rows - r >= 2) f(Count<2>{}, r), r += 2;
    if (rows - r == 1) f(Count<1>{}, r);
  }
  bool Finite(int64_t low, int64_t high) const {
    T wrong = 0;
    for (int64_t j = low; j < high; j++) {
      const K* row = reinterpret_cast<const K*>(values[j]);
      Vec<T> x = {};
      for (int64_t d = 0; d < a.Dv; d += Width<T>) {
        const Vec<T> y = LoadFirstAs(row + d, a.Dv - d);
        x += y - y;
      }
      wrong += HorizontalSum<T>(x);
    }
    return wrong == 0;
  }
  /// Row r where its own bits say so: hidden values may be NaN.
  void AccumulateSelected(int64_t r, uint64_t visible) {
    T* to = out + r * Dv;
    for (int64_t d = 0; d < a.Dv; d++) to[d] *= alpha[r];
    for (; visible != 0; visible &= visible - 1) {
      const int64_t j = __builtin_ctzll(visible);
      const K* row = reinterpret_cast<const K*>(values[j]);
      for (int64_t d = 0; d < a.Dv; d++) to[d] += p[r * kKeyBlock + j] * ToFloat(row[d]);
    }
  }
  void Block(int64_t j0, bool prefetch_keys) {
    const int64_t low = Local(0, j0).first, high = Local(rows - 1, j0).end;
    if (low >= high) return;
    bool first = true;
    Groups([&](auto n, int64_t r) {
      Dots<decltype(n)::value>(r, high, first);
      first = false;
    });
    // Values that some row does not see, or drops, may be multiplied by its 0 only when they are finite.
    const bool drops = a.rules.dropout.On();
    const bool same = !drops && a.rules.apply_mask == nullptr && Local(rows - 1, j0).first == low && Local(0, j0).end == high;
    const bool select = !same && !Finite(low, high), plain = a.rules.Plain();
    for (int64_t r = 0; r < rows; r++) {
      T* row = p + r * kKeyBlock;
      const KeyRange local = Local(r, j0);
      if (!plain || local.first > 0 || local.end < kKeyBlock)
        a.rules.Finish(row, kKeyBlock, local.first, local.end, Base::At(r), j0);
      uint64_t visible = select ? VisibleBits(row) : 0;
      SoftmaxRow<T>(row, m + r, sum + r * Width<T>, alpha + r);
      if (drops) DropRow(a.rules, Base::At(r), row, local.first, local.end, j0, &visible);
      if (select) AccumulateSelected(r, visible);
    }
    if (select) return;
    first = prefetch_keys;
    Groups([&](auto n, int64_t r) {
      AccumulateRows<decltype(n)::value>(r, low, high, first);
      first = false;
    });
  }
  void Run(T* partial) {
    Base::Start(padded, D, partial == nullptr);
    const int64_t begin = block.first / kKeyBlock * kKeyBlock;
    keys = key_rows[0];
    next_keys = key_rows[1];
    if (block.first < block.end) FindRows(a, s, a.k, a.k_strides, block.head, begin, block.end, next_keys);
    for (int64_t j0 = begin; j0 < block.end; j0 += kKeyBlock) {
      const char** done = keys;
      keys = next_keys;
      next_keys = done;
      FindRows(a, s, a.v, a.v_strides, block.head, j0, block.end, values);
      const bool more = j0 + kKeyBlock < block.end;
      if (more) FindRows(a, s, a.k, a.k_strides, block.head, j0 + kKeyBlock, block.end, next_keys);
      Block(j0, more);
    }
    Base::End(partial);
  }
};
template <class T, class K>
HEED_NOINLINE void Decode(const Problem<T>& a, const Sequence& s, const RowBlock& block, char* scratch, T* partial) {
  DecodeTask<T, K> task(a, s, block, scratch);
  task.Run(partial);
}
}  // namespace heed::HEED_ISA
