// What both kernels of attention forward do with a block's rows (forward.cuh, forward_warpgroup.cuh): scores become weights by running
// maxima and sums (FlashAttention-2: Dao 2023, arXiv:2307.08691), and a row's sums its output. Rows of the G heads that share keys lie side
// by side (problem.cuh).
//
// A masked key is selected away; where rows of a tile see different keys, so is the value of a hidden key that is not finite: its row
// is cleared for the product and added by hand to the rows that see it.
#pragma once
#include "tile_copy.cuh"

namespace heed {

// kRich: softcap, ALiBi, masks, dropout and sink tokens are looked at, score by score.
template <class T, int kD, int kDv, int kRows, int kKeys, int kWarps, bool kRich>
struct ForwardRows {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTall = kRows / (16 * kWarps);  // fragments of 16 rows to a warp
  static constexpr int kScores = kKeys / 8;            // fragments of 8 keys
  static constexpr int kWide = kDv / 8;                // fragments of 8 values
  static_assert(kKeys <= kThreads && kKeys <= 128, "a thread looks at a key; four words mark them");

  const heed_cuda_attention& args;
  const heed_scores& rules;
  const Sequence& s;
  const int first_row, d, dv, dv_start;  // dv: values of this block, from dv_start on
  const RowRanges visible;
  const int own_thread;  // from a shuffle: a multiprocessor takes long to say it, and the compiler would ask in every tile
  float scores[kTall][kScores][4], acc[kTall][kWide][4];
  uint32_t weights[kTall][kKeys / 16][4];  // operands [16, 16] of the second product
  float top[kTall][2], sum[kTall][2];  // the largest score in units of ln 2, and the sum of the weights of this lane's columns
  float shrink[kTall][2];              // what the values so far are to be multiplied by

  DEVICE ForwardRows(const heed_cuda_attention& args, const Sequence& s, int first_row, int d, int dv, int dv_start)
      : args(args), rules(args.scores), s(s), first_row(first_row), d(d), dv(dv), dv_start(dv_start), visible(rules, s, first_row, kRows),
        own_thread(shuffle(thread_x(), heed::lane())) {}
  DEVICE int lane() const { return own_thread & 31; }
  DEVICE int warp() const { return own_thread >> 5; }
  DEVICE int rows() const { return s.rows(); }
  DEVICE int sinks() const { return kRich ? sink_end(rules, s) : 0; }
  // Whether a key is one of a range, or a sink token before its end.
  DEVICE bool has(Range keys, int j) const { return kRich ? is_seen(j, keys, sinks()) : j >= keys.begin && j < keys.end; }
  DEVICE int row_of(int tall, int half) const { return first_row + (warp() * kTall + tall) * 16 + half * 8 + lane() / 4; }

  // Lane l has the place of the warp's row l in q or out, 0 where there is none: a division to a row.
  static constexpr int kWarpRows = 16 * kTall;
  static_assert(kWarpRows <= 32, "a lane for each row");
  DEVICE uint64_t warp_row(const heed_tensor& t) const {
    const int row = first_row + warp() * kWarpRows + lane() % kWarpRows;
    return row < rows() ? reinterpret_cast<uint64_t>(row_at(args, t, s, row)) : 0;
  }

  // Whether the block sees every key of the tile.
  DEVICE static bool is_whole(int first, Range keys) { return first >= keys.begin && first + kKeys <= keys.end; }
  // A warp loads its own rows.
  template <class TileOf>
  DEVICE void load_queries(const TileOf& tile) const {
    const uint64_t mine = warp_row(args.q);
    ROLLED for (int i = lane(); i < kWarpRows * TileOf::kChunks; i += 32) {
      const int row = i / TileOf::kChunks, chunk = i % TileOf::kChunks;
      const unsigned char* from = reinterpret_cast<const unsigned char*>(shuffle(mine, row));
      const bool valid = from != nullptr && chunk * 8 < d;
      copy_async_16(tile.at(warp() * kWarpRows + row, chunk), valid ? from + chunk * 16 : args.q.data, valid);
    }
  }
  // Tokens first .. first + kKeys - 1 of keys or values, whose token 0 (of page 0) begins at `start`, by kCopiers threads, of which this is
  // number `thread`; zeros where nobody sees them.
  template <int kCopiers, class TileOf>
  DEVICE void load_tokens(const TileOf& tile, const unsigned char* start, int32_t token_bytes, int64_t page_bytes, int first, Range keys,
                          int width, int thread) const {
    using Copy = TileCopy<TileOf, kKeys, kCopiers>;
    if (is_whole(first, keys) && Copy::fits(s)) return Copy{thread}.copy(tile, s, start, token_bytes, page_bytes, first, width);
    ROLLED for (int i = thread; i < kKeys * TileOf::kChunks; i += kCopiers) {
      const int row = i / TileOf::kChunks, chunk = i % TileOf::kChunks, j = first + row;
      const bool valid = has(keys, j) && chunk * 8 < width;
      copy_async_16(tile.at(row, chunk), valid ? token_at(s, start, token_bytes, page_bytes, j) + chunk * 16 : start, valid);
    }
  }

  DEVICE void start_rows() {
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        top[t][u] = -INFINITY;
        sum[t][u] = 0;
      }
      UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 4; e++) acc[t][n][e] = 0;
    }
  }
  // By a row of this lane. Computed where it is needed: registers are short.
  DEVICE Range seen_by(int t, int u) const {
    const int row = row_of(t, u);
    return row < rows() ? visible.at(row) : Range{0, 0};
  }
  // Scores times unit() are in units of ln 2: the factor goes into the exponent's sum, unless the largest score would be the least.
  DEVICE float factor() const { return static_cast<float>(rules.scale) * kLog2E; }
  DEVICE float unit() const { return !kRich && factor() > 0 ? factor() : 1.0f; }
  // Hidden scores become -infinity.
  DEVICE void finish_scores(int first, bool all_seen) {
    const bool multiplies = !(factor() > 0);
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        if constexpr (kRich) {
          enrich(t, u, first, static_cast<float>(rules.scale));
        } else if (multiplies) {
          UNROLL for (int n = 0; n < kScores; n++) UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) scores[t][n][e] *= factor();
        }
        if (all_seen) continue;
        const Range seen = seen_by(t, u);
        UNROLL for (int n = 0; n < kScores; n++) {
          UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) {
            const int key = first + n * 8 + lane() % 4 * 2 + e % 2;
            scores[t][n][e] = has(seen, key) ? scores[t][n][e] : -INFINITY;
          }
        }
      }
    }
  }
  // Softcap, ALiBi and mask of one row, rule by rule.
  DEVICE void enrich(int t, int u, int first, float scale) {
    const int row = row_of(t, u), token = row / s.group, head = s.first_head + row % s.group, column = lane() % 4 * 2;
    const float cap = static_cast<float>(rules.softcap);
    UNROLL for (int n = 0; n < kScores; n++) UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) scores[t][n][e] *= scale;
    if (cap > 0) {
      UNROLL for (int n = 0; n < kScores; n++) UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) scores[t][n][e] = cap * tanhf(scores[t][n][e] / cap);
    }
    if (rules.alibi_slopes.data && row < rows()) {
      const float slope = static_cast<const float*>(rules.alibi_slopes.data)[head * rules.alibi_slopes.strides[0]];
      const float ahead = static_cast<float>(s.offset + token - first - column);  // of the lane's first key
      UNROLL for (int n = 0; n < kScores; n++) UNROLL for (int e = 2 * u; e < 2 * u + 2; e++)
        scores[t][n][e] -= slope * fabsf(ahead - static_cast<float>(n * 8 + e % 2));
    }
    if (rules.mask.data && row < rows()) {
      const int64_t start = mask_start(rules.mask, s.batch, head, token), step = rules.mask.strides[3];
      UNROLL for (int n = 0; n < kScores; n++) {
        UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) {
          const int key = first + n * 8 + column + e % 2;
          const float bias = key < s.length ? mask_bias(rules.mask, start + key * step) : -INFINITY;
          scores[t][n][e] = bias == -INFINITY ? bias : scores[t][n][e] + bias;
        }
      }
    }
    UNROLL for (int n = 0; n < kScores; n++) UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) scores[t][n][e] *= kLog2E;
  }
  // Scores become weights exp2(unit (score - top)) and join the sums, which are scaled to the new top; the values' turn is `rescale`.
  DEVICE void weigh() {
    const float factor = unit();
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        float high = top[t][u];  // fmaxf drops a NaN: it comes back with its own weight
        UNROLL for (int n = 0; n < kScores; n++) high = fmaxf(high, fmaxf(scores[t][n][2 * u], scores[t][n][2 * u + 1]));
        high = row_max(high);
        const float base = high == -INFINITY ? 0.0f : high * factor;
        shrink[t][u] = exp2_approx(fmaf(top[t][u], factor, -base));
        top[t][u] = high;
        float part = 0;
        UNROLL for (int n = 0; n < kScores; n++) {
          UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) {
            scores[t][n][e] = exp2_approx(fmaf(scores[t][n][e], factor, -base));
            part += scores[t][n][e];
          }
        }
        sum[t][u] = sum[t][u] * shrink[t][u] + part;
      }
    }
  }
  DEVICE void rescale() {
    bool moved = false;
    UNROLL for (int t = 0; t < kTall; t++) UNROLL for (int u = 0; u < 2; u++) moved = moved || !(shrink[t][u] == 1);
    if (ballot(moved) == 0) return;  // far from the first tile a larger score is rare
    UNROLL for (int t = 0; t < kTall; t++) UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 4; e++) acc[t][n][e] *= shrink[t][e / 2];
  }
  // After the sums, which are those without dropout. A lane's two neighbouring keys are drawn together.
  DEVICE void drop(int first) {
    const float kept = static_cast<float>(rules.dropout_factor);
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const int row = row_of(t, u), token = row / s.group, head = s.first_head + row % s.group;
        UNROLL for (int n = 0; n < kScores; n++) {
          const int key = first + n * 8 + lane() % 4 * 2;
          const DropoutWords words = dropout_words(rules.dropout_seed, key / 4, token, head, s.batch);
          float &a = scores[t][n][2 * u], &b = scores[t][n][2 * u + 1];
          a = (key % 4 ? words.at[2] : words.at[0]) < rules.dropout_threshold ? 0.0f : a * kept;
          b = (key % 4 ? words.at[3] : words.at[1]) < rules.dropout_threshold ? 0.0f : b * kept;
        }
      }
    }
  }
  DEVICE void pack_weights() {
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int k = 0; k < kKeys / 16; k++) {
        UNROLL for (int w = 0; w < 4; w++) {
          const float* pair = scores[t][2 * k + w / 2] + w % 2 * 2;
          weights[t][k][w] = pack2<T>(pair[0], pair[1]);
        }
      }
    }
  }
  // For tiles in which rows see different keys: a weight of 0 times a value that is not finite would be NaN. Such values are cleared and
  // their keys marked; whether there are any. `at` has a word of each warp, that it found such a value, four words with a bit for each key that
  // has one, which may be the first of these, and the tile of values.
  static constexpr int kChunks = kDv / 8;  // of 16 bytes to a row of values
  template <class Places>
  DEVICE bool clear_odd_values(const Places& at) const {
    uint32_t odd = 0;
    UNROLL for (int i = own_thread; i < kKeys * kChunks; i += kThreads) {
      const Vec16 x = at.value_words(i / kChunks, i % kChunks)[0];
      UNROLL for (int w = 0; w < 4; w++) odd |= not_finite<T>(x.words[w]);
    }
    const uint32_t bits = ballot(odd != 0);
    if (lane() == 0) at.warp_mark(warp())[0] = bits;
    at.sync();
    bool any = false;
    UNROLL for (int w = 0; w < kWarps; w++) any = any || at.warp_mark(w)[0] != 0;
    if (any) mark_odd_keys(at);
    return any;
  }
  template <class Places>
  DEVICE void mark_odd_keys(const Places& at) const {
    bool odd = false;
    if (own_thread < kKeys) {
      for (int chunk = 0; chunk < kChunks; chunk++) {
        const Vec16 x = at.value_words(own_thread, chunk)[0];
        UNROLL for (int w = 0; w < 4; w++) odd = odd || not_finite<T>(x.words[w]) != 0;
      }
      if (odd)
        for (int chunk = 0; chunk < kChunks; chunk++) at.value_words(own_thread, chunk)[0] = Vec16{};
    }
    at.sync();  // all have read the words of the warps
    const uint32_t bits = ballot(odd);
    if (lane() == 0 && warp() * 32 < kKeys) at.marks()[warp()] = bits;
    at.sync();
  }
  // The values that were cleared, from memory, for the rows that see them and have not dropped them.
  template <class Places>
  DEVICE void add_odd_values(const Places& places, int first) {
    ROLLED for (int j = 0; j < kKeys; j++) {
      if (!(places.marks()[j / 32] >> j % 32 & 1)) continue;
      const int key = first + j;
      const T* value = reinterpret_cast<const T*>(value_at(s, key)) + dv_start;
      UNROLL for (int t = 0; t < kTall; t++) {
        UNROLL for (int u = 0; u < 2; u++) {
          const Pair mine = weights_of(t, u, j & ~1);
          const float weight = shuffle(j % 2 ? mine.high : mine.low, (lane() & ~3) | j % 8 / 2);
          const Range seen = seen_by(t, u);
          if (has(seen, key) && (!kRich || takes(row_of(t, u), key))) add_value(t, u, weight, value);
        }
      }
    }
  }
  // This lane's weights in columns j and j + 1, or two beside them; j is even. Ors words instead of branching, which would make the
  // compiler index the weights, and so keep them in memory.
  DEVICE Pair weights_of(int t, int u, int j) const {
    uint32_t word = 0;
    UNROLL for (int n = 0; n < kScores; n++) word |= weights[t][n / 2][n % 2 * 2 + u] & (n == j / 8 ? ~0u : 0u);
    return unpack2<T>(word);
  }
  // Whether the mask shows a key of the row's range and dropout keeps it.
  DEVICE bool takes(int row, int key) const {
    const int token = row / s.group, head = s.first_head + row % s.group;
    if (rules.mask.data && mask_bias(rules.mask, mask_start(rules.mask, s.batch, head, token) + key * rules.mask.strides[3]) == -INFINITY) return false;
    return rules.dropout_factor == 0 || dropout_word(rules.dropout_seed, key, token, head, s.batch) >= rules.dropout_threshold;
  }
  DEVICE void add_value(int t, int u, float weight, const T* value) {
    UNROLL for (int n = 0; n < kWide; n++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const int at = n * 8 + lane() % 4 * 2 + e;
        if (at < dv) acc[t][n][2 * u + e] += weight * to_float(value[at]);
      }
    }
  }

  // What a row's sums are divided by, as a factor; stores its lse. Lane l has the warp's row l.
  DEVICE float finish_row(float top, float total) const {
    const int row = first_row + warp() * kWarpRows + lane() % kWarpRows;
    float shrink = 1;
    if (rules.sinks.data) {
      const float* sinks = static_cast<const float*>(rules.sinks.data);
      const float sink = (row < rows() ? sinks[(s.first_head + row % s.group) * rules.sinks.strides[0]] : 0) * kLog2E;
      const float high = fmaxf(top, sink), base = high == -INFINITY ? 0.0f : high;
      shrink = exp2_approx(top - base);
      total = total * shrink + exp2_approx(sink - base);
      top = high;
    }
    if (s.length == kUnknown) total = NAN;
    if (args.lse.data && row < rows() && lane() < kWarpRows && dv_start == 0)
      *lse_at<float>(args, s, row) = total == 0 ? -INFINITY : top * kLn2 + logf(total);
    return total == 0 ? 0.0f : shrink / total;
  }
  DEVICE void store() {
    float own_top = 0, own_sum = 0;
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const float total = row_sum(sum[t][u]), its_top = shuffle(top[t][u] * unit(), lane() % 8 * 4), its_sum = shuffle(total, lane() % 8 * 4);
        own_top = lane() / 8 % (2 * kTall) == 2 * t + u ? its_top : own_top;
        own_sum = lane() / 8 % (2 * kTall) == 2 * t + u ? its_sum : own_sum;
      }
    }
    const float factor = finish_row(own_top, own_sum);
    const uint64_t place = warp_row(args.out);
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const int row = t * 16 + u * 8 + lane() / 4;
        const float inverse = shuffle(factor, row);
        unsigned char* to = reinterpret_cast<unsigned char*>(shuffle(place, row));
        if (to != nullptr) store_row(to + dv_start * 2, t, u, inverse);
      }
    }
  }
  DEVICE void store_row(unsigned char* to, int t, int u, float factor) const {
    UNROLL for (int n = 0; n < kWide; n++) {
      const int at = n * 8 + lane() % 4 * 2;
      if (at < dv) *reinterpret_cast<uint32_t*>(to + at * 2) = pack2<T>(acc[t][n][2 * u] * factor, acc[t][n][2 * u + 1] * factor);
    }
  }

};

}  // namespace heed
