// Attention over blocks of query rows (FlashAttention-2: Dao 2023, arXiv:2307.08691). Keys are packed transposed, values by column
// panels, both in blocks of kKeyBlock keys, so that both products run on the register tile of tile-inl.h with unit strides:
//   packed block = [kKeyBlock / kTileCols] panels of K [D][kTileCols], then per kTileCols columns a panel of V [kKeyBlock][columns].
// A task is one key head and up to kRowBlock rows. Per block of keys: scores of all rows tile by tile, each followed by its softmax;
// then the product with V, the rescale folded into loading the accumulators. Only vectors of keys that some row of a tile sees are
// computed, and only those keys are multiplied with V.
#pragma once
#include "attention-problem-inl.h"
#include "tile-inl.h"

namespace heed::HEED_ISA {
// 192 rows x 128 numbers of q and out are 192 KiB: with a packed block (64 KiB) and the scores (48 KiB) they fit an L2 of 512 KiB.
constexpr int64_t kRowBlock = 192;

/// Queries of a full row block: as many as give at most kRowBlock rows, at least one.
HEED_INLINE int64_t BlockQueries(int64_t G) { return kRowBlock / G < 1 ? 1 : kRowBlock / G; }
/// Numbers in a packed block.
template <class T> HEED_INLINE int64_t PackedSize(int64_t D, int64_t Dv) { return kKeyBlock * (D + Padded<T>(Dv)); }

template <class T, class K> HEED_NOINLINE void PackKeys(T* to, const char* const* rows, int64_t step, int64_t D) {
  constexpr int64_t w = Width<T>, columns = kTileCols<T>;
  for (int64_t j = 0; j < kKeyBlock; j += w) {
    T* panel = to + j / columns * columns * D + j % columns;
    int64_t d = 0;
    for (; step == sizeof(K) && d + w <= D; d += w) {
      Vec<T> r[w];
      HEED_UNROLL for (int64_t i = 0; i < w; i++) r[i] = LoadAs(reinterpret_cast<const K*>(rows[j + i]) + d);
      Transpose<T>(r);
      HEED_UNROLL for (int64_t i = 0; i < w; i++) Store<T>(panel + (d + i) * columns, r[i]);
    }
    for (; d < D; d++)
      for (int64_t i = 0; i < w; i++) panel[d * columns + i] = ToFloat(*reinterpret_cast<const K*>(rows[j + i] + d * step));
  }
}
/// Returns whether the rows are finite; hidden values may then be multiplied by a probability of 0.
template <class T, class K>
HEED_NOINLINE bool PackValues(T* to, const char* const* rows, int64_t step, int64_t Dv) {
  constexpr int64_t w = Width<T>, columns = kTileCols<T>;
  const int64_t padded = Padded<T>(Dv);
  Vec<T> wrong = {};  // x - x is 0, or NaN for NaN and the infinities
  for (int64_t c = 0; c < padded; c += columns, to += kKeyBlock * columns) {
    const int64_t m = padded - c < columns ? padded - c : columns;
    for (int64_t j = 0; j < kKeyBlock; j++) {
      const char* row = rows[j];
      for (int64_t d = c; d < c + m; d += w) {
        Vec<T> x = {};
        if (step == sizeof(K) && d + w <= Dv) {
          x = LoadAs(reinterpret_cast<const K*>(row) + d);
        } else {
          T lanes[w] = {};
          for (int64_t i = 0; i < w && d + i < Dv; i++) lanes[i] = ToFloat(*reinterpret_cast<const K*>(row + (d + i) * step));
          x = Load<T>(lanes);
        }
        wrong += x - x;
        Store<T>(to + j * m + d - c, x);
      }
    }
  }
  return HorizontalSum<T>(wrong) == 0;
}

/// p[6][vectors] = q[6][D] @ panel[D][...]
template <class T, int Vecs> HEED_NOINLINE void ScoreTile(const T* q, int64_t D, const T* panel, T* p) {
  Tile<T, kTileRows, Vecs> c;
  Clear(c);
  MultiplyAdd(c, q, D, 1, panel, kTileCols<T>, D);
  HEED_UNROLL for (int i = 0; i < kTileRows; i++)
    HEED_UNROLL for (int j = 0; j < Vecs; j++) Store<T>(p + i * kKeyBlock + j * Width<T>, c.at[i][j]);
}
/// out[6][vectors] = alpha * out + p[6][depth] @ v[depth][vectors]
template <class T, int Vecs>
HEED_NOINLINE void ValueTile(const T* p, const T* v, int64_t v_step, T* out, int64_t out_row, const T* alpha, int64_t depth) {
  Tile<T, kTileRows, Vecs> c;
  HEED_UNROLL for (int i = 0; i < kTileRows; i++)
    HEED_UNROLL for (int j = 0; j < Vecs; j++) c.at[i][j] = Load(out + i * out_row + j * Width<T>) * Set1(alpha[i]);
  MultiplyAdd(c, p, kKeyBlock, 1, v, v_step, depth);
  HEED_UNROLL for (int i = 0; i < kTileRows; i++)
    HEED_UNROLL for (int j = 0; j < Vecs; j++) Store<T>(out + i * out_row + j * Width<T>, c.at[i][j]);
}
/// f(Count<n>{}) for n in 1 .. kTileVecs.
template <class F> HEED_INLINE void WithVecs(int64_t n, const F& f) {
  static_assert(kTileVecs <= 4, "");
  if (n >= kTileVecs) return f(Count<kTileVecs>{});
  if constexpr (kTileVecs > 2) {
    if (n == 3) return f(Count<3>{});
    if (n == 2) return f(Count<2>{});
  }
  f(Count<1>{});
}

/// One task. Its rows are padded to whole tiles.
template <class T> struct PrefillTask : TaskRows<T> {
  using Base = TaskRows<T>;
  using Base::a, Base::s, Base::block, Base::rows, Base::q, Base::p, Base::out, Base::sum, Base::m, Base::alpha, Base::range, Base::Local,
      Base::Union;
  int64_t tiled;  // rows rounded up to kTileRows
  T* packed;
  uint64_t* bits;  // per row: the keys of this block that it sees and that are not dropped; kept only for a block whose values are not finite

  /// Bytes of scratch for `rows` rows; `own_block`: with room for a packed block.
  static int64_t Bytes(int64_t rows, int64_t D, int64_t Dv, bool own_block) {
    const int64_t tiled = RoundUp(rows, kTileRows);
    const int64_t numbers = RoundUp(tiled * D, 16) + tiled * (kKeyBlock + Padded<T>(Dv) + Width<T>) + 2 * RoundUp(tiled, 16) +
                            (own_block ? PackedSize<T>(D, Dv) : 0);
    return numbers * static_cast<int64_t>(sizeof(T)) + RoundUp(tiled, 8) * static_cast<int64_t>(8 + sizeof(KeyRange));
  }
  PrefillTask(const Problem<T>& problem, const Sequence& sequence, const RowBlock& of, char* scratch)
      : Base(problem, sequence, of), tiled(RoundUp(Base::rows, kTileRows)) {
    p = reinterpret_cast<T*>(scratch);
    out = p + tiled * kKeyBlock;
    sum = out + tiled * Padded<T>(a.Dv);
    q = sum + tiled * Width<T>;
    m = q + RoundUp(tiled * a.D, 16);
    alpha = m + RoundUp(tiled, 16);
    bits = reinterpret_cast<uint64_t*>(alpha + RoundUp(tiled, 16));
    range = reinterpret_cast<KeyRange*>(bits + RoundUp(tiled, 8));
    packed = reinterpret_cast<T*>(range + RoundUp(tiled, 8));
  }
  void Block(int64_t j0, const T* keys, bool finite) {
    const T* values = keys + kKeyBlock * a.D;
    int64_t first_tile = tiled, end_tile = 0;
    for (int64_t r = 0; r < tiled; r += kTileRows) {
      const KeyRange seen = Union(r, r + kTileRows - 1, j0);
      if (seen.first >= seen.end) continue;
      if (first_tile == tiled) first_tile = r;
      end_tile = r + kTileRows;
      Scores(r, j0, keys, seen.first, seen.end, finite);
    }
    if (!finite) return SelectedValues(first_tile, end_tile, values);
    const int64_t Dv = Padded<T>(a.Dv);
    for (int64_t c = 0; c < Dv; c += kTileCols<T>, values += kKeyBlock * kTileCols<T>) {
      const int64_t columns = Dv - c < kTileCols<T> ? Dv - c : kTileCols<T>;
      WithVecs(columns / Width<T>, [&](auto n) {
        for (int64_t r = first_tile; r < end_tile; r += kTileRows) {
          const KeyRange seen = Union(r, r + kTileRows - 1, j0);
          const int64_t low = seen.first, high = seen.end;
          if (low < high)
            ValueTile<T, decltype(n)::value>(p + r * kKeyBlock + low, values + low * columns, columns, out + r * Dv + c, Dv,
                                             alpha + r, high - low);
        }
      });
    }
  }
  /// Logits and softmax of the tile at row r, of which keys [low, high) of the block are visible to some row.
  void Scores(int64_t r, int64_t j0, const T* keys, int64_t low, int64_t high, bool finite) {
    const int64_t end = (high + Width<T> - 1) / Width<T>;
    for (int64_t vec = low / Width<T>; vec < end;) {
      const int64_t panel = vec / kTileVecs, in_panel = vec % kTileVecs;
      const int64_t left = end - vec < kTileVecs - in_panel ? end - vec : kTileVecs - in_panel;
      const T* at = keys + panel * kTileCols<T> * a.D + in_panel * Width<T>;
      WithVecs(left, [&](auto n) { ScoreTile<T, decltype(n)::value>(q + r * a.D, a.D, at, p + r * kKeyBlock + vec * Width<T>); });
      vec += left;
    }
    const bool plain = a.rules.Plain(), whole = Base::SeeAlike(r, r + kTileRows - 1, 0, kKeyBlock, j0);
    for (int64_t i = r; i < r + kTileRows; i++) {
      T* row = p + i * kKeyBlock;
      if (!plain || !whole) {
        const KeyRange local = Local(i, j0);
        if (plain) Base::Hide(row, i, local, j0);
        else Base::Finish(row, i, local, j0);
      }
      if (!finite) bits[i] = VisibleBits(row);
      SoftmaxRow<T>(row, m + i, sum + i * Width<T>, alpha + i);
      if (a.rules.dropout.On()) {
        const KeyRange local = Local(i, j0);
        DropRow(a.rules, Base::At(i), row, local.first, local.end, j0, finite ? nullptr : bits + i);
      }
    }
  }
  /// The product with a block of V that holds NaN or Inf: only what a row sees is touched.
  void SelectedValues(int64_t first, int64_t end, const T* values) {
    const int64_t Dv = Padded<T>(a.Dv);
    for (int64_t r = first; r < end; r++)
      for (int64_t c = 0; c < Dv; c += kTileCols<T>) {
        const int64_t columns = Dv - c < kTileCols<T> ? Dv - c : kTileCols<T>;
        T* to = out + r * Dv + c;
        for (int64_t d = 0; d < columns; d++) to[d] *= alpha[r];
        for (uint64_t left = bits[r]; left != 0; left &= left - 1) {
          const int64_t j = __builtin_ctzll(left);
          for (int64_t d = 0; d < columns; d++) to[d] += p[r * kKeyBlock + j] * values[c * kKeyBlock + j * columns + d];
        }
      }
  }
};

/// Packs keys j0 .. j0 + kKeyBlock - 1 (those before `end`) of a head, by way of `unpacked` (UnpackedSize) if they are quantised;
/// returns whether the values are finite.
template <class T>
HEED_INLINE bool PackBlock(const Problem<T>& a, const Sequence& s, int64_t head, int64_t j0, int64_t end, T* to, T* unpacked) {
  const char* rows[kKeyBlock];
  if (a.unpack != nullptr) {
    UnpackBlock(a, s, a.coded_k, head, j0, end, unpacked, rows);
    a.pack_keys(to, rows, sizeof(T), a.D);
    UnpackBlock(a, s, a.coded_v, head, j0, end, unpacked, rows);
    return a.pack_values(to + kKeyBlock * a.D, rows, sizeof(T), a.Dv);
  }
  FindRows(a, s, a.k, a.k_strides, head, j0, end, rows);
  a.pack_keys(to, rows, a.k_strides.step, a.D);
  FindRows(a, s, a.v, a.v_strides, head, j0, end, rows);
  return a.pack_values(to + kKeyBlock * a.D, rows, a.v_strides.step, a.Dv);
}
/// Runs a task. `packed` holds the blocks of packed_keys, `finite` a flag for each; NULL: the task packs for itself.
template <class T>
HEED_NOINLINE void Prefill(const Problem<T>& a, const Sequence& s, const RowBlock& block, const T* packed, const uint8_t* finite,
                           const KeySpan& packed_keys, char* scratch, T* partial) {
  PrefillTask<T> task(a, s, block, scratch);
  task.Start(task.tiled, a.D, partial == nullptr);
  const int64_t size = PackedSize<T>(a.D, a.Dv);
  for (int64_t j0 = block.keys.Begin(); j0 < block.keys.end; j0 = block.keys.After(j0)) {
    if (packed != nullptr) {
      const int64_t n = packed_keys.IndexOf(j0);
      task.Block(j0, packed + n * size, finite[n] != 0);
    } else {
      const bool clean = PackBlock(a, s, block.head, j0, block.keys.end, task.packed, task.packed + size);
      task.Block(j0, task.packed, clean);
    }
  }
  task.End(partial);
}
}  // namespace heed::HEED_ISA
