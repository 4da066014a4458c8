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
  HEED_UNROLL for (int i = 0; i < N; i++) key[i] = LoadColumns(row[i], d, lanes);
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
  T* unpacked;                                 // rows of a block of quantised pages whose codes are not K
  T key_scales[kKeyBlock], value_scales[kKeyBlock];  // of the rows, when K is a code

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
    unpacked = reinterpret_cast<T*>(scratch + Bytes(Base::rows, problem.D, problem.Dv));
  }
  bool Unpacks() const { return !kIsCode<K> && a.unpack != nullptr; }
  /// Row r of p times the scales of the keys or values.
  void Scale(int64_t r, const T* scales) {
    T* row = p + r * kKeyBlock;
    for (int64_t j = 0; j < kKeyBlock; j += Width<T>) Store<T>(row + j, Load(row + j) * Load(scales + j));
  }
  /// Asks for the scales (or zeros: `t`) of a block of HEED_PAGES_INT4, 16 cache lines with D 128.
  void PrefetchScales(const CodedPages<T>& of, const heed_tensor& t, int64_t j0) const {
    ForEachPage(a, s, j0, BlockKeys(j0), [&](int64_t page, int64_t row, int64_t count, int64_t) {
      if (page < of.codes->shape[0]) PrefetchGroups(of, t, page, block.head, row, count);
    });
  }
  /// p[r + i][j] = q[r + i] . key j for R rows of `queries` and the keys [from, n) of the block, stored as C (rounded up: later ones repeat
  /// the last).
  template <int R, class C>
  __attribute__((noinline)) void Dots(const T* queries, int64_t r, int64_t from, int64_t n, bool prefetch) const {
    constexpr int at_once = Width<T> / R;
    const int64_t whole = a.D / Width<T> * Width<T>, tail = a.D - whole, q_row = D;
    const int64_t bytes = prefetch ? RowBytes<C>(a.Dv) : 0;
    const T* rows_of_q = queries + r * D;
    T* to = p + r * kKeyBlock;
    for (int64_t j = from; j < n; j += at_once) {
      Vec<T> sums[Width<T>] = {};
      const C* row[at_once];
      HEED_UNROLL for (int i = 0; i < at_once; i++) row[i] = reinterpret_cast<const C*>(keys[j + i]);
      // In a burst: asked for one by one among the products, they came 10 % slower from memory (float32, 8192 and 32,768 keys).
      for (int i = 0; i < at_once; i++) PrefetchRow(values[j + i], bytes);
      for (int64_t d = 0; d < whole; d += Width<T>) DotStep<T, C, R>(sums, rows_of_q, q_row, row, d, Width<T>);
      if (tail > 0) DotStep<T, C, R>(sums, rows_of_q, q_row, row, whole, tail);
      T lanes[Width<T>];
      Store<T>(lanes, SumEach<T>(sums));
      HEED_UNROLL for (int i = 0; i < R; i++) memcpy(to + i * kKeyBlock + j, lanes + i * at_once, at_once * sizeof(T));
    }
  }
  /// out[r + i][c ...] = alpha * out + weights @ V for R rows, Vecs vectors of columns (`tail` lanes when it is one) of values stored as C
  /// and keys [low, high). weights [R][kKeyBlock].
  template <int R, int Vecs, class C>
  __attribute__((noinline)) void Accumulate(const T* weights, int64_t r, int64_t c, int64_t tail, int64_t low, int64_t high,
                                            bool prefetch) const {
    Vec<T> acc[R][Vecs];
    T* to = out + r * Dv + c;
    HEED_UNROLL for (int i = 0; i < R; i++)
      HEED_UNROLL for (int x = 0; x < Vecs; x++) acc[i][x] = Load(to + i * Dv + x * Width<T>) * Set1(alpha[r + i]);
    const int64_t ahead = RowBytes<C>(c);
    for (int64_t j = low; j < high; j++) {
      const C* row = reinterpret_cast<const C*>(values[j]);
      if (prefetch) PrefetchRow(next_keys[j] + ahead, RowBytes<C>(Vecs * Width<T>));
      Vec<T> value[Vecs];
      HEED_UNROLL for (int x = 0; x < Vecs; x++)
        value[x] = LoadColumns(row, c + x * Width<T>, Vecs == 1 ? tail : Width<T>);
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
    const T* weights = p + r * kKeyBlock;
    int64_t c = 0;
    for (; c + wide <= a.Dv; c += wide) Accumulate<R, kTileVecs, K>(weights, r, c, Width<T>, low, high, prefetch);
    for (; c < a.Dv; c += Width<T>) Accumulate<R, 1, K>(weights, r, c, a.Dv - c < Width<T> ? a.Dv - c : Width<T>, low, high, prefetch);
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
    if constexpr (kIsCode<K>)
      for (int64_t j = low; j < high; j++) wrong += value_scales[j] - value_scales[j];
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
    bool first = !Unpacks(), grouped = Grouped(j0);
    if (grouped) {
      GroupedDots(j0, high);
    } else {
      if (Unpacks()) UnpackBlock(a, s, a.coded_k, block.head, j0, block.end, unpacked, keys);
      Groups([&](auto n, int64_t r) {
        Dots<decltype(n)::value, K>(q, r, 0, high, first);
        first = false;
      });
    }
    // Values that some row does not see, or drops, may be multiplied by its 0 only when they are finite.
    const bool drops = a.rules.dropout.On();
    const bool same = !drops && a.rules.apply_mask == nullptr && Local(rows - 1, j0).first == low && Local(0, j0).end == high;
    if (grouped && !same && !GroupsFinite(j0, low, high)) grouped = false;  // the careful path below wants numbers
    if (Unpacks() && !grouped) UnpackBlock(a, s, a.coded_v, block.head, j0, block.end, unpacked, values);
    const bool select = !same && !grouped && !Finite(low, high), plain = a.rules.Plain();
    for (int64_t r = 0; r < rows; r++) {
      T* row = p + r * kKeyBlock;
      const KeyRange local = Local(r, j0);
      if constexpr (kIsCode<K>) Scale(r, key_scales);
      if (!plain || local.first > 0 || local.end < kKeyBlock)
        a.rules.Finish(row, kKeyBlock, local.first, local.end, Base::At(r), j0);
      uint64_t visible = select ? VisibleBits(row) : 0;
      SoftmaxRow<T>(row, m + r, sum + r * Width<T>, alpha + r);
      if (drops) DropRow(a.rules, Base::At(r), row, local.first, local.end, j0, &visible);
      if constexpr (kIsCode<K>) Scale(r, value_scales);
      if (select) AccumulateSelected(r, visible);
    }
    if (select) return;
    if (grouped) return GroupedValues(j0, low, high, prefetch_keys && Grouped(j0 + kKeyBlock));
    first = prefetch_keys && !Unpacks();
    Groups([&](auto n, int64_t r) {
      AccumulateRows<decltype(n)::value>(r, low, high, first);
      first = false;
    });
  }
  // HEED_PAGES_INT4 without numbers in memory: of keys, q . (zero + scale * code) = q . zero + (q * scale) . code for the tokens of a group;
  // of values, sum p (zero + scale * code) = sum p zero + sum (p * scale) code for the channels of a group.

  /// Whether the block at j0 is read that way: all its pages are sealed.
  bool Grouped(int64_t j0) const {
    if (!Unpacks() || !a.by_groups) return false;
    bool sealed = true;
    ForEachPage(a, s, j0, BlockKeys(j0), [&](int64_t page, int64_t, int64_t, int64_t) { sealed = sealed && page < a.coded_k.codes->shape[0]; });
    return sealed;
  }
  int64_t BlockKeys(int64_t j0) const { return block.end - j0 < kKeyBlock ? block.end - j0 : kKeyBlock; }
  /// scaled = q * scales and base = q . zeros of R rows.
  template <int R> void ScaleQueries(int64_t r, const T* scales, const T* zeros, T* scaled, T* base) const {
    Vec<T> sums[R] = {};
    for (int64_t d = 0; d < a.D; d += Width<T>) {
      const Vec<T> scale = LoadFirst(scales + d, a.D - d), zero = LoadFirst(zeros + d, a.D - d);
      HEED_UNROLL for (int i = 0; i < R; i++) {
        const Vec<T> x = Load(q + (r + i) * D + d);
        Store<T>(scaled + (r + i) * D + d, x * scale);
        sums[i] = Fma(x, zero, sums[i]);
      }
    }
    HEED_UNROLL for (int i = 0; i < R; i++) base[r + i] = HorizontalSum<T>(sums[i]);
  }
  /// Dots of the keys [0, high) of the block, a group of tokens at a time.
  void GroupedDots(int64_t j0, int64_t high) {
    if constexpr (__is_same(T, float) && __is_same(K, T)) {
      const CodedPages<T>& of = a.coded_k;
      T* scaled = unpacked + UnpackedRows(a);  // [padded][D]
      FindRows(a, s, a.k, a.k_strides, block.head, j0, block.end, keys);
      FindRows(a, s, a.v, a.v_strides, block.head, j0, block.end, values);
      for (int64_t from = 0; from < high; from += kCodeGroup) {
        const int64_t page = s.pages[(j0 + from) / a.page_size * a.page_step], group = (j0 + from) % a.page_size / kCodeGroup;
        const T* scales = static_cast<const T*>(of.scales->data) + OffsetOf(*of.scales, page, block.head, group);
        const T* zeros = static_cast<const T*>(of.zeros->data) + OffsetOf(*of.zeros, page, block.head, group);
        // Scales first, zeros with the next group: all at once they would fill the buffers that the codes' lines need.
        PrefetchScales(a.coded_v, from == 0 ? *a.coded_v.scales : *a.coded_v.zeros, j0);
        T base[kDecodeRows];
        Groups([&](auto n, int64_t r) { ScaleQueries<decltype(n)::value>(r, scales, zeros, scaled, base); });
        const int64_t end = high - from < kCodeGroup ? high : from + kCodeGroup;
        bool first = true;
        Groups([&](auto n, int64_t r) {
          Dots<decltype(n)::value, NibbleCode>(scaled, r, from, end, first);
          first = false;
        });
        for (int64_t r = 0; r < rows; r++)
          for (T* at = p + r * kKeyBlock + from; at < p + r * kKeyBlock + from + kCodeGroup; at += Width<T>) Store<T>(at, Load(at) + Set1(base[r]));
      }
    }
  }
  /// Scales or zeros of channel group g of the keys [low, high) of the block, 0 for the others: in place where one page holds the whole
  /// block, else in `room`.
  const T* ValueGroup(const heed_tensor& t, int64_t g, int64_t j0, int64_t low, int64_t high, T* room) const {
    const int64_t step = t.strides[3];
    if constexpr (__is_same(T, float))
      if (step == 1 && high - low == kKeyBlock && a.page_size % kKeyBlock == 0)
        return static_cast<const T*>(t.data) + OffsetOf(t, s.pages[j0 / a.page_size * a.page_step], block.head, g) + j0 % a.page_size;
    memset(room, 0, kKeyBlock * sizeof(T));
    ForEachPage(a, s, j0 + low, high - low, [&](int64_t page, int64_t row, int64_t count, int64_t i) {
      const float* from = static_cast<const float*>(t.data) + OffsetOf(t, page, block.head, g) + row * step;
      for (int64_t k = 0; k < count; k++) room[low + i + k] = from[k * step];
    });
    return room;
  }
  bool GroupsFinite(int64_t j0, int64_t low, int64_t high) const {
    T wrong = 0;
    for (int64_t g = 0; g < Divide(a.Dv, kCodeGroup); g++)
      for (int of = 0; of < 2; of++) {
        const T* x = ValueGroup(of == 0 ? *a.coded_v.scales : *a.coded_v.zeros, g, j0, low, high, unpacked + 2 * UnpackedRows(a));
        for (int64_t j = 0; j < kKeyBlock; j++) wrong += x[j] - x[j];
      }
    return wrong == 0;
  }
  /// Accumulates the values of the keys [low, high) of the block, a group of channels at a time.
  void GroupedValues(int64_t j0, int64_t low, int64_t high, bool prefetch_keys) {
    if constexpr (__is_same(T, float) && __is_same(K, T)) {
      T *room = unpacked + 2 * UnpackedRows(a), *weights = room + 2 * kKeyBlock;
      if (prefetch_keys) FindRows(a, s, a.k, a.k_strides, block.head, j0 + kKeyBlock, block.end, next_keys);
      for (int64_t g = 0; g < Divide(a.Dv, kCodeGroup); g++) {
        const T* scales = ValueGroup(*a.coded_v.scales, g, j0, low, high, room);
        const T* zeros = ValueGroup(*a.coded_v.zeros, g, j0, low, high, room + kKeyBlock);
        bool first = prefetch_keys && g % 4 == 0;  // four groups are a cache line
        if (prefetch_keys && g < 2) PrefetchScales(a.coded_k, g == 0 ? *a.coded_k.scales : *a.coded_k.zeros, j0 + kKeyBlock);
        Groups([&](auto n, int64_t r) {
          GroupColumns<decltype(n)::value>(r, g * kCodeGroup, low, high, first, scales, zeros, weights);
          first = false;
        });
      }
    }
  }
  /// Columns [first, first + 32) of R rows.
  template <int R>
  void GroupColumns(int64_t r, int64_t first, int64_t low, int64_t high, bool prefetch, const T* scales, const T* zeros, T* weights) {
    T offset[R];
    for (int i = 0; i < R; i++) {
      const T* row = p + (r + i) * kKeyBlock;
      Vec<T> total = {};
      for (int64_t j = 0; j < kKeyBlock; j += Width<T>) {
        Store<T>(weights + i * kKeyBlock + j, Load(row + j) * Load(scales + j));
        total = Fma(Load(row + j), Load(zeros + j), total);
      }
      offset[i] = HorizontalSum<T>(total);
    }
    const int64_t end = first + kCodeGroup < a.Dv ? first + kCodeGroup : a.Dv;
    int64_t c = first;
    for (; c + 2 * Width<T> <= end; c += 2 * Width<T>) Accumulate<R, 2, NibbleCode>(weights, r, c, Width<T>, low, high, prefetch && c == first);
    for (; c < end; c += Width<T>) Accumulate<R, 1, NibbleCode>(weights, r, c, end - c < Width<T> ? end - c : Width<T>, low, high, false);
    for (int i = 0; i < R; i++)
      for (T* at = out + (r + i) * Dv + first; at < out + (r + i) * Dv + end; at += Width<T>) Store<T>(at, Load(at) + Set1(offset[i]));
  }
  /// Blocks that are unpacked: keys, and in their place the values.
  void RunUnpacked() {
    keys = key_rows[0];
    next_keys = key_rows[1];
    for (int64_t j0 = block.first / kKeyBlock * kKeyBlock; j0 < block.end; j0 += kKeyBlock) {
      Block(j0, j0 + kKeyBlock < block.end);
    }
  }
  void Run(T* partial) {
    Base::Start(padded, D, partial == nullptr);
    if (Unpacks()) {
      RunUnpacked();
      return Base::End(partial);
    }
    const int64_t begin = block.first / kKeyBlock * kKeyBlock;
    keys = key_rows[0];
    next_keys = key_rows[1];
    if (block.first < block.end) FindRows(a, s, a.k, a.k_strides, block.head, begin, block.end, next_keys);
    for (int64_t j0 = begin; j0 < block.end; j0 += kKeyBlock) {
      const char** done = keys;
      keys = next_keys;
      next_keys = done;
      FindRows(a, s, a.v, a.v_strides, block.head, j0, block.end, values);
      if constexpr (kIsCode<K>) {
        FindScales(a, s, *a.coded_k.scales, block.head, j0, block.end, key_scales);
        FindScales(a, s, *a.coded_v.scales, block.head, j0, block.end, value_scales);
      }
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
