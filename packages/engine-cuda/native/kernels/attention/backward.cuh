// Attention backward on mma.sync (FlashAttention-2: Dao 2023, arXiv:2307.08691, algorithm 2); backward_problem.cuh has the formulas.
//
// Two kernels of one form. A block owns a tile and walks over the other side's tiles that meet it: by keys it owns keys and values, walks
// over query rows and has dk and dv; by rows it owns q and dOut of query rows, walks over keys and has dq. Both recompute scores and dp as
// [own, other], whose fragments are then operands of the products that sum over the other side: nothing but operands goes through shared
// memory. That computes two of five products twice; in return nothing is added by atomics, which would give dq other bits each time, and
// no float32 dq is kept. A row is a query of one of the G heads that share keys (problem.cuh), so that dk and dv sum over the group.
//
// Copies are a tile ahead. A hidden pair is selected away; where pairs of a tile may be hidden, numbers of the other side that are not
// finite are cleared for the last products, and those of dOut added by hand to the keys that their rows see: 0 times NaN reaches nobody.
#pragma once
#include "backward_problem.cuh"
#include "fragments.cuh"

namespace heed {

// Exponents of both numbers of a word, and what carries a full one into the sign bits.
template <class T> struct FullExponent;
template <> struct FullExponent<bf16> { static constexpr uint32_t kMask = 0x7f807f80u, kCarry = 0x00800080u; };
template <> struct FullExponent<f16> { static constexpr uint32_t kMask = 0x7c007c00u, kCarry = 0x04000400u; };
template <class T>
DEVICE uint32_t not_finite(uint32_t pair) { return (pair & FullExponent<T>::kMask) + FullExponent<T>::kCarry & 0x80008000u; }

struct alignas(8) RowStatistics { float lse, delta; };  // the first two of a row's: lse in units of ln 2

// kSlices: blocks (block_z) that share the columns of the sums. kRich: softcap, ALiBi, masks, dropout and sink tokens are looked at,
// score by score.
template <class T, bool kByKeys, int kD, int kDv, int kTall, int kOther, int kWarps, int kSlices, bool kRich>
struct Backward {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kOwn = 16 * kTall * kWarps;
  static constexpr int kFrags = kOther / 8;                          // fragments of 8 of the other side
  static constexpr int kWide = kD / 8 / kSlices;                     // fragments of 8 columns of dk or dq
  static constexpr int kWideV = kByKeys ? kDv / 8 / kSlices : 1;     // of dv
  static_assert(kWarps <= 4 && kTall * kFrags * 4 <= 32, "marks of warps are four words, those of pairs one");

  static constexpr int kDBytes = Tile<kD>::kPitch, kDvBytes = Tile<kDv>::kPitch;
  static constexpr int kOwnBytes = kOwn * (kDBytes + kDvBytes), kOtherBytes = kOther * (kDBytes + kDvBytes);

  const heed_cuda_attention_backward& args;
  const heed_attention_backward& p;
  const heed_scores& rules;
  const Sequence& s;
  const int kv_head, own, d, dv;  // own: the first row, or key, of this block
  float scores[kTall][kFrags][4], gradients[kTall][kFrags][4];     // become weights and dRaw
  uint32_t weights_packed[kTall][kOther / 16][4], gradients_packed[kTall][kOther / 16][4];
  float sum[kTall][kWide][4], sum_v[kTall][kWideV][4];
  uint32_t kept;                 // a bit for each pair of this lane that dropout keeps

  DEVICE Backward(const heed_cuda_attention_backward& args, const Sequence& s, int kv_head, int own)
      : args(args), p(args.problem), rules(args.problem.scores), s(s), kv_head(kv_head), own(own), d(static_cast<int>(args.problem.q.shape[3])),
        dv(static_cast<int>(args.problem.v.shape[3])), kept(~0u) {}

  // q or k, and dOut or v.
  DEVICE Tile<kD> own_tile() const { return {shared_start()}; }
  DEVICE Tile<kDv> own_wide() const { return {shared_start() + kOwn * kDBytes}; }
  DEVICE Tile<kD> other_tile(int stage) const { return {shared_start() + kOwnBytes + stage * kOtherBytes}; }
  DEVICE Tile<kDv> other_wide(int stage) const { return {shared_start() + kOwnBytes + stage * kOtherBytes + kOther * kDBytes}; }
  // A word of each warp, in the padding of the first own row: whether it met a number that is not finite.
  DEVICE Shared<uint32_t> marks() const { return shared<uint32_t>(2 * kD, 4); }
  // Of a row of a tile, in the padding of its dOut.
  DEVICE static RowStatistics statistics_at(const Tile<kDv>& wide, int row) {
    return shared<RowStatistics>(wide.at(row, Tile<kDv>::kChunks) - shared_start(), 1)[0];
  }
  DEVICE int own_at(int t, int u) const { return own + (warp() * kTall + t) * 16 + u * 8 + lane() / 4; }
  DEVICE int sinks() const { return kRich ? sink_end(rules, s) : 0; }
  // Whether a key is one of a range, or a sink token before its end.
  DEVICE bool has_key(Range keys, int j) const { return kRich ? is_seen(j, keys, sinks()) : j >= keys.begin && j < keys.end; }
  DEVICE bool has_other(Range range, int i) const { return kByKeys ? i >= range.begin && i < range.end : has_key(range, i); }
  // The first tile of the walk over a range of the other side from tile `first` on.
  DEVICE int seen_from(int first, Range range) const { return kRich && !kByKeys ? skip_hidden(first, sinks(), range.begin / kOther * kOther) : first; }
  DEVICE static int column() { return lane() % 4 * 2; }

  DEVICE const unsigned char* statistics(int row) const {
    const int sequence = s.batch * static_cast<int>(p.k.shape[2]) + kv_head;
    return static_cast<const unsigned char*>(args.statistics) + 16 * (static_cast<int64_t>(sequence) * s.rows() + row);
  }
  // Columns of a row, by 8 lanes; from element `width` on zeros.
  template <int kWidth>
  DEVICE static void load_row(const Tile<kWidth>& tile, int row, const unsigned char* from, int width, bool there) {
    ROLLED for (int n = 0; n < (Tile<kWidth>::kChunks + 7) / 8; n++) {
      const int chunk = n * 8 + thread_x() % 8;
      const bool valid = there && chunk * 8 < width;
      if (Tile<kWidth>::kChunks % 8 == 0 || chunk < Tile<kWidth>::kChunks) copy_async_16(tile.at(row, chunk), from + (valid ? chunk * 16 : 0), valid);
    }
  }
  // Query rows, or keys, first .. + kCount - 1, of which those of `valid` are there; the others become zeros. 8 lanes to a row: where it
  // lies takes a division, and they have two or four rows of the other side each.
  template <bool kKeys, int kCount>
  DEVICE void load(int first, Range valid, const Tile<kD>& tile, const Tile<kDv>& wide) const {
    ROLLED for (int row = thread_x() / 8; row < kCount; row += kThreads / 8) {
      const int at = first + row;
      const bool there = kKeys ? has_key(valid, at) : at >= valid.begin && at < valid.end;
      load_row(tile, row, !there ? s.k : kKeys ? key_at(s, at) : bytes_of(p.q, row_element(p.q, s, at)), d, there);
      load_row(wide, row, !there ? s.k : kKeys ? value_at(s, at) : bytes_of(p.d_out, row_element(p.d_out, s, at)), dv, there);
      if (!kKeys && thread_x() % 8 == 0) copy_async_16(wide.at(row, Tile<kDv>::kChunks), there ? statistics(at) : s.k, there);
    }
  }
  DEVICE void load_own() const { load<kByKeys, kOwn>(own, {0, kByKeys ? s.length : s.rows()}, own_tile(), own_wide()); }
  DEVICE void load_other(int first, Range valid, int stage) const {
    load<!kByKeys, kOther>(first, valid, other_tile(stage), other_wide(stage));
  }
  DEVICE void start() {
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 4; e++) sum[t][n][e] = 0;
      UNROLL for (int n = 0; n < kWideV; n++) UNROLL for (int e = 0; e < 4; e++) sum_v[t][n][e] = 0;
    }
  }

  // c [own, other] = a b^T over the columns of two tiles, in two halves: fetched all at once they would not fit the registers.
  template <int kWidth>
  DEVICE void multiply_rows(float (&c)[kTall][kFrags][4], const Tile<kWidth>& a_tile, const Tile<kWidth>& b_tile) const {
    UNROLL for (int t = 0; t < kTall; t++) UNROLL for (int n = 0; n < kFrags; n++) UNROLL for (int e = 0; e < 4; e++) c[t][n][e] = 0;
    ROLLED for (int half = 0; half < 2; half++) UNROLL for (int n16 = 0; n16 < kWidth / 32; n16++) {
      const int k = half * (kWidth / 32) + n16;
      uint32_t a[kTall][4];
      UNROLL for (int t = 0; t < kTall; t++) load_a(a[t], a_tile, (warp() * kTall + t) * 16, k);
      UNROLL for (int n = 0; n < kFrags / 2; n++) {
        uint32_t b[4];
        load_b_rows(b, b_tile, n * 16, k);
        UNROLL for (int t = 0; t < kTall; t++) {
          mma_16x8x16<T>(c[t][2 * n], a[t], b[0], b[1]);
          mma_16x8x16<T>(c[t][2 * n + 1], a[t], b[2], b[3]);
        }
      }
    }
  }
  // c [own, columns of this slice] += a b over the other side.
  template <int kWidth, int kColumns>
  DEVICE void multiply_columns(float (&c)[kTall][kColumns][4], const uint32_t (&a)[kTall][kOther / 16][4], const Tile<kWidth>& b_tile) const {
    const int slice = kSlices == 1 ? 0 : block_z() * (kColumns / 2);
    UNROLL for (int k = 0; k < kOther / 16; k++) {
      UNROLL for (int n = 0; n < kColumns / 2; n++) {
        uint32_t b[4];
        load_b_columns(b, b_tile, k * 16, slice + n);
        UNROLL for (int t = 0; t < kTall; t++) {
          mma_16x8x16<T>(c[t][2 * n], a[t][k], b[0], b[1]);
          mma_16x8x16<T>(c[t][2 * n + 1], a[t][k], b[2], b[3]);
        }
      }
    }
  }
  DEVICE static void pack(uint32_t (&to)[kTall][kOther / 16][4], const float (&from)[kTall][kFrags][4]) {
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int k = 0; k < kOther / 16; k++) {
        UNROLL for (int w = 0; w < 4; w++) {
          const float* pair = from[t][2 * k + w / 2] + w % 2 * 2;
          to[t][k][w] = pack2<T>(pair[0], pair[1]);
        }
      }
    }
  }

  // What of the other side meets a row, or key, of this lane.
  DEVICE Range meets(int t, int u) const {
    const int at = own_at(t, u);
    if (kByKeys) return at < s.length ? rows_seeing(rules, s, sinks(), at, at) : Range{0, 0};
    return at < s.rows() ? visible_keys(rules, s, at / s.group) : Range{0, 0};
  }
  // Draws all pairs of this lane. A counter is for four keys, which four lanes have by keys and two by rows: they take turns and exchange
  // a bit for each key.
  DEVICE void draw(int first) {
    const int turn = kByKeys ? lane() / 4 % 4 : lane() % 2;
    uint32_t drawn = 0;
    ROLLED for (int i = 0; i < kTall * kFrags; i++) {
      const int mine_at = own_at(i / kFrags, kByKeys ? turn / 2 : turn), other = first + i % kFrags * 8 + column() + (kByKeys ? turn % 2 : 0);
      const int row = kByKeys ? other : mine_at, key = kByKeys ? mine_at : other;
      const DropoutWords words = dropout_words(rules.dropout_seed, key / 4, row / s.group, s.first_head + row % s.group, s.batch);
      UNROLL for (int w = 0; w < 4; w++) drawn |= static_cast<uint32_t>(words.at[w] >= rules.dropout_threshold) << (4 * i + w);
    }
    kept = 0;
    if constexpr (kByKeys) {
      UNROLL for (int n = 0; n < 4; n++) kept |= (shuffle(drawn, (lane() & ~12) | n << 2) >> turn & 0x11111111u) << n;
    } else {
      UNROLL for (int n = 0; n < 2; n++) kept |= (shuffle(drawn, (lane() & ~1) | n) >> 2 * turn & 0x33333333u) << 2 * n;
    }
  }
  // Softcap, ALiBi and mask of a visible pair: its score in units of ln 2, or -infinity; and the slope of the softcap.
  DEVICE float enrich(float product, int row, int key, float& slope) const {
    const float scale = static_cast<float>(rules.scale), cap = static_cast<float>(rules.softcap);
    const int token = row / s.group, head = s.first_head + row % s.group;
    float score = product * scale;
    if (cap > 0) {
      const float bent = tanhf(score / cap);
      score = cap * bent;
      slope = 1 - bent * bent;
    }
    if (rules.alibi_slopes.data)
      score -= static_cast<const float*>(rules.alibi_slopes.data)[head * rules.alibi_slopes.strides[0]] * fabsf(static_cast<float>(s.offset + token - key));
    if (rules.mask.data) {
      const float bias = mask_bias(rules.mask, mask_start(rules.mask, s.batch, head, token) + key * rules.mask.strides[3]);
      score = bias == -INFINITY ? bias : score + bias;
    }
    return score * kLog2E;
  }
  // Products become the weights that dv takes and the gradients of scale q.k.
  DEVICE void weigh(int first, bool all_seen, int stage) {
    const float scale = static_cast<float>(rules.scale) * kLog2E, factor = static_cast<float>(rules.dropout_factor);
    Range met[kTall][2];
    RowStatistics mine[kTall][2] = {};
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        met[t][u] = all_seen ? Range{0, INT32_MAX} : meets(t, u);
        if constexpr (!kByKeys) mine[t][u] = statistics_at(own_wide(), own_at(t, u) - own);
      }
    }
    UNROLL for (int n = 0; n < kFrags; n++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const int at = n * 8 + column() + e, other = first + at;
        const RowStatistics others = kByKeys ? statistics_at(other_wide(stage), at) : RowStatistics{0, 0};
        UNROLL for (int t = 0; t < kTall; t++) {
          UNROLL for (int u = 0; u < 2; u++) {
            const RowStatistics& row = kByKeys ? others : mine[t][u];
            bool seen = has_other(met[t][u], other);
            float &score = scores[t][n][2 * u + e], &gradient = gradients[t][n][2 * u + e], slope = 1;
            if constexpr (kRich) {
              score = seen ? enrich(score, kByKeys ? other : own_at(t, u), kByKeys ? own_at(t, u) : other, slope) : -INFINITY;
              seen = score != -INFINITY;
            } else {
              score *= scale;
            }
            const float weight = seen ? exp2_approx(score - row.lse) : 0.0f;
            score = weight;
            if (kRich && factor != 0) {
              const bool keeps = kept >> ((t * kFrags + n) * 4 + 2 * u + e) & 1;
              score = keeps ? weight * factor : 0.0f;
              gradient = keeps ? gradient * factor : 0.0f;
            }
            gradient = seen ? weight * (gradient - row.delta) * slope : 0.0f;
          }
        }
      }
    }
  }

  // Calls visit(words of 16 bytes) for what the last products take of the other side.
  template <class Visit>
  DEVICE void visit_other(int stage, const Visit& visit) const {
    const int start = kOwnBytes + stage * kOtherBytes;
    ROLLED for (int i = thread_x(); i < kOther * Tile<kD>::kChunks; i += kThreads)
      visit(shared<Vec16>(start + i / Tile<kD>::kChunks * kDBytes + i % Tile<kD>::kChunks * 16, 1)[0]);
    if constexpr (kByKeys) {
      ROLLED for (int i = thread_x(); i < kOther * Tile<kDv>::kChunks; i += kThreads)
        visit(shared<Vec16>(start + kOther * kDBytes + i / Tile<kDv>::kChunks * kDvBytes + i % Tile<kDv>::kChunks * 16, 1)[0]);
    }
  }
  DEVICE void mark_odd(int stage) const {
    uint32_t odd = 0;
    visit_other(stage, [&](const Vec16& x) { UNROLL for (int w = 0; w < 4; w++) odd |= not_finite<T>(x.words[w]); });
    const uint32_t bits = ballot(odd != 0);
    if (lane() == 0) marks()[warp()] = bits;
  }
  // Clears what is not finite once nobody reads it any more; whether there was any.
  DEVICE bool clear_odd(int stage) const {
    sync_block();
    bool any = false;
    UNROLL for (int w = 0; w < kWarps; w++) any = any || marks()[w] != 0;
    if (!any) return false;
    visit_other(stage, [&](Vec16& x) { UNROLL for (int w = 0; w < 4; w++) x.words[w] &= ~((not_finite<T>(x.words[w]) >> 15) * 0xffffu); });
    sync_block();
    return true;
  }
  // By keys: what was cleared of dOut, from memory, for the keys that its row sees and has not dropped.
  DEVICE void add_odd(int first, Range rows) {
    const int slice = kSlices == 1 ? 0 : block_z() * kWideV * 8;
    ROLLED for (int j = 0; j < kOther; j++) {
      const int row = first + j;
      if (row < rows.begin || row >= rows.end) continue;
      const T* d_out = reinterpret_cast<const T*>(bytes_of(p.d_out, row_element(p.d_out, s, row))) + slice;
      UNROLL for (int t = 0; t < kTall; t++) {
        UNROLL for (int u = 0; u < 2; u++) {
          const Pair two = weights_of(t, u, j & ~1);
          const float weight = shuffle(j % 2 ? two.high : two.low, (lane() & ~3) | j % 8 / 2);
          const Range met = meets(t, u);
          if (row < met.begin || row >= met.end || (kRich && !takes(row, own_at(t, u)))) continue;
          UNROLL for (int n = 0; n < kWideV; n++) {
            UNROLL for (int e = 0; e < 2; e++) {
              const int at = n * 8 + column() + e;
              const float x = slice + at < dv ? to_float(d_out[at]) : 0.0f;
              if (!(fabsf(x) < INFINITY)) sum_v[t][n][2 * u + e] += weight * x;
            }
          }
        }
      }
    }
  }
  // This lane's weights in columns j and j + 1, or two beside them; j is even. Ors words: an index would keep them in memory.
  DEVICE Pair weights_of(int t, int u, int j) const {
    uint32_t word = 0;
    UNROLL for (int n = 0; n < kFrags; n++) word |= weights_packed[t][n / 2][n % 2 * 2 + u] & (n == j / 8 ? ~0u : 0u);
    return unpack2<T>(word);
  }
  // Whether the mask shows a key of the row's range and dropout keeps it.
  DEVICE bool takes(int row, int key) const {
    const int token = row / s.group, head = s.first_head + row % s.group;
    if (rules.mask.data && mask_bias(rules.mask, mask_start(rules.mask, s.batch, head, token) + key * rules.mask.strides[3]) == -INFINITY) return false;
    return rules.dropout_factor == 0 || dropout_word(rules.dropout_seed, key, token, head, s.batch) >= rules.dropout_threshold;
  }

  // A row of this lane's sums, times a factor.
  template <int kColumns>
  DEVICE void store_row(const float (&c)[kColumns][4], int u, unsigned char* to, int width, float factor) const {
    const int slice = kSlices == 1 ? 0 : block_z() * kColumns * 8;
    UNROLL for (int n = 0; n < kColumns; n++) {
      const int at = slice + n * 8 + column();
      if (at < width) *reinterpret_cast<uint32_t*>(to + at * 2) = pack2<T>(c[n][2 * u] * factor, c[n][2 * u + 1] * factor);
    }
  }
  DEVICE void store() const {
    const float scale = static_cast<float>(rules.scale);
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const int at = own_at(t, u);
        if (at >= (kByKeys ? static_cast<int>(p.k.shape[1]) : s.rows())) continue;
        if constexpr (kByKeys) {
          store_row(sum[t], u, bytes_of(p.dk, key_element(p.dk, s, kv_head, at)), d, scale);
          store_row(sum_v[t], u, bytes_of(p.dv, key_element(p.dv, s, kv_head, at)), dv, 1);
        } else {
          store_row(sum[t], u, bytes_of(p.dq, row_element(p.dq, s, at)), d, scale);
        }
      }
    }
  }

  // Others that meet some of the block's own.
  DEVICE Range others() const {
    if (kByKeys) return rows_seeing(rules, s, sinks(), own, own + kOwn - 1);
    const int last = own + kOwn < s.rows() ? own + kOwn - 1 : s.rows() - 1;
    return {visible_keys(rules, s, own / s.group).begin, visible_keys(rules, s, last / s.group).end};
  }
  // Whether every row of a tile sees every key of it.
  DEVICE bool all_seen(int first) const {
    const int row = kByKeys ? first : own, rows = kByKeys ? kOther : kOwn, key = kByKeys ? own : first, keys = kByKeys ? kOwn : kOther;
    if (row + rows > s.rows()) return false;
    return key >= visible_keys(rules, s, (row + rows - 1) / s.group).begin && key + keys <= visible_keys(rules, s, row / s.group).end;
  }
  DEVICE void run() {
    const Range range = others();
    start();
    int first = kRich && !kByKeys ? seen_from(0, range) : range.begin / kOther * kOther, stage = 0;
    load_own();
    if (first < range.end) load_other(first, range, stage);
    copy_async_commit();
    for (int next; first < range.end; first = next, stage ^= 1) {
      copy_async_wait<0>();
      sync_block();  // the tile is there, and nobody reads the one before it any more
      next = seen_from(first + kOther, range);
      if (next < range.end) load_other(next, range, stage ^ 1);
      copy_async_commit();
      multiply_rows(scores, own_tile(), other_tile(stage));
      multiply_rows(gradients, own_wide(), other_wide(stage));
      const bool seen = all_seen(first);
      const bool alike = seen && !(kRich && (rules.mask.data || rules.dropout_factor != 0));
      if (!alike) mark_odd(stage);
      if constexpr (kRich)
        if (rules.dropout_factor != 0) draw(first);
      weigh(first, seen, stage);
      if constexpr (kByKeys) pack(weights_packed, scores);
      pack(gradients_packed, gradients);
      const bool odd = alike ? false : clear_odd(stage);
      if constexpr (kByKeys) {
        multiply_columns(sum_v, weights_packed, other_wide(stage));
        if (odd) add_odd(first, range);
      }
      multiply_columns(sum, gradients_packed, other_tile(stage));
    }
    copy_async_wait<0>();
    store();
  }
};

// Grid: tiles of keys, key heads, slices of columns.
template <class T, int kD, int kDv, int kTall, int kOther, int kWarps, int kSlices, bool kRich>
DEVICE void attention_backward_keys(const heed_cuda_attention_backward& args) {
  using Kernel = Backward<T, true, kD, kDv, kTall, kOther, kWarps, kSlices, kRich>;
  const Sequence s = backward_sequence(args.problem, block_x() / args.tiles, block_y());
  // Causality gives the first keys the most rows: they come first.
  Kernel(args, s, block_y(), block_x() % args.tiles * Kernel::kOwn).run();
}
// Grid: tiles of rows, key heads.
template <class T, int kD, int kDv, int kTall, int kOther, int kWarps, bool kRich>
DEVICE void attention_backward_rows(const heed_cuda_attention_backward& args) {
  using Kernel = Backward<T, false, kD, kDv, kTall, kOther, kWarps, 1, kRich>;
  const Sequence s = backward_sequence(args.problem, block_x() / args.tiles, block_y());
  Kernel(args, s, block_y(), (args.tiles - 1 - block_x() % args.tiles) * Kernel::kOwn).run();
}

}  // namespace heed
