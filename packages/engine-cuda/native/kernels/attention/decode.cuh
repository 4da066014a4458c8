// Attention of few query rows over long pages (Flash-Decoding: Dao, Haziza, Massa, Sizov 2023): what counts is the rate at which keys
// and values arrive. A block has 16 query rows of one key head, the G heads that share it side by side, and one part of a sequence; each
// of its four warps walks over every fourth group of 16 keys by itself, its own copies two groups ahead, and the four results meet at
// the end.
#pragma once
#include "int4.cuh"
#include "parts.cuh"

namespace heed {

constexpr int kDecodeRows = 16, kDecodeKeys = 16, kDecodeWarps = 4, kDecodeStages = 2;

// kBytes: of a stored number, 2 (T itself), 1 (codes of 8 bits with a scale to each row) or 0 (codes of 4 bits and residual pages).
template <class T, int kD, int kDv, int kBytes>
struct Decode {
  static constexpr int kWide = kDv / 8;
  static constexpr int kRawK = kD * kBytes + 16, kRawV = kDv * kBytes + 16;  // bytes of a staged row
  using Int4Keys = Int4<T, kD, true>;
  using Int4Values = Int4<T, kDv, false>;
  static constexpr int kStep = kDecodeKeys * kDecodeWarps;  // from one group of a warp to its next
  static_assert(kDecodeKeys == kInt4Rows, "a warp's keys are staged together");
  static constexpr int kStage = kBytes == 0 ? Int4Keys::kStage + Int4Values::kStage : kDecodeKeys * (kRawK + kRawV);
  static constexpr int kTerms = kBytes == 0 ? KeyTerms<T>::kCount : 1, kKeyTile = kDecodeKeys * Tile<kD>::kPitch;  // tiles that keys are the sum of
  static constexpr int kUnpacked = kBytes == 2 ? 0 : kDecodeKeys * (kTerms * Tile<kD>::kPitch + Tile<kDv>::kPitch);
  static constexpr int kWarpBytes = kDecodeStages * kStage + kUnpacked;
  static constexpr int kQBytes = kDecodeRows * Tile<kD>::kPitch;
  static constexpr int kShared = kQBytes + kDecodeWarps * kWarpBytes;
  static_assert(kDecodeWarps * kWarpBytes >= kDecodeWarps * kDecodeRows * (kDv + 2) * 4, "the warps' results fit where their keys were");

  const heed_cuda_attention& args;
  const heed_scores& rules;
  const Sequence& s;
  const int kv_head, first_row, d, dv, first_key;
  Range keys;
  static constexpr bool kKeepsQuery = kD <= 128;  // in registers, which are too few for more
  uint32_t query[kKeepsQuery ? kD / 16 : 1][4];
  float acc[kWide][4];
  float top[2], sum[2];

  DEVICE int sinks() const { return sink_end(rules, s); }  // kept as a member it makes kernels of head size 256 spill on 10.0
  DEVICE int warp_start() const { return kQBytes + warp() * kWarpBytes; }
  DEVICE uint32_t raw_key(int stage, int row) const { return shared_start() + warp_start() + stage * kStage + row * kRawK; }
  DEVICE uint32_t raw_value(int stage, int row) const { return shared_start() + warp_start() + stage * kStage + kDecodeKeys * kRawK + row * kRawV; }

  DEVICE void load_queries() const {
    const Tile<kD> tile = {shared_start()};
    for (int i = thread_x(); i < kDecodeRows * Tile<kD>::kChunks; i += 32 * kDecodeWarps) {
      const int row = i / Tile<kD>::kChunks, chunk = i % Tile<kD>::kChunks, at = first_row + row;
      const bool valid = at < s.rows() && chunk * 8 < d;
      copy_async_16(tile.at(row, chunk), valid ? row_at(args, args.q, s, at) + chunk * 16 : args.q.data, valid);
    }
  }
  // This warp's 16 keys and values from `first` on.
  DEVICE void load(int stage, int first) const {
    if constexpr (kBytes == 0) {
      int4_keys().load(warp_start() + stage * kStage, first);
      int4_values().load(warp_start() + stage * kStage + Int4Keys::kStage, first);
    } else {
      load_rows(stage, first);
    }
  }
  DEVICE Int4Keys int4_keys() const { return {stored_keys(args), s, kv_head, sinks(), keys}; }
  DEVICE Int4Values int4_values() const { return {stored_values(args), s, kv_head, sinks(), keys}; }
  DEVICE void load_rows(int stage, int first) const {
    constexpr int kKChunks = kD * kBytes / 16, kVChunks = kDv * kBytes / 16, kNumbers = 16 / (kBytes ? kBytes : 1);
    ROLLED for (int i = lane(); i < kDecodeKeys * kKChunks; i += 32) {
      const int row = i / kKChunks, chunk = i % kKChunks, j = first + row;
      const bool valid = is_seen(j, keys, sinks()) && chunk * kNumbers < d;
      copy_async_16(raw_key(stage, row) + chunk * 16, valid ? key_at(s, j) + chunk * 16 : s.k, valid);
    }
    ROLLED for (int i = lane(); i < kDecodeKeys * kVChunks; i += 32) {
      const int row = i / kVChunks, chunk = i % kVChunks, j = first + row;
      const bool valid = is_seen(j, keys, sinks()) && chunk * kNumbers < dv;
      copy_async_16(raw_value(stage, row) + chunk * 16, valid ? value_at(s, j) + chunk * 16 : s.v, valid);
    }
  }
  // Lane l < 16: the scale of key first + l; the others: of value first + l - 16. Without codes 1.
  DEVICE float scale_of(int first) const {
    if constexpr (kBytes != 1) return 1;
    const int j = first + lane() % 16;
    if (!is_seen(j, keys, sinks())) return 0;
    const heed_tensor& t = lane() < 16 ? args.k_scales : args.v_scales;
    const int64_t at = s.pages[j / s.page_size] * t.strides[0] + kv_head * t.strides[1] + j % s.page_size * t.strides[2];
    return static_cast<const float*>(t.data)[at];
  }
  DEVICE static float of_lane(float scale, int from) { return kBytes == 0 ? 1.0f : shuffle(scale, from); }
  DEVICE float number_of(uint32_t code) const {
    return args.format == HEED_PAGES_E4M3 ? from_e4m3(static_cast<uint8_t>(code)) : static_cast<float>(static_cast<int>(code) - 128);
  }
  // Codes of a staged row become T: exact, both formats fit 8 significant bits.
  template <int kWidth>
  DEVICE void unpack(int from, int from_pitch, int to) const {
    ROLLED for (int i = lane(); i < kDecodeKeys * kWidth / 4; i += 32) {
      const int row = i / (kWidth / 4), word = i % (kWidth / 4);
      const uint32_t codes = shared<uint32_t>(from + row * from_pitch + word * 4, 1)[0];
      const Shared<uint32_t> out = shared<uint32_t>(to + row * Tile<kWidth>::kPitch + word * 8, 2);
      out[0] = pack2<T>(number_of(codes & 0xff), number_of(codes >> 8 & 0xff));
      out[1] = pack2<T>(number_of(codes >> 16 & 0xff), number_of(codes >> 24));
    }
  }

  // Weights of 16 keys for rows lane / 4 and + 8, packed as an operand, values' scales taken in; top and sum go on.
  DEVICE void weigh(float (&scores)[2][4], int first, float scale, uint32_t (&weights)[4]) {
    const float factor = static_cast<float>(rules.scale), cap = static_cast<float>(rules.softcap);
    UNROLL for (int u = 0; u < 2; u++) {
      const int row = first_row + u * 8 + lane() / 4;
      const Range seen = row < s.rows() ? visible_keys(rules, s, row / s.group) : Range{0, 0};
      bool visible[2][2];
      float high = top[u];
      UNROLL for (int n = 0; n < 2; n++) {
        UNROLL for (int e = 0; e < 2; e++) {
          const int column = n * 8 + lane() % 4 * 2 + e, key = first + column;
          float x = scores[n][2 * u + e] * of_lane(scale, column) * factor;
          if (cap > 0) x = cap * tanhf(x / cap);
          if (rules.alibi_slopes.data && row < s.rows()) {
            const int64_t distance = s.offset + row / s.group - key;
            x -= float_at(rules.alibi_slopes, (s.first_head + row % s.group) * rules.alibi_slopes.strides[0]) * static_cast<float>(distance < 0 ? -distance : distance);
          }
          visible[n][e] = is_seen(key, seen, sinks());  // the groups that a warp takes lie within its part
          scores[n][2 * u + e] = visible[n][e] ? x * kLog2E : -INFINITY;
          high = fmaxf(high, scores[n][2 * u + e]);
        }
      }
      high = row_max(high);
      const float base = high == -INFINITY ? 0.0f : high, shrink = exp2_approx(top[u] - base);
      top[u] = high;
      float part = 0;
      UNROLL for (int n = 0; n < 2; n++) {
        float pair[2];
        UNROLL for (int e = 0; e < 2; e++) {
          const float weight = exp2_approx(scores[n][2 * u + e] - base);
          part += weight;
          const float value_scale = of_lane(scale, 16 + n * 8 + lane() % 4 * 2 + e);
          pair[e] = visible[n][e] ? weight * value_scale : 0.0f;
        }
        weights[2 * n + u] = pack2<T>(pair[0], pair[1]);
      }
      sum[u] = sum[u] * shrink + part;
      UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) acc[n][e] *= shrink;
    }
  }
  // Lanes' keys with a value that is not finite, a bit each; their values are cleared. A row that does not see them has a weight of 0.
  DEVICE uint32_t clear_odd_values(int values) const {
    bool odd = false;
    if (lane() < kDecodeKeys) {
      const Shared<uint32_t> row = shared<uint32_t>(values + lane() * Tile<kDv>::kPitch, kDv / 2);
      for (int w = 0; w < kDv / 2; w++) {
        const Pair x = unpack2<T>(row[w]);
        odd = odd || !(fabsf(x.low) < INFINITY && fabsf(x.high) < INFINITY);
      }
      if (odd)
        for (int w = 0; w < kDv / 2; w++) row[w] = 0;
    }
    const uint32_t bits = ballot(odd);
    sync_warp();
    return bits;
  }
  // Number `at` of an odd value; those of 4 bits stand in the tile again.
  DEVICE float value_number(int values, int row, const unsigned char* value, int at) const {
    if constexpr (kBytes == 0) {
      const Pair x = unpack2<T>(shared<uint32_t>(values + row * Tile<kDv>::kPitch + at / 2 * 4, 1)[0]);
      return at % 2 ? x.high : x.low;
    }
    return kBytes == 2 ? to_float(reinterpret_cast<const T*>(value)[at]) : number_of(value[at]);
  }
  DEVICE void add_odd_values(uint32_t bits, int first, int values, const uint32_t (&weights)[4]) {
    ROLLED for (int j = 0; j < kDecodeKeys; j++) {
      if (!(bits >> j & 1)) continue;
      const int key = first + j;
      if constexpr (kBytes == 0) {
        sync_warp();
        int4_values().fetch_row(key, j, values);
        sync_warp();
      }
      UNROLL for (int u = 0; u < 2; u++) {
        const Pair mine = unpack2<T>(j < 8 ? weights[u] : weights[2 + u]);
        const float weight = shuffle(j % 2 ? mine.high : mine.low, (lane() & ~3) | j % 8 / 2);
        const int row = first_row + u * 8 + lane() / 4;
        const Range seen = row < s.rows() ? visible_keys(rules, s, row / s.group) : Range{0, 0};
        if (!is_seen(key, seen, sinks())) continue;
        const unsigned char* value = value_at(s, key);
        UNROLL for (int n = 0; n < kWide; n++) {
          UNROLL for (int e = 0; e < 2; e++) {
            const int at = n * 8 + lane() % 4 * 2 + e;
            if (at >= dv) continue;
            acc[n][2 * u + e] += weight * value_number(values, j, value, at);
          }
        }
      }
    }
  }
  DEVICE void take(int stage, int first, float scale) {
    int k_rows = warp_start() + stage * kStage, v_rows = k_rows + kDecodeKeys * kRawK;
    if constexpr (kBytes != 2) {
      const int unpacked = warp_start() + kDecodeStages * kStage;
      if constexpr (kBytes == 1) {
        unpack<kD>(k_rows, kRawK, unpacked);
        unpack<kDv>(v_rows, kRawV, unpacked + kDecodeKeys * Tile<kD>::kPitch);
      } else {
        int4_keys().unpack(k_rows, first, unpacked);
        int4_values().unpack(k_rows + Int4Keys::kStage, first, unpacked + kTerms * kKeyTile);
      }
      sync_warp();
      k_rows = unpacked;
      v_rows = unpacked + kTerms * kKeyTile;
    }
    const Tile<kD> k_tile = {shared_start() + k_rows};
    const Tile<kDv> v_tile = {shared_start() + v_rows};
    float scores[2][4];
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) scores[n][e] = 0;
    UNROLL for (int k = 0; k < kD / 16; k++) {
      uint32_t b[4];
      if constexpr (!kKeepsQuery) load_a(query[0], Tile<kD>{shared_start()}, 0, k);
      const uint32_t(&a)[4] = query[kKeepsQuery ? k : 0];
      UNROLL for (int t = 0; t < kTerms; t++) {
        load_b_rows(b, Tile<kD>{k_tile.start + t * kKeyTile}, 0, k);
        mma_16x8x16<T>(scores[0], a, b[0], b[1]);
        mma_16x8x16<T>(scores[1], a, b[2], b[3]);
      }
    }
    uint32_t weights[4];
    weigh(scores, first, scale, weights);
    // Rows of one token see the same keys; others may differ at the ends of what they see.
    const uint32_t odd = s.tokens == 1 ? 0 : clear_odd_values(v_rows);
    UNROLL for (int n = 0; n < kDv / 16; n++) {
      uint32_t b[4];
      load_b_columns(b, v_tile, 0, n);
      mma_16x8x16<T>(acc[2 * n], weights, b[0], b[1]);
      mma_16x8x16<T>(acc[2 * n + 1], weights, b[2], b[3]);
    }
    if (odd) add_odd_values(odd, first, v_rows, weights);
  }
  // `group`, one of this warp's, or its first of the window where nobody sees those before that.
  DEVICE int seen_from(int group) const {
    return skip_hidden(group, sinks(), keys.begin / kStep * kStep + warp() * kDecodeKeys);
  }
  DEVICE void walk() {
    int first = seen_from(first_key + warp() * kDecodeKeys), stage = 0;
    static_assert(kDecodeStages == 2, "a stage is loaded with the group after the next");
    UNROLL for (int n = 0; n < kDecodeStages; n++) {
      const int ahead = n == 0 ? first : seen_from(first + kStep);
      if (ahead < keys.end) load(n, ahead);
      copy_async_commit();
    }
    float scale = first < keys.end ? scale_of(first) : 0;
    for (; first < keys.end; stage = (stage + 1) % kDecodeStages) {
      copy_async_wait<kDecodeStages - 1>();
      sync_warp();
      const int next = seen_from(first + kStep);
      const float next_scale = next < keys.end ? scale_of(next) : 0;
      take(stage, first, scale);
      first = next;
      scale = next_scale;
      sync_warp();  // nobody reads this stage any more
      const int ahead = seen_from(first + kStep);
      if (ahead < keys.end) load(stage, ahead);
      copy_async_commit();
    }
    copy_async_wait<0>();
  }

  // Where the warps' results stand: [warp][row][dv + 2], top and sum behind the row.
  DEVICE Shared<float> results() const { return shared<float>(kQBytes, kDecodeWarps * kDecodeRows * (kDv + 2)); }
  DEVICE void share_results() {
    sync_block();
    const Shared<float> out = results();
    UNROLL for (int u = 0; u < 2; u++) {
      const int at = (warp() * kDecodeRows + u * 8 + lane() / 4) * (kDv + 2);
      UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 2; e++) out[at + n * 8 + lane() % 4 * 2 + e] = acc[n][2 * u + e];
      const float total = row_sum(sum[u]);
      if (lane() % 4 == 0) {
        out[at + kDv] = top[u];
        out[at + kDv + 1] = total;
      }
    }
    sync_block();
  }
};

// Grid: tiles of rows, key heads, parts.
template <class T, int kD, int kDv, int kBytes>
DEVICE void attention_decode(const heed_cuda_attention& args) {
  const Work work = find_work(args, block_x(), kDecodeRows);
  if (work.sequence < 0) return;
  const Sequence s = sequence_of(args, work.sequence, block_y());
  if (s.tokens == 0) return;  // of a table that does not fit
  const int first_row = work.tile * kDecodeRows, dv = static_cast<int>(args.out.shape[2]);
  const int last_row = first_row + kDecodeRows < s.rows() ? first_row + kDecodeRows - 1 : s.rows() - 1;
  const Range seen = {visible_keys(args.scores, s, first_row / s.group).begin, visible_keys(args.scores, s, last_row / s.group).end};
  const int sinks = sink_end(args.scores, s);
  const Part part = part_of(s, seen, sinks, kDecodeKeys * kDecodeWarps, args.part, block_z());
  if (part.index < 0) return;
  Decode<T, kD, kDv, kBytes> decode = {args, args.scores, s, static_cast<int>(block_y()), first_row, static_cast<int>(args.q.shape[2]), dv, part.first, part.keys};
  decode.load_queries();
  copy_async_commit();
  copy_async_wait<0>();
  sync_block();
  if constexpr (decode.kKeepsQuery)
    UNROLL for (int k = 0; k < kD / 16; k++) load_a(decode.query[k], Tile<kD>{shared_start()}, 0, k);
  UNROLL for (int n = 0; n < kDv / 8; n++) UNROLL for (int e = 0; e < 4; e++) decode.acc[n][e] = 0;
  UNROLL for (int u = 0; u < 2; u++) decode.top[u] = -INFINITY, decode.sum[u] = 0;
  decode.walk();
  decode.share_results();
  const Shared<float> results = decode.results();
  const int tiles = (s.group + kDecodeRows - 1) / kDecodeRows;
  meet<T>(args, s, part, first_row, last_row - first_row + 1, work.tile, tiles, 0, [&](int row, int column) {
    Merged m;
    UNROLL for (int w = 0; w < kDecodeWarps; w++) {
      const int at = (w * kDecodeRows + row) * (kDv + 2);
      m.add(results[at + kDv], results[at + kDv + 1], results[at + column]);
    }
    return m;
  });
}

}  // namespace heed
