// Attention for few query rows, where the time is that of reading the cache once. Keys and values are read in place, whatever their
// storage type, by all rows of a key head together, and asked for some rows ahead: values while the last keys of a block are used, the next
// keys while its last values are. Long caches are split over keys by the caller and combined by log-sum-exp (Flash-Decoding, Dao et al. 2023).
#pragma once
#include "attention-groups-inl.h"
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

/// sums[g][i] += q[g][d ...] * key i[d ...], in units of kUnit, for R rows and N keys: two vectors, or `lanes` of one.
template <class T, class K, int R, int N>
HEED_INLINE void DotTwo(Vec<T> (&sums)[Width<T>], const T* q, int64_t q_row, const K* const (&row)[N], int64_t d) {
  Vec<T> key[N][2];
  HEED_UNROLL for (int i = 0; i < N; i++) LoadUnits(row[i] + d, key[i]);
  HEED_UNROLL for (int x = 0; x < 2; x++)
    HEED_UNROLL for (int g = 0; g < R; g++) {
      const Vec<T> from = Load(q + g * q_row + d + x * Width<T>);
      HEED_UNROLL for (int i = 0; i < N; i++) sums[g * N + i] = Fma(from, key[i][x], sums[g * N + i]);
    }
}
template <class T, class K, int R, int N>
HEED_INLINE void DotStep(Vec<T> (&sums)[Width<T>], const T* q, int64_t q_row, const K* const (&row)[N], int64_t d, int64_t lanes) {
  Vec<T> key[N];
  HEED_UNROLL for (int i = 0; i < N; i++) key[i] = LoadFirstUnits(row[i] + d, lanes);
  HEED_UNROLL for (int g = 0; g < R; g++) {
    const Vec<T> x = Load(q + g * q_row + d);
    HEED_UNROLL for (int i = 0; i < N; i++) sums[g * N + i] = Fma(x, key[i], sums[g * N + i]);
  }
}

/// Where the walk of a task stands: a block of keys, and a key head among the task's.
struct DecodePlace {
  int64_t j0, head;
};
/// One task: up to kDecodeRows rows of each of its key heads, in groups of at most four.
template <class T, class K> struct DecodeTask : TaskRows<T> {
  using Base = TaskRows<T>;
  using Base::a, Base::s, Base::block, Base::rows, Base::head, Base::q, Base::p, Base::out, Base::sum, Base::m, Base::alpha, Base::range, Base::Local,
      Base::Union, Base::HasGap;
  static constexpr int kGroup = Width<T> < 4 ? Width<T> : 4;
  static constexpr bool kGroups = __is_same(T, float) && __is_same(K, float);
  int64_t padded, D, Dv;  // rows, D and Dv rounded up
  T* heads;               // what each key head keeps from block to block, HeadSize numbers
  const char *key_rows[2][kKeyBlock], *value_rows[2][kKeyBlock];
  int64_t rows_ahead;
  bool more = false;  // whether next_keys and next_values are there
  const char **keys = key_rows[0], **values = value_rows[0], **next_keys = key_rows[1], **next_values = value_rows[1];
  T* unpacked;                                 // rows of a block of quantised pages whose codes are not K
  LinesAhead ahead;
  T key_scales[kKeyBlock], value_scales[kKeyBlock];  // of the rows, when K is a code

  /// Numbers that a key head keeps: q, out, sum, m.
  static int64_t HeadSize(int64_t padded, int64_t D, int64_t Dv) {
    return padded * (Padded<T>(D) + Padded<T>(Dv) + Width<T>) + RoundUp(padded, 16);
  }
  static int64_t Bytes(int64_t rows, int64_t heads, int64_t D, int64_t Dv) {
    const int64_t padded = RoundUp(rows, 4);
    return (padded * kKeyBlock + RoundUp(padded, 16) + heads * HeadSize(padded, D, Dv)) * static_cast<int64_t>(sizeof(T)) +
           padded * static_cast<int64_t>(sizeof(KeyRange));
  }
  DecodeTask(const Problem<T>& problem, const Sequence& sequence, const RowBlock& of, char* scratch)
      : Base(problem, sequence, of), padded(RoundUp(Base::rows, 4)), D(Padded<T>(problem.D)), Dv(Padded<T>(problem.Dv)),
        rows_ahead(RowsAhead(problem.D > problem.Dv ? problem.D : problem.Dv)) {
    p = reinterpret_cast<T*>(scratch);
    alpha = p + padded * kKeyBlock;
    range = reinterpret_cast<KeyRange*>(alpha + RoundUp(padded, 16));
    heads = reinterpret_cast<T*>(range + padded);
    unpacked = reinterpret_cast<T*>(scratch + Bytes(Base::rows, of.heads, problem.D, problem.Dv));
  }
  /// Turns to the rows of a key head of the task's.
  void Turn(int64_t to) {
    head = block.head + to;
    q = heads + to * HeadSize(padded, a.D, a.Dv);
    out = q + padded * D;
    sum = out + padded * Dv;
    m = sum + padded * Width<T>;
  }
  DecodePlace After(const DecodePlace& at) const {
    return at.head + 1 < block.heads ? DecodePlace{at.j0, at.head + 1} : DecodePlace{block.keys.After(at.j0), 0};
  }
  /// How far ahead rows are asked for: 12 KiB. Of float32 and bfloat16 rows of 128 numbers, at 32,768 keys and in pages of 64, a block ahead took
  /// 1.08 and 1.10 times as long, since what waits to be used crowds the rest out of the first-level cache; 4 KiB took 1.1 times as long.
  static int64_t RowsAhead(int64_t numbers) {
    const int64_t rows = (12 << 10) / RowBytes<K>(numbers) / 4 * 4;
    return rows < 8 ? 8 : rows > kKeyBlock ? kKeyBlock : rows;
  }
  bool Unpacks() const { return !kIsCode<K> && a.unpack != nullptr; }
  /// Row r of p times the scales of the keys or values and their unit.
  void Scale(int64_t r, const T* scales) {
    T* row = p + r * kKeyBlock;
    for (int64_t j = 0; j < kKeyBlock; j += Width<T>) Store<T>(row + j, Load(row + j) * (Load(scales + j) * Set1(static_cast<T>(kUnit<K>))));
  }
  /// p[r + i][j] = q[r + i] . key j, in units of kUnit, for R rows and the first n keys of the block (rounded up: later ones repeat the last).
  template <int R> __attribute__((noinline)) void Dots(int64_t r, int64_t n, bool prefetch) const {
    constexpr int at_once = Width<T> / R;
    const int64_t whole = a.D / Width<T> * Width<T>, tail = a.D - whole, q_row = D;
    const T* rows_of_q = q + r * D;
    T* to = p + r * kKeyBlock;
    for (int64_t j = 0; j < n; j += at_once) {
      Vec<T> sums[Width<T>] = {};
      const K* row[at_once];
      HEED_UNROLL for (int i = 0; i < at_once; i++) row[i] = reinterpret_cast<const K*>(keys[j + i]);
      // In a burst: asked for one by one among the products, they came 10 % slower from memory (float32, 8192 and 32,768 keys).
      for (int64_t i = j + rows_ahead; prefetch && i < j + rows_ahead + at_once; i++) {
        if (i < kKeyBlock) PrefetchRow(keys[i], RowBytes<K>(a.D));
        else PrefetchRow(values[i - kKeyBlock], RowBytes<K>(a.Dv));
      }
      int64_t d = 0;
      if constexpr (kUnit<K> != 1)
        for (; d + 2 * Width<T> <= whole; d += 2 * Width<T>) DotTwo<T, K, R>(sums, rows_of_q, q_row, row, d);
      for (; d < whole; d += Width<T>) DotStep<T, K, R>(sums, rows_of_q, q_row, row, d, Width<T>);
      if (tail > 0) DotStep<T, K, R>(sums, rows_of_q, q_row, row, whole, tail);
      T lanes[Width<T>];
      Store<T>(lanes, SumEach<T>(sums));
      HEED_UNROLL for (int i = 0; i < R; i++) memcpy(to + i * kKeyBlock + j, lanes + i * at_once, at_once * sizeof(T));
    }
  }
  /// out[r + i][c ...] = alpha * out + weights @ V for R rows, Vecs vectors of columns (`tail` lanes when it is one) of values in
  /// units of kUnit, and keys [low, high). weights [R][kKeyBlock].
  template <int R, int Vecs>
  __attribute__((noinline)) void Accumulate(const T* weights, int64_t r, int64_t c, int64_t tail, int64_t low, int64_t high,
                                            bool prefetch) const {
    Vec<T> acc[R][Vecs];
    T* to = out + r * Dv + c;
    HEED_UNROLL for (int i = 0; i < R; i++)
      HEED_UNROLL for (int x = 0; x < Vecs; x++) acc[i][x] = Load(to + i * Dv + x * Width<T>) * Set1(alpha[r + i]);
    const int64_t ahead = RowBytes<K>(c);
    for (int64_t j = low; j < high; j++) {
      const K* row = reinterpret_cast<const K*>(values[j]);
      if (prefetch) {
        const int64_t i = j + rows_ahead;
        if (i < kKeyBlock) PrefetchRow(values[i] + ahead, RowBytes<K>(Vecs * Width<T>));
        else if (more) PrefetchRow(next_keys[i - kKeyBlock] + ahead, RowBytes<K>(Vecs * Width<T>));
      }
      Vec<T> value[Vecs];
      if constexpr (Vecs == 1) {
        value[0] = LoadFirstUnits(row + c, tail);
      } else {
        HEED_UNROLL for (int x = 0; x < Vecs; x += 2) {
          Vec<T> two[2];
          LoadUnits(row + c + x * Width<T>, two);
          value[x] = two[0], value[x + 1] = two[1];
        }
      }
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
    for (; c + wide <= a.Dv; c += wide) Accumulate<R, kTileVecs>(weights, r, c, Width<T>, low, high, prefetch);
    for (; c < a.Dv; c += Width<T>) Accumulate<R, 1>(weights, r, c, a.Dv - c < Width<T> ? a.Dv - c : Width<T>, low, high, prefetch);
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
      for (int64_t d = 0; d < a.Dv; d++) to[d] += p[r * kKeyBlock + j] * (ToFloat(row[d]) / static_cast<T>(kUnit<K>));
    }
  }
  void Block(int64_t j0, const DecodePlace& after) {
    const KeyRange seen = Union(0, rows - 1, j0);
    const int64_t low = seen.first, high = seen.end;
    if (low >= high) return;
    bool first = !Unpacks(), grouped = Grouped(j0);
    if (grouped) {
      LookAhead(after);
      GroupedDots(j0, high);
    } else {
      if (Unpacks()) UnpackBlock(a, s, a.coded_k, head, j0, block.keys.end, unpacked, keys);
      Groups([&](auto n, int64_t r) {
        Dots<decltype(n)::value>(r, high, first);
        first = false;
      });
    }
    // Values that some row does not see, or drops, may be multiplied by its 0 only when they are finite.
    const bool drops = a.rules.dropout.On();
    const bool same = !drops && a.rules.apply_mask == nullptr && Base::SeeAlike(0, rows - 1, low, high, j0);
    // Where rows see different values, numbers: whether a hidden one is NaN must not decide how the others are rounded.
    if (!same) grouped = false;
    if (Unpacks() && !grouped) UnpackBlock(a, s, a.coded_v, head, j0, block.keys.end, unpacked, values);
    const bool select = !same && !grouped && !Finite(low, high), plain = a.rules.Plain();
    for (int64_t r = 0; r < rows; r++) {
      T* row = p + r * kKeyBlock;
      const KeyRange local = Local(r, j0);
      if constexpr (kIsCode<K>) Scale(r, key_scales);
      if (!plain || local.first > 0 || local.end < kKeyBlock || HasGap(r, j0)) Base::Finish(row, r, local, j0);
      uint64_t visible = select ? VisibleBits(row) : 0;
      SoftmaxRow<T>(row, m + r, sum + r * Width<T>, alpha + r);
      if (drops) DropRow(a.rules, Base::At(r), row, local.first, local.end, j0, &visible);
      if constexpr (kIsCode<K>) Scale(r, value_scales);
      if (select) AccumulateSelected(r, visible);
    }
    if (select) return;
    if (grouped) return GroupedValues(j0, low, high);
    first = !Unpacks();
    Groups([&](auto n, int64_t r) {
      AccumulateRows<decltype(n)::value>(r, low, high, first);
      first = false;
    });
  }
  // HEED_PAGES_INT4 without numbers in memory: attention-groups-inl.h.

  /// Whether the block at j0 is read that way: all its pages are sealed.
  bool Grouped(int64_t j0) const {
    if (!Unpacks() || !a.by_groups) return false;
    bool sealed = true;
    ForEachPage(a, s, j0, BlockKeys(j0), [&](int64_t page, int64_t, int64_t, int64_t) { sealed = sealed && page < a.coded_k.codes->shape[0]; });
    return sealed;
  }
  int64_t BlockKeys(int64_t j0) const { return block.keys.end - j0 < kKeyBlock ? block.keys.end - j0 : kKeyBlock; }
  HalfBlock HalfOf(const CodedPages<T>& of, int64_t token, int64_t of_head) const {
    return HalfBlockAt(of, s.pages[token / a.page_size * a.page_step], of_head, token % a.page_size);
  }
  /// Lists what the block there will read.
  void LookAhead(const DecodePlace& there) {
    const int64_t j0 = there.j0, of_head = block.head + there.head;
    ahead.next = ahead.count = 0;
    if (j0 >= block.keys.end || !Grouped(j0)) return;
    for (int64_t from = 0; from < BlockKeys(j0); from += kCodeGroup) ahead.Add(HalfOf(a.coded_k, j0 + from, of_head), a.coded_k);
    for (int64_t from = 0; from < BlockKeys(j0); from += kCodeGroup) ahead.Add(HalfOf(a.coded_v, j0 + from, of_head), a.coded_v);
  }
  /// Dots of the keys [0, high) of the block, half a block at a time.
  void GroupedDots(int64_t j0, int64_t high) {
    if constexpr (kGroups) {
      const int64_t pitch = RoundUp(a.D, kCodeGroup);
      float* scaled = unpacked + UnpackedRows(a);  // [padded][pitch]
      uint32_t* words = reinterpret_cast<uint32_t*>(scaled + UnpackedRows(a));
      for (int64_t from = 0; from < high; from += kCodeGroup) {
        const HalfBlock keys_at = HalfOf(a.coded_k, j0 + from, head);
        TransposeWords(keys_at, CodeWords(a.D), words);
        Groups([&](auto n, int64_t r) {
          constexpr int R = decltype(n)::value;
          float base[R];
          ScaleQueries<R>(q + r * D, D, keys_at, a.D, scaled, pitch, base);
          DotWords<R>(scaled, pitch, base, words, p + r * kKeyBlock + from, kKeyBlock, ahead);
        });
      }
    }
  }
  /// Accumulates the values of the keys [low, high) of the block, some groups of channels at a time.
  void GroupedValues(int64_t j0, int64_t low, int64_t high) {
    if constexpr (kGroups) {
      constexpr int64_t at_once = kRegisters == 32 ? 2 : 1, wide = at_once * kCodeGroup;
      const int64_t halves = Divide(high, kCodeGroup);
      const HalfBlock half[2] = {HalfOf(a.coded_v, j0, head), HalfOf(a.coded_v, j0 + (halves - 1) * kCodeGroup, head)};
      for (int64_t c = 0; c < a.Dv; c += wide) {
        Groups([&](auto n, int64_t r) {
          if (c + wide <= a.Dv) AddGroups<decltype(n)::value, at_once>(half, r, c, low, high);
          else
            for (int64_t g = c; g < a.Dv; g += kCodeGroup) AddGroups<decltype(n)::value, 1>(half, r, g, low, high);
        });
      }
    }
  }
  /// Channels [c, c + 32 N) of R rows.
  template <int R, int N> void AddGroups(const HalfBlock (&half)[2], int64_t r, int64_t c, int64_t low, int64_t high) {
    float weights[N][R][kKeyBlock], offset[N][R], room[2][kKeyBlock];
    const int64_t halves = Divide(high, kCodeGroup);
    for (int64_t g = 0; g < N; g++) {
      const int64_t s_at = (c / kCodeGroup + g) * a.coded_v.scales->strides[2], z_at = (c / kCodeGroup + g) * a.coded_v.zeros->strides[2];
      const float *scales[2] = {half[0].scales + s_at, half[1].scales + s_at}, *zeros[2] = {half[0].zeros + z_at, half[1].zeros + z_at};
      if (low > 0 || high < halves * kCodeGroup) {
        memset(room, 0, sizeof room);
        for (int64_t j = low; j < high; j++) {
          room[0][j] = scales[j / kCodeGroup][j % kCodeGroup];
          room[1][j] = zeros[j / kCodeGroup][j % kCodeGroup];
        }
        for (int64_t h = 0; h < 2; h++) scales[h] = room[0] + h * kCodeGroup, zeros[h] = room[1] + h * kCodeGroup;
      }
      WeighGroup<R>(p + r * kKeyBlock, kKeyBlock, scales, zeros, halves, weights[g], offset[g]);
    }
    float* to = out + r * Dv + c;
    for (int64_t o = 0; o < 16 && c + o < a.Dv; o += Width<float>) {
      const int64_t from = c / 2 + o;
      if (c + o + 16 < a.Dv) AddCodes<R, N, 2>(half, from, low, high, weights, offset, alpha + r, to + o, Dv, ahead);
      else AddCodes<R, N, 1>(half, from, low, high, weights, offset, alpha + r, to + o, Dv, ahead);
    }
  }
  /// Asks for every eighth row of the next block, 4 KiB apart in float32 rows of 128: its addresses are then translated when the rest of the
  /// rows is asked for. Float32 took 1.2 times as long without (32,768 keys, contiguous and in pages of 64).
  void TouchNext() const {
    for (int64_t j = 0; j < kKeyBlock; j += 8) {
      __builtin_prefetch(next_keys[j], 0, 2);
      __builtin_prefetch(next_values[j], 0, 2);
    }
  }
  void FindNext(const DecodePlace& at) {
    FindRows(a, s, a.k, a.k_strides, block.head + at.head, at.j0, block.keys.end, next_keys);
    FindRows(a, s, a.v, a.v_strides, block.head + at.head, at.j0, block.keys.end, next_values);
  }
  /// Makes the next rows those of the block here, and asks for those of the block after it.
  void Advance(int64_t j0, const DecodePlace& after) {
    const char **k = keys, **v = values;
    keys = next_keys, values = next_values;
    next_keys = k, next_values = v;
    if constexpr (kIsCode<K>) {
      FindScales(a, s, *a.coded_k.scales, head, j0, block.keys.end, key_scales);
      FindScales(a, s, *a.coded_v.scales, head, j0, block.keys.end, value_scales);
    }
    more = after.j0 < block.keys.end;
    if (!more) return;
    FindNext(after);
    TouchNext();
  }
  /// Partial results of the next key head stand `partial_step` further.
  void Run(T* partial, int64_t partial_step) {
    for (int64_t h = 0; h < block.heads; h++) {
      Turn(h);
      Base::Start(padded, D, partial == nullptr);
    }
    DecodePlace at = {block.keys.Begin(), 0};
    if (!Unpacks() && at.j0 < block.keys.end) FindNext(at);
    for (DecodePlace after; at.j0 < block.keys.end; at = after) {
      after = After(at);
      Turn(at.head);
      if (!Unpacks()) Advance(at.j0, after);
      Block(at.j0, after);
    }
    for (int64_t h = 0; h < block.heads; h++) {
      Turn(h);
      Base::End(partial == nullptr ? nullptr : partial + h * partial_step);
    }
  }
};
template <class T, class K>
HEED_NOINLINE void Decode(const Problem<T>& a, const Sequence& s, const RowBlock& block, char* scratch, T* partial, int64_t partial_step) {
  DecodeTask<T, K> task(a, s, block, scratch);
  task.Run(partial, partial_step);
}
}  // namespace heed::HEED_ISA
