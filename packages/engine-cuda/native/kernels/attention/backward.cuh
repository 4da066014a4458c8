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

struct alignas(8) RowStatistics { float lse, delta; };  // the first two of a row's: lse in units of ln 2

// kSlices: blocks (block_z) that share the columns of the sums. kPairs: two warps share what they own (backward_pairs.cuh). kRich:
// softcap, ALiBi, masks, dropout and sink tokens are looked at, score by score.
template <class T, bool kByKeys, int kD, int kDv, int kTall, int kOther, int kWarps, int kSlices, bool kPairs, bool kRich>
struct Backward {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kOwn = 16 * kTall * kWarps / (kPairs ? 2 : 1);
  static constexpr int kFrags = kOther / 8;                          // fragments of 8 of the other side
  static constexpr int kWide = kD / 8 / kSlices;                     // fragments of 8 columns of dk or dq
  static constexpr int kWideV = kByKeys ? kDv / 8 / kSlices : 1;     // of dv
  static constexpr int kRowLanes = kThreads / kOther;                // threads that copy one row (key) of the other side
  static_assert(kWarps <= 4 && kTall * kFrags * 4 <= 32, "marks of warps are four words, those of pairs one");
  static_assert(kRowLanes == 4 || kRowLanes == 8, "see copied_row");

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
  uint32_t from, from_wide, from_statistics;  // where this thread copies the other side from next, in units of 16 bytes

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
  // The first of this warp's own, within the block's.
  DEVICE static int warp_row() { return (kPairs ? warp() / 2 : warp()) * kTall * 16; }
  DEVICE int own_at(int t, int u) const { return own + warp_row() + t * 16 + u * 8 + lane() / 4; }
  DEVICE int sinks() const { return kRich ? sink_end(rules, s) : 0; }
  // Whether a key is one of a range, or a sink token before its end.
  DEVICE bool has_key(Range keys, int j) const { return kRich ? is_seen(j, keys, sinks()) : j >= keys.begin && j < keys.end; }
  DEVICE bool has_other(Range range, int i) const { return kByKeys ? i >= range.begin && i < range.end : has_key(range, i); }
  // The first tile of the walk over a range of the other side from tile `first` on.
  DEVICE int seen_from(int first, Range range) const { return kRich && !kByKeys ? skip_hidden(first, sinks(), range.begin / kOther * kOther) : first; }
  DEVICE static int column() { return thread_x() * 2 & 6; }

  DEVICE int64_t statistics_unit(int row) const {
    const int sequence = s.batch * static_cast<int>(p.k.shape[2]) + kv_head;
    return static_cast<int64_t>(sequence) * s.rows() + row;
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
  // Query rows, or keys, first .. + kOwn - 1; those behind the last become zeros. 8 lanes to a row.
  DEVICE void load_own() const {
    const int end = kByKeys ? s.length : s.rows();
    ROLLED for (int row = thread_x() / 8; row < kOwn; row += kThreads / 8) {
      const int at = own + row;
      const bool there = at < end;
      load_row(own_tile(), row, !there ? s.k : kByKeys ? key_at(s, at) : bytes_of(p.q, row_element(p.q, s, at)), d, there);
      load_row(own_wide(), row, !there ? s.k : kByKeys ? value_at(s, at) : bytes_of(p.d_out, row_element(p.d_out, s, at)), dv, there);
      if (!kByKeys && thread_x() % 8 == 0)
        copy_async_16(own_wide().at(row, Tile<kDv>::kChunks), unit_of(args.statistics, there ? static_cast<uint32_t>(statistics_unit(at)) : 0), there);
    }
  }

  // The row of a tile of the other side that this thread copies, with kRowLanes - 1 others. Those of 8 neighbours are 4 rows apart where
  // they are two, so that what they write at once lies in different banks.
  DEVICE static int copied_row() { return warp() * (32 / kRowLanes) + lane() / 8 + lane() % 8 / kRowLanes * 4; }
  static constexpr int kUnit = 8;  // elements of 16 bytes; every row begins with one
  DEVICE static const unsigned char* unit_of(const void* data, uint32_t unit) {
    return static_cast<const unsigned char*>(data) + static_cast<uint64_t>(unit) * 16;
  }
  // Where that row of the tile from `first` on lies takes a division by the heads of a group; that of the tiles behind it does not, where
  // a tile is whole tokens.
  DEVICE void seek(int first) {
    const int at = first + copied_row(), column = lane() % kRowLanes;
    from = static_cast<uint32_t>((kByKeys ? row_element(p.q, s, at) : key_element(p.k, s, kv_head, at)) / kUnit) + column;
    from_wide = static_cast<uint32_t>((kByKeys ? row_element(p.d_out, s, at) : key_element(p.v, s, kv_head, at)) / kUnit) + column;
    from_statistics = static_cast<uint32_t>(statistics_unit(at));
  }
  DEVICE void seek_next(int first, int next) {
    if (next != first + kOther || (kByKeys && kOther % s.group != 0)) return seek(next);
    const uint32_t tokens = kByKeys ? kOther / s.group : kOther;
    from += tokens * static_cast<uint32_t>((kByKeys ? p.q : p.k).strides[1] / kUnit);
    from_wide += tokens * static_cast<uint32_t>((kByKeys ? p.d_out : p.v).strides[1] / kUnit);
    from_statistics += kOther;
  }
  // This thread's part of a row; kWhole: of one that is there, with all columns.
  template <bool kWhole, int kWidth>
  DEVICE void copy_row(uint32_t to, const unsigned char* source, int width, bool there) const {
    UNROLL for (int n = 0; n < (Tile<kWidth>::kChunks + kRowLanes - 1) / kRowLanes; n++) {
      const bool inside = Tile<kWidth>::kChunks % kRowLanes == 0 || n * kRowLanes + lane() % kRowLanes < Tile<kWidth>::kChunks;
      const bool valid = kWhole || (there && (n * kRowLanes + lane() % kRowLanes) * 8 < width);
      if (inside)
        copy_async_16(to + n * kRowLanes * 16, valid ? source + n * kRowLanes * 16 : static_cast<const unsigned char*>(args.statistics), valid);
    }
  }
  template <bool kWhole>
  DEVICE void copy_rows(int stage, bool there) const {
    const int row = copied_row(), column = lane() % kRowLanes;
    const uint32_t to = other_tile(stage).at(row, column), to_wide = other_wide(stage).at(row, column);
    copy_row<kWhole, kD>(to, unit_of((kByKeys ? p.q : p.k).data, from), d, there);
    copy_row<kWhole, kDv>(to_wide, unit_of((kByKeys ? p.d_out : p.v).data, from_wide), dv, there);
    if (kByKeys && lane() % kRowLanes == 0)
      copy_async_16(to_wide + Tile<kDv>::kChunks * 16, unit_of(args.statistics, there ? from_statistics : 0), there);
  }
  // Of the tile that was sought; rows out of `valid` become zeros.
  DEVICE void load_other(int first, Range valid, int stage) const {
    if (!kRich && d == kD && dv == kDv && first >= valid.begin && first + kOther <= valid.end) return copy_rows<true>(stage, true);
    copy_rows<false>(stage, has_other(valid, first + copied_row()));
  }
  DEVICE void start() {
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 4; e++) sum[t][n][e] = 0;
      UNROLL for (int n = 0; n < kWideV; n++) UNROLL for (int e = 0; e < 4; e++) sum_v[t][n][e] = 0;
    }
  }

  // Where this lane's rows begin, in tiles read by load_a and load_b_columns, and by load_b_rows (fragments.cuh).
  template <int kWidth>
  DEVICE static uint32_t lane_start(const Tile<kWidth>& tile) { return tile.start + (thread_x() & 15) * Tile<kWidth>::kPitch + (thread_x() & 16); }
  template <int kWidth>
  DEVICE static uint32_t lane_start_rows(const Tile<kWidth>& tile) {
    return tile.start + ((thread_x() & 7) + (thread_x() & 16) / 2) * Tile<kWidth>::kPitch + (thread_x() & 8) * 2;
  }

  DEVICE static void clear(float (&c)[kTall][kFrags][4]) {
    UNROLL for (int t = 0; t < kTall; t++) UNROLL for (int n = 0; n < kFrags; n++) UNROLL for (int e = 0; e < 4; e++) c[t][n][e] = 0;
  }
  // c [own, other] += a b^T over 16 columns; b: this lane's start of them.
  template <int kWidth>
  DEVICE static void multiply_16(float (&c)[kTall][kFrags][4], const uint32_t (&a)[kTall][4], uint32_t b_start) {
    UNROLL for (int n = 0; n < kFrags / 2; n++) {
      uint32_t b[4];
      load_matrix_x4(b, b_start + n * 16 * Tile<kWidth>::kPitch);
      UNROLL for (int t = 0; t < kTall; t++) {
        mma_16x8x16<T>(c[t][2 * n], a[t], b[0], b[1]);
        mma_16x8x16<T>(c[t][2 * n + 1], a[t], b[2], b[3]);
      }
    }
  }
  // c [own, other] = a b^T over the columns of two tiles.
  template <int kWidth>
  DEVICE void multiply_rows(float (&c)[kTall][kFrags][4], const Tile<kWidth>& a_tile, const Tile<kWidth>& b_tile) const {
    clear(c);
    const uint32_t a_start = lane_start(a_tile) + warp_row() * Tile<kWidth>::kPitch, b_start = lane_start_rows(b_tile);
    UNROLL for (int k = 0; k < kWidth / 16; k++) {
      uint32_t a[kTall][4];
      UNROLL for (int t = 0; t < kTall; t++) load_matrix_x4(a[t], a_start + t * 16 * Tile<kWidth>::kPitch + k * 32);
      multiply_16<kWidth>(c, a, b_start + k * 32);
    }
  }
  // c [own, columns of this slice] += a b over the other side. kFinite: without what is not finite of b; whether there was any.
  template <bool kFinite = false, int kWidth, int kColumns>
  DEVICE bool multiply_columns(float (&c)[kTall][kColumns][4], const uint32_t (&a)[kTall][kOther / 16][4], const Tile<kWidth>& b_tile) const {
    const uint32_t b_start = lane_start(b_tile) + (kSlices == 1 ? 0 : block_z() * (kColumns / 2) * 32);
    uint32_t odd = 0;
    UNROLL for (int k = 0; k < kOther / 16; k++) {
      UNROLL for (int n = 0; n < kColumns / 2; n++) {
        uint32_t b[4];
        load_matrix_x4_transposed(b, b_start + k * 16 * Tile<kWidth>::kPitch + n * 32);
        if constexpr (kFinite) {
          UNROLL for (int w = 0; w < 4; w++) {
            const uint32_t signs = not_finite<T>(b[w]);
            odd |= signs;
            b[w] &= ~((signs >> 15) * 0xffffu);
          }
        }
        UNROLL for (int t = 0; t < kTall; t++) {
          mma_16x8x16<T>(c[t][2 * n], a[t][k], b[0], b[1]);
          mma_16x8x16<T>(c[t][2 * n + 1], a[t][k], b[2], b[3]);
        }
      }
    }
    return kFinite && ballot(odd != 0) != 0;
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
  // Products become the weights that dv takes and the gradients of scale q.k, where every pair is seen and no rule looked at.
  DEVICE void weigh_all(int stage) {
    const float scale = static_cast<float>(rules.scale) * kLog2E;
    RowStatistics mine[kTall][2] = {};
    if constexpr (!kByKeys)
      UNROLL for (int t = 0; t < kTall; t++) UNROLL for (int u = 0; u < 2; u++) mine[t][u] = statistics_at(own_wide(), own_at(t, u) - own);
    UNROLL for (int n = 0; n < kFrags; n++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const RowStatistics others = kByKeys ? statistics_at(other_wide(stage), n * 8 + column() + e) : RowStatistics{0, 0};
        UNROLL for (int t = 0; t < kTall; t++) {
          UNROLL for (int u = 0; u < 2; u++) {
            const RowStatistics& row = kByKeys ? others : mine[t][u];
            float &score = scores[t][n][2 * u + e], &gradient = gradients[t][n][2 * u + e];
            score = exp2_approx(score * scale - row.lse);
            gradient = score * (gradient - row.delta);
          }
        }
      }
    }
  }
  // The same pair by pair.
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
    const int start = other_tile(stage).start - shared_start(), start_wide = other_wide(stage).start - shared_start();
    ROLLED for (int i = thread_x(); i < kOther * Tile<kD>::kChunks; i += kThreads)
      visit(shared<Vec16>(start + i / Tile<kD>::kChunks * kDBytes + i % Tile<kD>::kChunks * 16, 1)[0]);
    if constexpr (kByKeys) {
      ROLLED for (int i = thread_x(); i < kOther * Tile<kDv>::kChunks; i += kThreads)
        visit(shared<Vec16>(start_wide + i / Tile<kDv>::kChunks * kDvBytes + i % Tile<kDv>::kChunks * 16, 1)[0]);
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
  template <int kColumns>
  DEVICE void add_odd(float (&c)[kTall][kColumns][4], int first, Range rows) const {
    const int slice = kSlices == 1 ? 0 : block_z() * kColumns * 8;
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
          UNROLL for (int n = 0; n < kColumns; n++) {
            UNROLL for (int e = 0; e < 2; e++) {
              const int at = n * 8 + column() + e;
              const float x = slice + at < dv ? to_float(d_out[at]) : 0.0f;
              if (!(fabsf(x) < INFINITY)) c[t][n][2 * u + e] += weight * x;
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
  // Of the other side, those that meet all of the block's own.
  DEVICE Range full_others() const {
    if (own + kOwn > (kByKeys ? s.length : s.rows())) return {0, 0};
    if (!kByKeys) return {visible_keys(rules, s, (own + kOwn - 1) / s.group).begin, visible_keys(rules, s, own / s.group).end};
    const int begin = rules.window_right < 0 ? 0 : clamp_key(own + kOwn - 1 - rules.window_right - s.offset, s.tokens);
    const int end = rules.window_left < 0 ? s.tokens : clamp_key(own + rules.window_left + 1 - s.offset, s.tokens);
    return {begin * s.group, end * s.group};
  }
  DEVICE void take(int first, Range range, bool seen, int stage) {
    const bool alike = seen && !(kRich && (rules.mask.data || rules.dropout_factor != 0));
    multiply_rows(scores, own_tile(), other_tile(stage));
    multiply_rows(gradients, own_wide(), other_wide(stage));
    if (!alike) mark_odd(stage);
    if constexpr (kRich)
      if (rules.dropout_factor != 0) draw(first);
    if (!kRich && seen) weigh_all(stage);
    else weigh(first, seen, stage);
    if constexpr (kByKeys) pack(weights_packed, scores);
    pack(gradients_packed, gradients);
    const bool odd = alike ? false : clear_odd(stage);
    if constexpr (kByKeys) {
      multiply_columns(sum_v, weights_packed, other_wide(stage));
      if (odd) add_odd(sum_v, first, range);
    }
    multiply_columns(sum, gradients_packed, other_tile(stage));
  }
  DEVICE void run() {
    const Range range = others(), full = full_others();
    start();
    int first = kRich && !kByKeys ? seen_from(0, range) : range.begin / kOther * kOther, stage = 0;
    load_own();
    seek(first);
    if (first < range.end) load_other(first, range, stage);
    copy_async_commit();
    for (int next; first < range.end; first = next, stage ^= 1) {
      copy_async_wait<0>();
      sync_block();  // the tile is there, and nobody reads the one before it any more
      next = seen_from(first + kOther, range);
      seek_next(first, next);
      // Without rules of its own the range has no gap: its begin lies before `next`, which spares a register.
      if (next < range.end) load_other(next, {kRich ? range.begin : next, range.end}, stage ^ 1);
      copy_async_commit();
      take(first, range, first >= full.begin && first + kOther <= full.end, stage);
    }
    copy_async_wait<0>();
    store();
  }
};

// Grid: tiles of keys, key heads, slices of columns.
template <class T, int kD, int kDv, int kTall, int kOther, int kWarps, int kSlices, bool kRich>
DEVICE void attention_backward_keys(const heed_cuda_attention_backward& args) {
  using Kernel = Backward<T, true, kD, kDv, kTall, kOther, kWarps, kSlices, false, kRich>;
  const Sequence s = backward_sequence(args.problem, block_x() / args.tiles, block_y());
  // Causality gives the first keys the most rows: they come first.
  Kernel(args, s, block_y(), block_x() % args.tiles * Kernel::kOwn).run();
}
// Grid: tiles of rows, key heads.
template <class T, int kD, int kDv, int kTall, int kOther, int kWarps, bool kRich>
DEVICE void attention_backward_rows(const heed_cuda_attention_backward& args) {
  using Kernel = Backward<T, false, kD, kDv, kTall, kOther, kWarps, 1, false, kRich>;
  const Sequence s = backward_sequence(args.problem, block_x() / args.tiles, block_y());
  Kernel(args, s, block_y(), (args.tiles - 1 - block_x() % args.tiles) * Kernel::kOwn).run();
}

}  // namespace heed
