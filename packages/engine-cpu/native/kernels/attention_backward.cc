// Backward pass of scaled dot-product attention in O(S) memory. dq, dk, dv and d_sinks are written with `=`, d_mask is added to.
//   1. pack:   q and d_out of some key heads as rows, their log-sum-exp and delta
//   2. keys:   a task per key head and every C-th key block: dk and dv of its blocks, and its own partial dq
//   3. reduce: dq = scale * the C partial sums, in ascending order
// C depends on shapes alone and every sum has one order, so neither the number of threads nor their timing changes a bit.
#include "attention_backward-inl.h"

#include "../runtime/kernel_table.h"
#include "../runtime/parallel.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"

namespace heed::HEED_ISA {
namespace {
/// Tasks of step 2 that are wanted, and bytes of partial dq that may be spent on them.
constexpr int64_t kTasksWanted = 32, kPartialBytes = int64_t{48} << 20;
/// Bytes of step 1 and 2 for the key heads in flight, per thread (of two at least).
constexpr int64_t kFlightBytes = int64_t{32} << 20;

HEED_INLINE int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }
HEED_INLINE int64_t Larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class S> struct Backward {
  using T = Acc<S>;
  const heed_attention_backward& p;
  BackwardShape s;
  ScoreRules<T> rules;
  int64_t splits;                // C
  int64_t padded_rows;           // rows of a key head with room for an odd tile

  // Scratch of the key heads in flight, and of the whole call.
  T *rows_q, *rows_o, *partial, *lse, *delta;
  uint8_t* finite;               // per key head in flight and row block

  /// Element [batch, 0, head, 0] of a [B, S, H, D] tensor, as the matrix of sequence by component.
  static Matrix<S> View(const heed_tensor& t, int64_t batch, int64_t head) {
    return {static_cast<S*>(t.data) + batch * t.strides[0] + head * t.strides[2], t.strides[1], t.strides[3]};
  }
  static Matrix<const S> Read(const heed_tensor& t, int64_t batch, int64_t head) {
    const Matrix<S> m = View(t, batch, head);
    return {m.data, m.row, m.col};
  }

  static bool IsZero(const T* row, int64_t n) {
    bool zero = true;
    for (int64_t i = 0; i < n; i++) zero &= row[i] == 0;
    return zero;
  }
  /// Packs rows to.begin .. + count of a key head; temporary holds one row of `out`. Returns whether q and d_out are finite.
  bool PackRows(int64_t batch, int64_t key_head, const QueryRows<T>& to, T* temporary) const {
    const int64_t first = to.begin / s.group, count = to.count / s.group;
    bool finite_rows = true;
    for (int64_t g = 0; g < s.group; g++) {
      const int64_t head = key_head * s.group + g;
      Pack<S>(Read(p.q, batch, head).At(first, 0), count, s.d, to.q + g * s.q_row, s.group * s.q_row);
      Pack<S>(Read(p.d_out, batch, head).At(first, 0), count, s.dv, to.d_out + g * s.o_row, s.group * s.o_row);
      const Matrix<const S> out = Read(p.out, batch, head);
      const T* lse_in = static_cast<const T*>(p.lse.data) + batch * p.lse.strides[0] + head * p.lse.strides[1];
      for (int64_t i = 0; i < count; i++) {
        const int64_t r = i * s.group + g;
        finite_rows &= ScaleRow<T>(to.q + r * s.q_row, s.d, rules.query_factor);
        finite_rows &= ScaleRow<T>(to.d_out + r * s.o_row, s.dv, T{1});
        Pack<S>(out.At(first + i, 0), 1, s.dv, temporary, 0);
        to.delta[r] = DotRow<T>(to.d_out + r * s.o_row, temporary, s.dv);
        // A row that sees nothing has an out of 0 and no gradient, whatever its d_out: 0 * NaN would reach d_sinks.
        if (!(to.delta[r] - to.delta[r] == 0) && IsZero(temporary, s.dv)) to.delta[r] = 0;
        to.lse[r] = lse_in[(first + i) * p.lse.strides[2]] * static_cast<T>(kLog2E);
      }
    }
    return finite_rows;
  }
  QueryRows<T> RowsOf(int64_t in_flight, int64_t item, int64_t block) const {
    const int64_t begin = block * s.block_rows, base = in_flight * padded_rows + begin;
    return {rows_q + base * s.q_row, rows_o + base * s.o_row, lse + item * s.rows + begin, delta + item * s.rows + begin, begin,
            Smaller(s.block_rows, s.rows - begin)};
  }
  int64_t PackBytes() const { return sizeof(T) * (s.o_row + s.q_row); }

  /// Bytes of a KeyRows and of its sums.
  int64_t KeyBytes() const {
    return sizeof(T) * (kKeyBlock + kTileCols<T>) * (s.d + s.dv) + sizeof(T) * (kKeyBlock + 2) * (2 * s.q_row + s.o_row) + 128;
  }
  KeyRows<T> PackKeys(int64_t batch, int64_t key_head, int64_t block, T* memory) const {
    KeyRows<T> k;
    k.begin = block * kKeyBlock;
    k.count = Larger(0, Smaller(kKeyBlock, rules.Length(batch) - k.begin));
    k.k = memory;
    k.k_panels = k.k + (kKeyBlock + 2) * s.q_row;
    k.v_panels = k.k_panels + (kKeyBlock + kTileCols<T>) * s.d;
    const Matrix<const S> key = Read(p.k, batch, key_head).At(k.begin, 0), value = Read(p.v, batch, key_head).At(k.begin, 0);
    Pack<S>(key, k.count, s.d, k.k, s.q_row);
    k.finite = true;
    for (int64_t j = 0; j < k.count; j++) k.finite &= ScaleRow<T>(k.k + j * s.q_row, s.d, T{1});
    for (int64_t j = 0; j < k.count; j += kTileCols<T>) {
      const int64_t n = Smaller(kTileCols<T>, k.count - j);
      Pack<S>({key.data + j * key.row, key.col, key.row}, s.d, n, k.k_panels + j * s.d, kTileCols<T>);
      Pack<S>({value.data + j * value.row, value.col, value.row}, s.dv, n, k.v_panels + j * s.dv, kTileCols<T>);
    }
    return k;
  }
  int64_t ScoreBytes() const {
    const int64_t rows = s.block_rows + kTileRows;
    return sizeof(T) * ScoreBlock<T>::kRow * (2 * rows + 1) + rows * kKeyBlock + 2 * sizeof(int32_t) * rows + 64;
  }
  ScoreBlock<T> Scores(T* memory) const {
    const int64_t rows = s.block_rows + kTileRows;
    ScoreBlock<T> b;
    b.p = memory;
    b.ds = b.p + rows * ScoreBlock<T>::kRow;
    b.slope = b.ds + rows * ScoreBlock<T>::kRow;
    b.first = reinterpret_cast<int32_t*>(b.slope + ScoreBlock<T>::kRow);
    b.end = b.first + rows;
    b.visible = reinterpret_cast<uint8_t*>(b.end + rows);
    return b;
  }

  /// Step 2: key blocks split, split + C, ... of one key head.
  bool Keys(int64_t in_flight, int64_t item, int64_t split) const {
    const int64_t batch = item / s.key_heads, key_head = item % s.key_heads;
    T* dq = partial + (in_flight * splits + split) * padded_rows * s.q_row;
    T* memory = static_cast<T*>(ThreadScratch(KeyBytes() + ScoreBytes() + s.row_blocks));
    if (memory == nullptr) return false;
    // A row block of dq is cleared when it is first added to, while it goes through the cache anyway.
    uint8_t* cleared = reinterpret_cast<uint8_t*>(memory) + KeyBytes() + ScoreBytes();
    memset(cleared, 0, s.row_blocks);
    const auto clear = [&](const QueryRows<T>& q, int64_t i) {
      if (!cleared[i]) memset(dq + q.begin * s.q_row, 0, sizeof(T) * q.count * s.q_row);
      cleared[i] = 1;
    };
    const ScoreBlock<T> block = Scores(memory + KeyBytes() / sizeof(T));
    T* dk = memory + (kKeyBlock + 2) * s.q_row + (kKeyBlock + kTileCols<T>) * (s.d + s.dv);
    T* dv = dk + (kKeyBlock + 2) * s.q_row;
    const int64_t length = rules.Length(batch), offset = rules.Offset(batch, length);
    for (int64_t b = split; b < s.key_blocks; b += splits) {
      const KeyRows<T> k = PackKeys(batch, key_head, b, memory);
      memset(dk, 0, sizeof(T) * (kKeyBlock + 2) * (s.q_row + s.o_row));
      for (int64_t i = 0; i < s.row_blocks && k.count > 0; i++) {
        const QueryRows<T> q = RowsOf(in_flight, item, i);
        const int64_t first = q.begin / s.group, last = (q.begin + q.count - 1) / s.group;
        const KeyRange low = rules.Visible(offset + first, length), high = rules.Visible(offset + last, length);
        if (high.end <= k.begin || (low.first >= k.begin + k.count && rules.SinkTokens() <= k.begin)) continue;
        const bool careful = !k.finite || !finite[in_flight * s.row_blocks + i];
        ComputeScores(s, rules, batch, key_head, q, k, block, careful, false);
        clear(q, i);
        T* to = dq + q.begin * s.q_row;
        if (careful) {
          MultiplyVisible<T>(s, q, k, block, {dk, dv, to});
          continue;
        }
        MultiplyDown<T>(block.p, block, q.count, k.count, q.d_out, s.o_row, dv, s.dv);
        MultiplyDown<T>(block.ds, block, q.count, k.count, q.q, s.q_row, dk, s.d);
        MultiplyAcross<T>(block, q.count, k.count, k.k, s.q_row, to, s.d);
      }
      // dS is taken by log2(e) * s or, capped, by cap * tanh: d(scale q.k) = ln 2 or softcap times d(query_factor q.k).
      const T factor = static_cast<T>(rules.cap != 0 ? p.scores.softcap : kLn2);
      const int64_t count = Smaller(kKeyBlock, s.keys - k.begin);
      StoreSums<S>(dk, s.q_row, count, s.d, {factor, T{0}}, nullptr, View(p.dk, batch, key_head).At(k.begin, 0));
      StoreSums<S>(dv, s.o_row, count, s.dv, {T{1}, T{0}}, nullptr, View(p.dv, batch, key_head).At(k.begin, 0));
    }
    for (int64_t i = 0; i < s.row_blocks; i++) clear(RowsOf(in_flight, item, i), i);
    return true;
  }
  /// Step 3 for one row block.
  void Reduce(int64_t in_flight, int64_t item, int64_t block) const {
    const int64_t batch = item / s.key_heads, key_head = item % s.key_heads, begin = block * s.block_rows;
    const int64_t count = Smaller(s.block_rows, s.rows - begin), step = padded_rows * s.q_row;
    T* sum = partial + in_flight * splits * step + begin * s.q_row;
    for (int64_t c = 1; c < splits; c++) {
      const T* add = sum + c * step;
      for (int64_t x = 0; x < count * s.q_row; x += Width<T>) Store<T>(sum + x, Load<T>(sum + x) + Load<T>(add + x));
    }
    for (int64_t g = 0; g < s.group; g++)
      StoreSums<S>(sum + g * s.q_row, s.group * s.q_row, count / s.group, s.d, {static_cast<T>(p.scores.scale), T{0}}, nullptr,
                   View(p.dq, batch, key_head * s.group + g).At(begin / s.group, 0));
  }

  /// d_sinks[h] = - sum over batch and query of exp(sink - lse) * delta.
  void Sinks() const {
    T* to = static_cast<T*>(p.d_sinks.data);
    for (int64_t h = 0; h < s.heads; h++) {
      double sum = 0;
      const T sink = rules.Sink(h), nothing = static_cast<T>(-__builtin_inf());
      for (int64_t b = 0; b < s.batch; b++) {
        const int64_t base = (b * s.key_heads + h / s.group) * s.rows + h % s.group;
        for (int64_t i = 0; i < s.queries; i++) {
          const int64_t r = base + i * s.group;
          if (sink == nothing || lse[r] == nothing) continue;
          sum += static_cast<double>(Exp2<T>(Set1(sink - lse[r]))[0]) * static_cast<double>(delta[r]);
        }
      }
      to[h * p.d_sinks.strides[0]] = static_cast<T>(-sum);
    }
  }

  /// A pass of its own (scores are computed again): a task owns the elements of d_mask of one place along every axis that has a
  /// stride, and runs over the axes of stride 0 in order, so that sums do not depend on the partition.
  template <class M> bool MaskGradient() const {
    const heed_tensor& t = p.d_mask;
    const bool by_batch = t.strides[0] != 0, by_head = t.strides[1] != 0;
    const bool by_query = t.strides[2] != 0, by_key = t.strides[3] != 0;
    const int64_t heads = by_head ? s.key_heads : 1, rows = by_query ? s.row_blocks : 1, keys = by_key ? s.key_blocks : 1;
    bool failed = false;
    ParallelFor((by_batch ? s.batch : 1) * heads * rows * keys, [&](int64_t task, int) {
      const int64_t key = task % keys, row = task / keys % rows;
      const int64_t head = task / keys / rows % heads, batch = task / keys / rows / heads;
      // A place per row of the block (query and head of the group, each only if it has a stride) and key.
      const int64_t slots = (by_query ? s.block_queries : 1) * (by_head ? s.group : 1), wide = by_key ? kKeyBlock : 1;
      const int64_t packed = (s.block_rows + 2) * (s.q_row + s.o_row + 2) + s.o_row + s.q_row;
      const int64_t bytes = sizeof(double) * slots * wide + KeyBytes() + ScoreBytes() + sizeof(T) * packed;
      char* memory = static_cast<char*>(ThreadScratch(bytes));
      if (memory == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      double* sums = reinterpret_cast<double*>(memory);
      memset(sums, 0, sizeof(double) * slots * wide);
      T* k_memory = reinterpret_cast<T*>(memory + sizeof(double) * slots * wide);
      const ScoreBlock<T> block = Scores(k_memory + KeyBytes() / sizeof(T));
      QueryRows<T> q;
      q.q = k_memory + (KeyBytes() + ScoreBytes()) / sizeof(T);
      q.d_out = q.q + (s.block_rows + 2) * s.q_row;
      q.lse = q.d_out + (s.block_rows + 2) * s.o_row;
      q.delta = q.lse + s.block_rows + 2;
      T* temporary = q.delta + s.block_rows + 2;
      for (int64_t b = by_batch ? batch : 0; b < (by_batch ? batch + 1 : s.batch); b++)
        for (int64_t h = by_head ? head : 0; h < (by_head ? head + 1 : s.key_heads); h++)
          for (int64_t kb = by_key ? key : 0; kb < (by_key ? key + 1 : s.key_blocks); kb++) {
            const KeyRows<T> k = PackKeys(b, h, kb, k_memory);
            for (int64_t i = by_query ? row : 0; i < (by_query ? row + 1 : s.row_blocks); i++) {
              q.begin = i * s.block_rows;
              q.count = Smaller(s.block_rows, s.rows - q.begin);
              PackRows(b, h, q, temporary);
              ComputeScores(s, rules, b, h, q, k, block, false, true);
              for (int64_t r = 0; r < q.count; r++) {
                const int64_t query = by_query ? r / s.group : 0, g = by_head ? r % s.group : 0;
                double* to = sums + (query * (by_head ? s.group : 1) + g) * wide;
                const T* ds = block.ds + r * ScoreBlock<T>::kRow;
                for (int64_t j = 0; j < k.count; j++) to[by_key ? j : 0] += static_cast<double>(ds[j]);
              }
            }
          }
      M* out = static_cast<M*>(t.data) + batch * t.strides[0];
      for (int64_t slot = 0; slot < slots; slot++) {
        const int64_t g = by_head ? slot % s.group : 0, query = row * s.block_queries + (by_head ? slot / s.group : slot);
        if (by_query && query >= s.queries) break;
        for (int64_t j = 0; j < wide && (!by_key || key * kKeyBlock + j < s.keys); j++)
          out[(head * s.group + g) * t.strides[1] + query * t.strides[2] + (key * kKeyBlock + j) * t.strides[3]] +=
              static_cast<M>(sums[slot * wide + j]);
      }
    });
    return !failed;
  }

  int Run() {
    const int64_t items = s.batch * s.key_heads, head_bytes = sizeof(T) * padded_rows * s.q_row;
    splits = Smaller((kTasksWanted + items - 1) / Larger(items, 1), s.key_blocks / 4);
    splits = Larger(1, Smaller(splits, kPartialBytes / Larger(head_bytes, 1)));
    const int64_t each = splits * head_bytes + sizeof(T) * padded_rows * (s.q_row + s.o_row) + s.row_blocks;
    const int64_t flight = Larger(1, Smaller(items, kFlightBytes * Larger(2, Threads()) / each));
    char* memory = static_cast<char*>(SharedScratch(0, flight * each + 2 * sizeof(T) * items * s.rows + 256));
    if (memory == nullptr)
      return Fail(HEED_OUT_OF_MEMORY, "[attention_backward] no memory for %lld rows of queries", (long long)s.rows);
    rows_q = reinterpret_cast<T*>(memory);
    rows_o = rows_q + flight * padded_rows * s.q_row;
    partial = rows_o + flight * padded_rows * s.o_row;
    lse = partial + flight * splits * padded_rows * s.q_row;
    delta = lse + items * s.rows;
    finite = reinterpret_cast<uint8_t*>(delta + items * s.rows);
    bool failed = false;
    const auto check = [&](bool ok) {
      if (!ok) __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    };
    for (int64_t begin = 0; begin < items; begin += flight) {
      const int64_t count = Smaller(flight, items - begin);
      ParallelFor(count * s.row_blocks, [&](int64_t task, int) {
        const int64_t in_flight = task / s.row_blocks, item = begin + in_flight;
        T* temporary = static_cast<T*>(ThreadScratch(PackBytes()));
        check(temporary != nullptr);
        if (temporary == nullptr) return;
        finite[task] = PackRows(item / s.key_heads, item % s.key_heads, RowsOf(in_flight, item, task % s.row_blocks), temporary);
      });
      if (failed) break;
      ParallelFor(count * splits, [&](int64_t task, int) { check(Keys(task % count, begin + task % count, task / count)); });
      if (failed) break;
      ParallelFor(count * s.row_blocks, [&](int64_t task, int) {
        Reduce(task / s.row_blocks, begin + task / s.row_blocks, task % s.row_blocks);
      });
    }
    if (!failed && p.d_sinks.data != nullptr) Sinks();
    if (!failed && p.d_mask.data != nullptr) check(p.d_mask.dtype == HEED_FLOAT64 ? MaskGradient<double>() : MaskGradient<float>());
    return failed ? Fail(HEED_OUT_OF_MEMORY, "[attention_backward] no memory for a thread's blocks") : HEED_OK;
  }
};

template <class S> int RunBackward(const heed_attention_backward& p) {
  using T = Acc<S>;
  bool valid = true;
  const ScoreRules<T> rules = MakeScoreRules<T>(p.scores, p.q.shape[1], p.k.shape[1], &valid);
  Backward<S> b = {p, {}, rules, 1, 0, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  if (!valid)
    return Fail(HEED_UNSUPPORTED, "[attention_backward] no mask of dtype %d: use bool or a float", p.scores.mask.dtype);
  BackwardShape& s = b.s;
  s.batch = p.q.shape[0];
  s.queries = p.q.shape[1];
  s.keys = p.k.shape[1];
  s.heads = p.q.shape[2];
  s.key_heads = p.k.shape[2];
  s.group = s.key_heads > 0 ? s.heads / s.key_heads : 1;
  s.d = p.q.shape[3];
  s.dv = p.v.shape[3];
  s.q_row = RowLength<T>(s.d);
  s.o_row = RowLength<T>(s.dv);
  s.rows = s.queries * s.group;
  s.block_queries = Larger(1, kRowsWanted / Larger(s.group, 1));
  // An even number of rows: a tile of a block then never reaches into the next one.
  if (s.block_queries * s.group % 2 != 0) s.block_queries++;
  s.block_rows = s.block_queries * s.group;
  s.row_blocks = s.block_rows > 0 ? (s.rows + s.block_rows - 1) / s.block_rows : 0;
  s.key_blocks = (s.keys + kKeyBlock - 1) / kKeyBlock;
  b.padded_rows = s.rows + 2;
  return b.Run();
}
}  // namespace

int attention_backward(const heed_attention_backward& p) {
  const int status = DispatchFloat(p.q.dtype, 1, [&](auto tag) { return RunBackward<typename decltype(tag)::type>(p); });
  return status == 1 ? Fail(HEED_UNSUPPORTED, "[attention_backward] no kernel for dtype %d", p.q.dtype) : status;
}
}  // namespace heed::HEED_ISA
