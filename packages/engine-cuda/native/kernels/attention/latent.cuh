// Decode of multi-head latent attention, absorbed (DeepSeek-V2: 2024, arXiv:2405.04434): all query heads share one key head whose rows
// hold the latent and the rotary key, and the values are the latents, a prefix of the keys, so that each row is fetched once.
//
// A block has 64 query rows, 16 to a pair of warps. The two of a pair take the scores of 16 keys of a tile of 32 each, agree on the
// largest, share the weights and take half of the values each. Keys arrive two tiles ahead.
#pragma once
#include "fragments.cuh"
#include "parts.cuh"

namespace heed {

constexpr int kLatentRows = 64, kLatentKeys = 32, kLatentWarps = 8, kLatentD = 576, kLatentDv = 512, kLatentStages = 2;

template <class T>
struct Latent {
  using Row = Tile<kLatentD>;
  using WeightRow = Tile<kLatentKeys>;
  static constexpr int kHalf = kLatentDv / 2, kWide = kHalf / 8;
  static constexpr int kQBytes = kLatentRows * Row::kPitch, kStage = kLatentKeys * Row::kPitch;
  static constexpr int kWeights = kQBytes + kLatentStages * kStage;            // weights of the tile, T [64, 32]
  static constexpr int kTops = kWeights + kLatentRows * WeightRow::kPitch;     // float [2 warps of a pair, 64]
  static constexpr int kSums = kTops + 2 * kLatentRows * 4;                    // float [2, 64]
  static constexpr int kMarks = kSums + 2 * kLatentRows * 4;                   // a bit for each key with a value that is not finite
  static constexpr int kShared = kMarks + 16;
  static_assert(kLatentRows * (kLatentDv + 2) * 4 <= kWeights, "the results fit where queries and keys were");

  const heed_cuda_attention& args;
  const heed_scores& rules;
  const Sequence& s;
  const int first_row, d, dv, first_key;
  Range keys;
  float acc[kWide][4];
  float top[2], sum[2];  // of rows lane / 4 and + 8, the sum of this warp's keys

  DEVICE int sinks() const { return sink_end(rules, s); }  // kept as a member it spills on 10.0
  DEVICE int pair() const { return warp() / 2; }
  DEVICE int half() const { return warp() % 2; }
  DEVICE int row_of(int u) const { return pair() * 16 + u * 8 + lane() / 4; }  // of the tile

  DEVICE void load_queries() const {
    const Row tile = {shared_start()};
    ROLLED for (int i = thread_x(); i < kLatentRows * Row::kChunks; i += 32 * kLatentWarps) {
      const int row = i / Row::kChunks, chunk = i % Row::kChunks, at = first_row + row;
      const bool valid = at < s.rows() && chunk * 8 < d;
      copy_async_16(tile.at(row, chunk), valid ? row_at(args, args.q, s, at) + chunk * 16 : args.q.data, valid);
    }
  }
  DEVICE Row stage_rows(int stage) const { return {shared_start() + kQBytes + stage * kStage}; }
  DEVICE void load(int stage, int first) const {
    const Row tile = stage_rows(stage);
    ROLLED for (int i = thread_x(); i < kLatentKeys * Row::kChunks; i += 32 * kLatentWarps) {
      const int row = i / Row::kChunks, chunk = i % Row::kChunks, j = first + row;
      const bool valid = is_seen(j, keys, sinks()) && chunk * 8 < d;
      copy_async_16(tile.at(row, chunk), valid ? key_at(s, j) + chunk * 16 : s.k, valid);
    }
  }
  // Scores of this warp's 16 keys in units of ln 2, hidden ones -infinity.
  DEVICE void score(int stage, int first, float (&scores)[2][4]) const {
    const Row q = {shared_start()}, k = stage_rows(stage);
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) scores[n][e] = 0;
    _Pragma("unroll 4") for (int step = 0; step < kLatentD / 16; step++) {
      uint32_t a[4], b[4];
      load_a(a, q, pair() * 16, step);
      load_b_rows(b, k, half() * 16, step);
      mma_16x8x16<T>(scores[0], a, b[0], b[1]);
      mma_16x8x16<T>(scores[1], a, b[2], b[3]);
    }
    const float factor = static_cast<float>(rules.scale), cap = static_cast<float>(rules.softcap);
    UNROLL for (int u = 0; u < 2; u++) {
      const int row = first_row + row_of(u);
      const Range seen = row < s.rows() ? visible_keys(rules, s, row / s.group) : Range{0, 0};
      UNROLL for (int n = 0; n < 2; n++) {
        UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) {
          const int key = first + half() * 16 + n * 8 + lane() % 4 * 2 + e % 2;
          float x = scores[n][e] * factor;
          if (cap > 0) x = cap * tanhf(x / cap);
          scores[n][e] = is_seen(key, seen, sinks()) ? x * kLog2E : -INFINITY;  // the tile lies within the block's part
        }
      }
    }
  }
  // The pair agrees on the largest score of each row; weights into shared memory.
  DEVICE void weigh(float (&scores)[2][4]) {
    const Shared<float> tops = shared<float>(kTops, 2 * kLatentRows);
    UNROLL for (int u = 0; u < 2; u++) {
      const float own = row_max(fmaxf(fmaxf(scores[0][2 * u], scores[0][2 * u + 1]), fmaxf(scores[1][2 * u], scores[1][2 * u + 1])));
      if (lane() % 4 == 0) tops[half() * kLatentRows + row_of(u)] = own;
    }
    sync_block();
    UNROLL for (int u = 0; u < 2; u++) {
      const float high = fmaxf(top[u], fmaxf(tops[row_of(u)], tops[kLatentRows + row_of(u)]));
      const float base = high == -INFINITY ? 0.0f : high, shrink = exp2_approx(top[u] - base);
      top[u] = high;
      float part = 0;
      UNROLL for (int n = 0; n < 2; n++) {
        const float low = exp2_approx(scores[n][2 * u] - base), next = exp2_approx(scores[n][2 * u + 1] - base);
        part += low + next;
        shared<uint32_t>(kWeights + row_of(u) * WeightRow::kPitch + (half() * 16 + n * 8 + lane() % 4 * 2) * 2, 1)[0] = pack2<T>(low, next);
      }
      sum[u] = sum[u] * shrink + part;
      UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) acc[n][e] *= shrink;
    }
    sync_block();
  }
  DEVICE void multiply_values(int stage) {
    const WeightRow weights = {shared_start() + kWeights};
    const Row values = stage_rows(stage);
    UNROLL for (int k = 0; k < kLatentKeys / 16; k++) {
      uint32_t a[4];
      load_a(a, weights, pair() * 16, k);
      UNROLL for (int n = 0; n < kHalf / 16; n++) {
        uint32_t b[4];
        load_b_columns(b, values, k * 16, half() * (kHalf / 16) + n);
        mma_16x8x16<T>(acc[2 * n], a, b[0], b[1]);
        mma_16x8x16<T>(acc[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  // Where rows see different keys: clears the values of keys that have any which is not finite, a bit each. Their weights are there.
  DEVICE uint32_t clear_odd_values(int stage) const {
    if (warp() == 0) {
      const Shared<uint32_t> row = shared<uint32_t>(kQBytes + stage * kStage + lane() * Row::kPitch, kLatentDv / 2);
      bool odd = false;
      for (int w = 0; w < kLatentDv / 2; w++) {
        const Pair x = unpack2<T>(row[w]);
        odd = odd || !(fabsf(x.low) < INFINITY && fabsf(x.high) < INFINITY);
      }
      if (odd)
        for (int w = 0; w < kLatentDv / 2; w++) row[w] = 0;
      const uint32_t bits = ballot(odd);
      if (lane() == 0) shared<uint32_t>(kMarks, 1)[0] = bits;
    }
    sync_block();
    return shared<uint32_t>(kMarks, 1)[0];
  }
  DEVICE void add_odd_values(uint32_t bits, int first) {
    ROLLED for (int j = 0; j < kLatentKeys; j++) {
      if (!(bits >> j & 1)) continue;
      UNROLL for (int u = 0; u < 2; u++) {
        const int row = first_row + row_of(u);
        const Range seen = row < s.rows() ? visible_keys(rules, s, row / s.group) : Range{0, 0};
        if (!is_seen(first + j, seen, sinks())) continue;
        const float weight = to_float(shared<T>(kWeights + row_of(u) * WeightRow::kPitch + j * 2, 1)[0]);
        const T* value = reinterpret_cast<const T*>(value_at(s, first + j)) + half() * kHalf;
        UNROLL for (int n = 0; n < kWide; n++) {
          UNROLL for (int e = 0; e < 2; e++) {
            const int at = n * 8 + lane() % 4 * 2 + e;
            if (half() * kHalf + at < dv) acc[n][2 * u + e] += weight * to_float(value[at]);
          }
        }
      }
    }
  }
  DEVICE int seen_from(int tile) const { return skip_hidden(tile, sinks(), keys.begin / kLatentKeys * kLatentKeys); }
  DEVICE void walk() {
    int first = seen_from(first_key), ahead = first;  // ahead: the tile that is loaded next
    UNROLL for (int n = 0; n < kLatentStages; n++) {
      if (ahead < keys.end) load(n, ahead);
      copy_async_commit();
      ahead = seen_from(ahead + kLatentKeys);
    }
    ROLLED for (int stage = 0; first < keys.end; first = seen_from(first + kLatentKeys), stage = (stage + 1) % kLatentStages) {
      copy_async_wait<kLatentStages - 1>();
      sync_block();
      float scores[2][4];
      score(stage, first, scores);
      weigh(scores);
      const uint32_t odd = s.tokens == 1 ? 0 : clear_odd_values(stage);
      multiply_values(stage);
      if (odd) add_odd_values(odd, first);
      sync_block();  // nobody reads this stage or the weights any more
      if (ahead < keys.end) load(stage, ahead);
      copy_async_commit();
      ahead = seen_from(ahead + kLatentKeys);
    }
    copy_async_wait<0>();
  }
  // [64, dv + 2], top and sum behind the row.
  DEVICE Shared<float> results() const { return shared<float>(0, kLatentRows * (kLatentDv + 2)); }
  DEVICE void share_results() {
    const Shared<float> sums = shared<float>(kSums, 2 * kLatentRows), out = results();
    UNROLL for (int u = 0; u < 2; u++) {
      const float total = row_sum(sum[u]);
      if (lane() % 4 == 0) sums[half() * kLatentRows + row_of(u)] = total;
    }
    sync_block();
    UNROLL for (int u = 0; u < 2; u++) {
      const int at = row_of(u) * (kLatentDv + 2);
      UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 2; e++) out[at + half() * kHalf + n * 8 + lane() % 4 * 2 + e] = acc[n][2 * u + e];
      if (lane() % 4 == 0 && half() == 0) {
        out[at + kLatentDv] = top[u];
        out[at + kLatentDv + 1] = sums[row_of(u)] + sums[kLatentRows + row_of(u)];
      }
    }
    sync_block();
  }
};

// Grid: tiles of rows, key heads, parts.
template <class T>
DEVICE void attention_latent(const heed_cuda_attention& args) {
  const Work work = find_work(args, block_x(), kLatentRows);
  if (work.sequence < 0) return;
  const Sequence s = sequence_of(args, work.sequence, block_y());
  if (s.tokens == 0) return;  // of a table that does not fit
  const int first_row = work.tile * kLatentRows;
  const int last_row = first_row + kLatentRows < s.rows() ? first_row + kLatentRows - 1 : s.rows() - 1;
  const Range seen = {visible_keys(args.scores, s, first_row / s.group).begin, visible_keys(args.scores, s, last_row / s.group).end};
  const int sinks = sink_end(args.scores, s);
  const Part part = part_of(s, seen, sinks, kLatentKeys, args.part, block_z());
  if (part.index < 0) return;
  Latent<T> latent = {args, args.scores, s, first_row, static_cast<int>(args.q.shape[2]), static_cast<int>(args.out.shape[2]), part.first, part.keys};
  latent.load_queries();
  UNROLL for (int n = 0; n < latent.kWide; n++) UNROLL for (int e = 0; e < 4; e++) latent.acc[n][e] = 0;
  UNROLL for (int u = 0; u < 2; u++) latent.top[u] = -INFINITY, latent.sum[u] = 0;
  latent.walk();
  sync_block();
  latent.share_results();
  const Shared<float> results = latent.results();
  const int tiles = (s.group + kLatentRows - 1) / kLatentRows;
  meet<T>(args, s, part, first_row, last_row - first_row + 1, work.tile, tiles, Latent<T>::kTops, [&](int row, int column) {
    const int at = row * (kLatentDv + 2);
    Merged m;
    m.add(results[at + kLatentDv], results[at + kLatentDv + 1], results[at + column]);
    return m;
  });
}

}  // namespace heed
