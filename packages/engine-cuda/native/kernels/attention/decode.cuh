// Attention of few query rows over long pages (Flash-Decoding: Dao, Haziza, Massa, Sizov 2023): what counts is the rate at which keys
// and values arrive. A block has 16 query rows of one key head, the G heads that share it side by side, and one part of a sequence; each
// of its four warps walks over every fourth group of 16 keys by itself, its own copies two or four groups ahead, and the four results
// meet at the end. A group of 16 keys in one page is copied from one address on; edges, and pages of other sizes, row by row.
#pragma once
#include "codes.cuh"
#include "int4.cuh"
#include "parts.cuh"
#include "staging.cuh"

namespace heed {

constexpr int kDecodeRows = 16, kDecodeKeys = 16, kDecodeWarps = 4;
constexpr int kInt4Middle = 8;  // of a value's codes: what is multiplied is then small where the value is near the middle of its group

// kBytes: of a stored number, 2 (T itself), 1 (codes of 8 bits with a scale to each row) or 0 (codes of 4 bits and residual pages).
template <class T, int kD, int kDv, int kBytes>
struct Decode {
  static constexpr int kWide = kDv / 8;
  static constexpr int kRawK = kD * kBytes + 16, kRawV = kDv * kBytes + 16;  // bytes of a staged row
  using Int4Keys = Int4<T, kD, true>;
  using Int4Values = Int4<T, kDv, false>;
  static constexpr int kKeys = kBytes == 0 ? kInt4Rows : kDecodeKeys;  // that a warp takes at once
  static constexpr int kStep = kKeys * kDecodeWarps;  // from one group of a warp to its next
  static constexpr int kStages = kBytes == 1 && kD <= 128 ? 4 : 2;
  static constexpr int kStage = kBytes == 0 ? Int4Keys::kStage + Int4Values::kStage : kDecodeKeys * (kRawK + kRawV);
  static_assert(kBytes != 0 || (kStage >= Int4Keys::kTile && kStage >= Int4Values::kTile), "a stage without codes holds a tile of numbers");
  static constexpr int kWarpBytes = kStages * kStage;
  static constexpr int kQBytes = kDecodeRows * Tile<kD>::kPitch;
  static constexpr int kShared = kQBytes + kDecodeWarps * kWarpBytes;
  static constexpr int kResult = kDv + 8;  // floats of a row of results: the 8 rows that a warp stores at once lie in different banks
  static_assert(kWarpBytes >= kDecodeRows * kResult * 4, "the warps' results fit where their keys were");

  const heed_cuda_attention& args;
  const heed_scores& rules;
  const Sequence& s;
  const int first_row, first_key;
  Range keys;
  const float factor;  // of scores
  const bool scaled_only;
  const Range common;  // keys that all rows of the tile see
  const bool upper;   // whether there are more than 8 rows
  // Pages of a power of two and at least 16 tokens: a group lies in one, and this is the power. Else -1.
  const int page_bits;
  // Operands of queries in registers, as many as leave three blocks to a multiprocessor; the others are fetched again and again.
  static constexpr int kKept = kBytes == 0 ? 0 : kD == 64 ? (kBytes == 1 ? 2 : 4) : kD == 128 && kBytes == 2 ? 4 : 0;
  uint32_t query[kKept ? kKept : 1][4];
  float acc[kWide][4];
  float top[2], sum[2];
  Range seen[2];  // by rows lane / 4 and + 8
  // Of 4 bits: sums of weights and zeros of this lane's keys, by 32 channels. They go to acc at the end, or at once where registers are few.
  static constexpr bool kKeepsZeros = kBytes == 0 && kDv <= 128;
  float zeros[2][kKeepsZeros ? kDv / 32 : 1];

  DEVICE int d() const { return static_cast<int>(args.q.shape[2]); }
  DEVICE int dv() const { return static_cast<int>(args.out.shape[2]); }
  DEVICE int sinks() const { return sink_end(rules, s); }  // kept as a member it makes kernels of head size 256 spill on 10.0
  DEVICE int warp_start() const { return kQBytes + warp() * kWarpBytes; }
  DEVICE uint32_t raw_key(int stage, int row) const { return shared_start() + warp_start() + stage * kStage + row * kRawK; }
  DEVICE uint32_t raw_value(int stage, int row) const { return shared_start() + warp_start() + stage * kStage + kDecodeKeys * kRawK + row * kRawV; }

  DEVICE void load_queries() const {
    const Tile<kD> tile = {shared_start()};
    for (int i = thread_x(); i < kDecodeRows * Tile<kD>::kChunks; i += 32 * kDecodeWarps) {
      const int row = i / Tile<kD>::kChunks, chunk = i % Tile<kD>::kChunks, at = first_row + row;
      const bool valid = at < s.rows() && chunk * 8 < d();
      copy_async_16(tile.at(row, chunk), valid ? row_at(args, args.q, s, at) + chunk * 16 : args.q.data, valid);
    }
  }
  // The page of the group from `first` on, where one has all of it.
  DEVICE int page_of(int first) const { return page_bits >= 0 && first < keys.end ? s.pages[first >> page_bits] : 0; }
  // This warp's 16 keys and values from `first` on.
  DEVICE void load(int stage, int first, int page) const {
    const int row = first & (1 << page_bits) - 1;
    if constexpr (kBytes == 0) {
      if (!is_staged(first, page)) return;
      int4_keys().load(warp_start() + stage * kStage, page, row);
      int4_values().load(warp_start() + stage * kStage + Int4Keys::kStage, page, row);
    } else if (page_bits >= 0 && first >= keys.begin && first + kDecodeKeys <= keys.end) {
      copy_rows<kD * kBytes, kRawK, kDecodeKeys>(raw_key(stage, 0), s.k + page * s.k_page + static_cast<int64_t>(row) * s.k_token, s.k_token, d() * kBytes);
      copy_rows<kDv * kBytes, kRawV, kDecodeKeys>(raw_value(stage, 0), s.v + page * s.v_page + static_cast<int64_t>(row) * s.v_token, s.v_token, dv() * kBytes);
    } else {
      load_rows(stage, first);
    }
  }
  // Whether `count` keys are seen, be it as sinks or by the window.
  DEVICE bool all_seen(int first, int count, Range window) const {
    return first + count <= window.end && (first >= window.begin || first + count <= sinks() || sinks() >= window.begin);
  }
  // Whether 32 tokens that all rows see lie in one page of codes.
  DEVICE bool is_staged(int first, int page) const {
    return page_bits >= 5 && all_seen(first, kKeys, keys) && all_seen(first, kKeys, common) && page < args.k.shape[0];
  }
  DEVICE Int4Keys int4_keys() const { return {stored_keys(args), s, block_y(), sinks(), keys}; }
  DEVICE Int4Values int4_values() const { return {stored_values(args), s, block_y(), sinks(), keys}; }
  DEVICE void load_rows(int stage, int first) const {
    constexpr int kKChunks = kD * kBytes / 16, kVChunks = kDv * kBytes / 16, kNumbers = 16 / (kBytes ? kBytes : 1);
    ROLLED for (int i = lane(); i < kDecodeKeys * kKChunks; i += 32) {
      const int row = i / kKChunks, chunk = i % kKChunks, j = first + row;
      const bool valid = is_seen(j, keys, sinks()) && chunk * kNumbers < d();
      copy_async_16(raw_key(stage, row) + chunk * 16, valid ? key_at(s, j) + chunk * 16 : s.k, valid);
    }
    ROLLED for (int i = lane(); i < kDecodeKeys * kVChunks; i += 32) {
      const int row = i / kVChunks, chunk = i % kVChunks, j = first + row;
      const bool valid = is_seen(j, keys, sinks()) && chunk * kNumbers < dv();
      copy_async_16(raw_value(stage, row) + chunk * 16, valid ? value_at(s, j) + chunk * 16 : s.v, valid);
    }
  }
  // Lane l < 16: the scale of key first + l; the others: of value first + l - 16. Without codes 1.
  DEVICE float scale_of(int first) const {
    if constexpr (kBytes != 1) return 1;
    const int j = first + lane() % 16;
    if (!is_seen(j, keys, sinks())) return 0;
    const heed_tensor& t = lane() < 16 ? args.k_scales : args.v_scales;
    const int slot = page_bits >= 0 ? j >> page_bits : j / s.page_size, row = j - slot * s.page_size;
    const int64_t at = s.pages[slot] * t.strides[0] + block_y() * t.strides[1] + row * t.strides[2];
    return static_cast<const float*>(t.data)[at];
  }
  DEVICE float number_of(uint32_t code) const {
    return args.format == HEED_PAGES_E4M3 ? from_e4m3(static_cast<uint8_t>(code)) : static_cast<float>(static_cast<int>(code) - 128);
  }
  // Scores of 16 keys for rows lane / 4 and + 8 become weights, values' scales taken in; top and sum go on. kPlain: every row sees all of
  // the keys, and their scores are only scaled; the other way gives them the same bits.
  template <bool kPlain>
  DEVICE void weigh(float (&scores)[2][4], int first, float scale) {
    const float cap = static_cast<float>(rules.softcap);
    float key_scales[2][2], value_scales[2][2], shrink[2] = {1, 1};
    UNROLL for (int n = 0; n < 2; n++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const int column = n * 8 + lane() % 4 * 2 + e;
        key_scales[n][e] = kBytes == 1 ? shuffle(scale, column) : 1.0f;
        value_scales[n][e] = kBytes == 1 ? shuffle(scale, 16 + column) : 1.0f;
      }
    }
    UNROLL for (int u = 0; u < 2; u++) {
      if (u == 1 && !upper) {
        UNROLL for (int n = 0; n < 2; n++) scores[n][2] = scores[n][3] = 0;
        break;
      }
      const int row = first_row + u * 8 + lane() / 4;
      bool visible[2][2];
      float high = top[u];
      float slope = 0;
      int position = 0;
      if (!kPlain && rules.alibi_slopes.data && row < s.rows()) {
        slope = float_at(rules.alibi_slopes, (s.first_head + row % s.group) * rules.alibi_slopes.strides[0]);
        position = s.length - s.tokens + row / s.group;
      }
      UNROLL for (int n = 0; n < 2; n++) {
        UNROLL for (int e = 0; e < 2; e++) {
          const int key = first + n * 8 + lane() % 4 * 2 + e;
          float x = kBytes == 1 ? scores[n][2 * u + e] * key_scales[n][e] : scores[n][2 * u + e];
          if constexpr (kPlain) {
            x *= factor * kLog2E;
            visible[n][e] = true;
          } else {
            x *= scaled_only ? factor * kLog2E : factor;
            if (cap > 0) x = cap * tanhf(x / cap);
            if (rules.alibi_slopes.data) x -= slope * static_cast<float>(position < key ? key - position : position - key);
            visible[n][e] = is_seen(key, seen[u], sinks());  // the groups that a warp takes lie within its part
            if (!scaled_only) x *= kLog2E;
            if (!visible[n][e]) x = -INFINITY;
          }
          scores[n][2 * u + e] = x;
          high = fmaxf(high, x);
        }
      }
      high = row_max(high);
      const float base = high == -INFINITY ? 0.0f : high;
      shrink[u] = exp2_approx(top[u] - base);
      top[u] = high;
      float part = 0;
      UNROLL for (int n = 0; n < 2; n++) {
        UNROLL for (int e = 0; e < 2; e++) {
          const float weight = exp2_approx(scores[n][2 * u + e] - base);
          part += weight;
          const float scaled = kBytes == 1 ? weight * value_scales[n][e] : weight;
          scores[n][2 * u + e] = visible[n][e] ? scaled : 0.0f;
        }
      }
      sum[u] = sum[u] * shrink[u] + part;
    }
    if (ballot(!(shrink[0] == 1 && shrink[1] == 1)) == 0) return;  // as in most groups, but for the first few
    UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 4; e++) acc[n][e] *= shrink[e / 2];
    if constexpr (kKeepsZeros)
      UNROLL for (int u = 0; u < 2; u++) UNROLL for (int g = 0; g < kDv / 32; g++) zeros[u][g] *= shrink[u];
  }
  DEVICE static void pack_weights(const float (&scores)[2][4], uint32_t (&weights)[4]) {
    UNROLL for (int i = 0; i < 4; i++) weights[i] = pack2<T>(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]);
  }
  // Where number e of a lane in output tile n stands. Codes of values come in pairs of columns: tile n has every second of 16.
  DEVICE static int column_of(int n, int e) {
    return kBytes != 2 ? n / 2 * 16 + lane() % 4 * 4 + e * 2 + n % 2 : n * 8 + lane() % 4 * 2 + e;
  }
  // Lanes' keys with a value that is not finite, a bit each; their values are cleared. A row that does not see them has a weight of 0.
  DEVICE uint32_t clear_odd_values(int values) const {
    constexpr int kWords = kBytes == 1 ? kDv / 4 : kDv / 2;
    bool odd = false;
    if (lane() < kDecodeKeys) {
      const Shared<uint32_t> row = shared<uint32_t>(values + lane() * (kBytes == 1 ? kRawV : Tile<kDv>::kPitch), kWords);
      ROLLED for (int w = 0; w < kWords; w++) {
        if constexpr (kBytes == 1) {
          odd = odd || ((row[w] & 0x7f7f7f7f) + 0x01010101 & 0x80808080);
        } else {
          const Pair x = unpack2<T>(row[w]);
          odd = odd || !(fabsf(x.low) < INFINITY && fabsf(x.high) < INFINITY);
        }
      }
      if (odd)
        ROLLED for (int w = 0; w < kWords; w++) row[w] = 0;
    }
    const uint32_t bits = ballot(odd);
    sync_warp();
    return bits;
  }
  // Number `at` of an odd value; those of 4 bits stand in the tile again.
  DEVICE float value_number(int values, int row, const unsigned char* value, int at) const {
    if constexpr (kBytes == 0) return to_float(T{Int4Values::tile_number(values + row * Tile<kDv>::kPitch, at)});
    return kBytes == 2 ? to_float(reinterpret_cast<const T*>(value)[at]) : number_of(value[at]);
  }
  DEVICE void add_odd_values(uint32_t bits, int first, int values, const uint32_t (&weights)[4]) {
    ROLLED for (int j = 0; j < kDecodeKeys; j++) {
      if (!(bits >> j & 1)) continue;
      const int key = first + j;
      if constexpr (kBytes == 0) {
        sync_warp();
        int4_values().fetch(first, 0, false, values, j, j + 1);
        sync_warp();
      }
      UNROLL for (int u = 0; u < 2; u++) {
        const Pair mine = unpack2<T>(j < 8 ? weights[u] : weights[2 + u]);
        const float weight = shuffle(j % 2 ? mine.high : mine.low, (lane() & ~3) | j % 8 / 2);
        if (!is_seen(key, seen[u], sinks())) continue;
        const unsigned char* value = kBytes == 0 ? nullptr : value_at(s, key);
        UNROLL for (int n = 0; n < kWide; n++) {
          UNROLL for (int e = 0; e < 2; e++) {
            const int at = column_of(n, e);
            if (at >= dv()) continue;
            acc[n][2 * u + e] += weight * value_number(values, j, value, at);
          }
        }
      }
    }
  }
  DEVICE void weigh_group(float (&scores)[2][4], int first, float scale) {
    if (scaled_only && first >= common.begin && first + kDecodeKeys <= common.end) weigh<true>(scores, first, scale);
    else weigh<false>(scores, first, scale);
  }
  // Where a lane's row of a matrix of 8 rows and 16 bytes lies, of four: rows of both halves, then the next 16 bytes.
  DEVICE static uint32_t code_matrix(uint32_t start, int pitch, int chunk) {
    return start + (lane() & 15) * pitch + (chunk + (lane() >> 4)) * 16;
  }
  // Codes go from shared memory to operands directly. Keys: a lane's word is numbers 4 (l % 4) .. + 3 of 16, see turn_queries.
  // Values: its word is two columns of two keys.
  template <bool kE4m3>
  DEVICE void multiply_code_keys(int stage, float (&scores)[2][4]) const {
    UNROLL for (int c = 0; c < kD / 16; c += 2) {
      uint32_t codes[4];
      load_matrix_x4(codes, code_matrix(raw_key(stage, 0), kRawK, c));
      UNROLL for (int h = 0; h < 2; h++) {
        uint32_t a[4];
        if (c + h < kKept) UNROLL for (int i = 0; i < 4; i++) a[i] = query[c + h][i];
        else load_a(a, Tile<kD>{shared_start()}, 0, c + h);
        UNROLL for (int n = 0; n < 2; n++) {
          uint32_t b[2];
          unpack_codes<T, kE4m3, true>(codes[2 * h + n], b[0], b[1]);
          mma_16x8x16<T>(scores[n], a, b[0], b[1]);
        }
      }
    }
  }
  template <bool kE4m3>
  DEVICE void multiply_code_values(int stage, const uint32_t (&weights)[4]) {
    UNROLL for (int c = 0; c < kDv / 16; c += 2) {
      uint32_t codes[4];
      load_matrix_x4_transposed(codes, code_matrix(raw_value(stage, 0), kRawV, c));
      UNROLL for (int h = 0; h < 2; h++) {
        uint32_t even[2], uneven[2];
        UNROLL for (int k = 0; k < 2; k++) unpack_codes<T, kE4m3, false>(codes[2 * h + k], even[k], uneven[k]);
        mma_16x8x16<T>(acc[2 * (c + h)], weights, even[0], even[1]);
        mma_16x8x16<T>(acc[2 * (c + h) + 1], weights, uneven[0], uneven[1]);
      }
    }
  }
  DEVICE void take_codes(int stage, int first, float scale) {
    const bool e4m3 = args.format == HEED_PAGES_E4M3;
    float scores[2][4];
    clear(scores);
    if (e4m3) multiply_code_keys<true>(stage, scores);
    else multiply_code_keys<false>(stage, scores);
    weigh_group(scores, first, scale);
    uint32_t weights[4];
    pack_weights(scores, weights);
    const int values = warp_start() + stage * kStage + kDecodeKeys * kRawK;
    const uint32_t odd = s.tokens == 1 || !e4m3 ? 0 : clear_odd_values(values);
    if (e4m3) multiply_code_values<true>(stage, weights);
    else multiply_code_values<false>(stage, weights);
    if (odd) add_odd_values(odd, first, values, weights);
  }
  DEVICE void take(int stage, int first, float scale) {
    if constexpr (kBytes == 2) {
      take_numbers(stage, first, scale);
    } else if constexpr (kBytes == 1) {
      take_codes(stage, first, scale);
    } else {
      if (is_staged(first, page_of(first))) take_int4(stage, first);
      else take_loose(stage, first);
    }
  }
  DEVICE static void clear(float (&scores)[2][4]) {
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) scores[n][e] = 0;
  }
  DEVICE static void multiply_key(int k_rows, int k, const uint32_t (&a)[4], float (&scores)[2][4]) {
    uint32_t b[4];
    load_b_rows(b, Tile<kD>{shared_start() + k_rows}, 0, k);
    mma_16x8x16<T>(scores[0], a, b[0], b[1]);
    mma_16x8x16<T>(scores[1], a, b[2], b[3]);
  }
  DEVICE static void multiply_key(int k_rows, int k, float (&scores)[2][4]) {
    uint32_t a[4];
    load_a(a, Tile<kD>{shared_start()}, 0, k);
    multiply_key(k_rows, k, a, scores);
  }
  DEVICE void multiply_keys(int k_rows, float (&scores)[2][4]) {
    UNROLL for (int k = 0; k < kKept; k++) multiply_key(k_rows, k, query[k], scores);
    if constexpr (kBytes == 0) {
      ROLLED for (int k = 0; k < kD / 16; k++) multiply_key(k_rows, k, scores);
    } else {
      UNROLL for (int k = kKept; k < kD / 16; k++) multiply_key(k_rows, k, scores);
    }
  }
  DEVICE void multiply_values(int v_rows, int first, const float (&scores)[2][4]) {
    uint32_t weights[4];
    pack_weights(scores, weights);
    // Rows of one token see the same keys; others may differ at the ends of what they see.
    const uint32_t odd = s.tokens == 1 ? 0 : clear_odd_values(v_rows);
    const Tile<kDv> v_tile = {shared_start() + v_rows};
    UNROLL for (int n = 0; n < kDv / 16; n++) {
      uint32_t b[4];
      load_b_columns(b, v_tile, 0, n);
      mma_16x8x16<T>(acc[2 * n], weights, b[0], b[1]);
      mma_16x8x16<T>(acc[2 * n + 1], weights, b[2], b[3]);
    }
    if (odd) add_odd_values(odd, first, v_rows, weights);
  }
  DEVICE void take_numbers(int stage, int first, float scale) {
    const int k_rows = warp_start() + stage * kStage;
    float scores[2][4];
    clear(scores);
    multiply_keys(k_rows, scores);
    weigh_group(scores, first, scale);
    multiply_values(k_rows + kDecodeKeys * kRawK, first, scores);
  }
  // Tokens of 4-bit pages as numbers, 16 at a time, in a stage that no codes were loaded into.
  DEVICE void take_loose(int stage, int group) {
    const int tile = warp_start() + stage * kStage;
    ROLLED for (int first = group; first < group + kKeys && first < keys.end; first += kLooseRows) {
      const bool as_stored = page_bits >= 0 && page_of(first) >= args.k.shape[0];
      const bool keys_stored = as_stored && int4_keys().is_vectors(), values_stored = as_stored && int4_values().is_vectors();
      float scores[2][4];
      clear(scores);
      ROLLED for (int t = 0; t < (keys_stored ? 1 : Terms<T>::kKey); t++) {
        sync_warp();  // nobody reads what stood there
        int4_keys().fetch(first, t, keys_stored, tile);
        sync_warp();
        multiply_keys(tile, scores);
      }
      weigh_group(scores, first, 1);
      sync_warp();
      int4_values().fetch(first, 0, values_stored, tile);
      sync_warp();
      multiply_values(tile, first, scores);
    }
    sync_warp();
  }
  // 32 tokens of one page of codes that all rows see.
  DEVICE void take_int4(int stage, int first) {
    float scores[2][2][4], dots[2] = {0, 0};
    UNROLL for (int h = 0; h < 2; h++) clear(scores[h]);
    const int k_stage = warp_start() + stage * kStage;
    ROLLED for (int g = 0; g < kD / 32; g++) {
      uint32_t codes[4];
      load_matrix_x4(codes, shared_start() + k_stage + lane() * Int4Keys::kPitch + g * 16);
      multiply_int4_keys<false>(k_stage, 2 * g, codes, scores, dots);
      multiply_int4_keys<true>(k_stage, 2 * g + 1, codes, scores, dots);
    }
    UNROLL for (int u = 0; u < 2; u++) {
      const float dot = row_sum(dots[u]);
      UNROLL for (int h = 0; h < 2; h++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) scores[h][n][2 * u + e] += dot;
    }
    ROLLED for (int row = 0; row < kInt4Rows; row += kDecodeKeys) {
      weigh_group(scores[0], first + row, 1);
      multiply_int4_values(k_stage + Int4Keys::kStage, row, scores[0]);
      UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) scores[0][n][e] = scores[1][n][e];
    }
  }
  // Channels 16 k .. + 15: a lane has those from 4 (l % 4) on. The dots of queries and zeros are of these channels alone.
  template <bool kHigh>
  DEVICE void multiply_int4_keys(int stage, int k, const uint32_t (&codes)[4], float (&scores)[2][2][4], float (&dots)[2]) const {
    const int channel = 16 * k + lane() % 4 * 4;
    const Vec16 scale = Int4Keys::scales_at(stage, channel), zero = Int4Keys::zeros_at(stage, channel);
    uint32_t a[kQueryTerms][4];
    UNROLL for (int u = 0; u < 2; u++) {
      UNROLL for (int t = 0; t < kQueryTerms; t++) a[t][u] = a[t][2 + u] = 0;
      if (u == 1 && !upper) break;
      const Vec8 numbers = shared<Vec8>((u * 8 + lane() / 4) * Tile<kD>::kPitch + channel * 2, 1)[0];
      UNROLL for (int w = 0; w < 2; w++) {
        const Pair q = unpack2<T>(numbers.words[w]);
        dots[u] = fmaf(q.low, bits_float(zero.words[2 * w]), fmaf(q.high, bits_float(zero.words[2 * w + 1]), dots[u]));
        float low = q.low * bits_float(scale.words[2 * w]), high = q.high * bits_float(scale.words[2 * w + 1]);
        UNROLL for (int t = 0; t < kQueryTerms; t++) {
          a[t][2 * w + u] = pack2<bf16>(low, high);
          const Pair taken = unpack2<bf16>(a[t][2 * w + u]);
          low -= taken.low, high -= taken.high;
        }
      }
    }
    UNROLL for (int n = 0; n < 4; n++) {
      const uint32_t bytes = int4_bytes<kHigh>(codes[n]), low = int4_pair<0>(bytes, 0x4140), high = int4_pair<0>(bytes, 0x4342);
      UNROLL for (int t = 0; t < kQueryTerms; t++) mma_16x8x16<bf16>(scores[n / 2][n % 2], a[t], low, high);
    }
  }
  DEVICE void add_zeros(int g, int u, float sums) {
    const float sum = row_sum(sums);
    UNROLL for (int n = 4 * g; n < 4 * g + 4; n++) UNROLL for (int e = 0; e < 2; e++) acc[n][2 * u + e] += sum;
  }
  // 16 tokens from `row` of the stage on, with their weights.
  DEVICE void multiply_int4_values(int stage, int row, const float (&weights)[2][4]) {
    uint32_t codes[4];  // of 64 channels
    UNROLL for (int g = 0; g < kDv / 32; g++) {
      uint32_t a[Terms<T>::kWeight][4];
      float now[2] = {0, 0};
      if (g % 2 == 0) load_matrix_x4_transposed(codes, shared_start() + stage + (row + (lane() & 15)) * Int4Values::kPitch + (g + (lane() >> 4)) * 16);
      UNROLL for (int n = 0; n < 2; n++) {
        const int at = g * kInt4Rows + row + n * 8 + lane() % 4 * 2;
        const Vec8 scale = Int4Values::scale_pair(stage, at), zero = Int4Values::zero_pair(stage, at);
        float scales[2], middles[2];
        UNROLL for (int e = 0; e < 2; e++) {
          scales[e] = bits_float(scale.words[e]);
          middles[e] = fmaf(scales[e], kInt4Middle, bits_float(zero.words[e]));
        }
        UNROLL for (int u = 0; u < 2; u++) {
          float& sums = kKeepsZeros ? zeros[u][g] : now[u];
          sums = fmaf(weights[n][2 * u], middles[0], fmaf(weights[n][2 * u + 1], middles[1], sums));
          float low = weights[n][2 * u] * scales[0], high = weights[n][2 * u + 1] * scales[1];
          UNROLL for (int t = 0; t < Terms<T>::kWeight; t++) {
            a[t][2 * n + u] = pack2<bf16>(low, high);
            const Pair taken = unpack2<bf16>(a[t][2 * n + u]);
            low -= taken.low, high -= taken.high;
          }
        }
      }
      if constexpr (!kKeepsZeros) UNROLL for (int u = 0; u < 2; u++) add_zeros(g, u, now[u]);
      multiply_int4_columns<false>(acc[4 * g], acc[4 * g + 1], a, codes[g % 2 * 2], codes[g % 2 * 2 + 1]);
      multiply_int4_columns<true>(acc[4 * g + 2], acc[4 * g + 3], a, codes[g % 2 * 2], codes[g % 2 * 2 + 1]);
    }
  }
  // Even and odd columns of 16: the codes of keys 0 .. 7 and of 8 .. 15.
  template <bool kHigh>
  DEVICE static void multiply_int4_columns(float (&even)[4], float (&odd)[4], const uint32_t (&a)[Terms<T>::kWeight][4], uint32_t first, uint32_t second) {
    const uint32_t b0 = int4_bytes<kHigh>(first), b1 = int4_bytes<kHigh>(second);
    UNROLL for (int t = 0; t < Terms<T>::kWeight; t++) {
      mma_16x8x16<bf16>(even, a[t], int4_pair<kInt4Middle>(b0, 0x4240), int4_pair<kInt4Middle>(b1, 0x4240));
      mma_16x8x16<bf16>(odd, a[t], int4_pair<kInt4Middle>(b0, 0x4341), int4_pair<kInt4Middle>(b1, 0x4341));
    }
  }
  // `group`, one of this warp's, or its first of the window where nobody sees those before that.
  DEVICE int seen_from(int group) const {
    return skip_hidden(group, sinks(), keys.begin / kStep * kStep + warp() * kKeys);
  }
  // The first copies, of the queries and of kStages groups.
  DEVICE void start() const {
    load_queries();
    copy_async_commit();
    int ahead = first_group();
    UNROLL for (int n = 0; n < kStages; n++) {
      if (ahead < keys.end) load(n, ahead, page_of(ahead));
      copy_async_commit();
      ahead = seen_from(ahead + kStep);
    }
  }
  // Of each 16 numbers those that an operand takes to be 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 become the numbers from 4 c on.
  DEVICE static void turn_queries() {
    UNROLL for (int k = 0; k < kD / 16; k += kDecodeWarps) {
      const int at = (k + warp()) * 32;
      Vec8 numbers[2];
      UNROLL for (int u = 0; u < 2; u++) numbers[u] = shared<Vec8>((u * 8 + lane() / 4) * Tile<kD>::kPitch + at, 4)[lane() % 4];
      sync_warp();
      UNROLL for (int u = 0; u < 2; u++)
        UNROLL for (int w = 0; w < 2; w++) shared<uint32_t>((u * 8 + lane() / 4) * Tile<kD>::kPitch + at, 8)[w * 4 + lane() % 4] = numbers[u].words[w];
    }
    sync_block();
  }
  DEVICE int first_group() const { return seen_from(first_key + warp() * kKeys); }
  DEVICE void walk() {
    copy_async_wait<kStages>();
    sync_block();
    if constexpr (kBytes == 1) turn_queries();
    UNROLL for (int k = 0; k < kKept; k++) load_a(query[k], Tile<kD>{shared_start()}, 0, k);
    UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 4; e++) acc[n][e] = 0;
    UNROLL for (int u = 0; u < 2; u++) {
      const int row = first_row + u * 8 + lane() / 4;
      top[u] = -INFINITY, sum[u] = 0;
      UNROLL for (int g = 0; g < (kKeepsZeros ? kDv / 32 : 1); g++) zeros[u][g] = 0;
      seen[u] = row < s.rows() ? visible_keys(rules, s, row / s.group) : Range{0, 0};
    }
    int first = first_group(), stage = 0, ahead = first;
    UNROLL for (int n = 0; n < kStages; n++) ahead = seen_from(ahead + kStep);
    int page = page_of(ahead);
    float scale = first < keys.end ? scale_of(first) : 0;
    ROLLED for (; first < keys.end; stage = (stage + 1) % kStages) {
      copy_async_wait<kStages - 1>();
      sync_warp();
      const int next = seen_from(first + kStep);
      const float next_scale = next < keys.end ? scale_of(next) : 0;
      take(stage, first, scale);
      first = next;
      scale = next_scale;
      sync_warp();  // nobody reads this stage any more
      if (ahead < keys.end) load(stage, ahead, page);
      copy_async_commit();
      ahead = seen_from(ahead + kStep);
      page = page_of(ahead);
    }
    copy_async_wait<0>();
  }

  // Where the warps' results stand: [warp][row][kResult], top and sum behind the row's kDv.
  DEVICE static int result_at(int from_warp, int row) { return kQBytes + (from_warp * kDecodeRows + row) * kResult * 4; }
  DEVICE void share_results() {
    sync_block();
    UNROLL for (int u = 0; u < 2; u++) {
      if (u == 1 && !upper) break;
      if constexpr (kKeepsZeros)
        UNROLL for (int g = 0; g < kDv / 32; g++) add_zeros(g, u, zeros[u][g]);
      const Shared<Vec8> out = shared<Vec8>(result_at(warp(), u * 8 + lane() / 4), kResult / 2);
      UNROLL for (int n = 0; n < kWide; n += 2) {
        UNROLL for (int e = 0; e < 2; e++) {
          if constexpr (kBytes != 2) out[column_of(n, e) / 2] = {{float_bits(acc[n][2 * u + e]), float_bits(acc[n + 1][2 * u + e])}};
          else out[column_of(n + e, 0) / 2] = {{float_bits(acc[n + e][2 * u]), float_bits(acc[n + e][2 * u + 1])}};
        }
      }
      const float total = row_sum(sum[u]);
      if (lane() % 4 == 0) out[kDv / 2] = {{float_bits(top[u]), float_bits(total)}};
    }
    sync_block();
  }
  // Four columns of the block's result.
  DEVICE static Merged result(int row, int column) {
    Merged m;
    UNROLL for (int w = 0; w < kDecodeWarps; w++) {
      const int at = result_at(w, row);
      m.add(shared<Vec8>(at + kDv * 4, 1)[0], shared<Vec16>(at + column * 4, 1)[0]);
    }
    return m;
  }
};

// Grid: tiles of rows, key heads, parts.
template <class T, int kD, int kDv, int kBytes>
DEVICE void attention_decode(const heed_cuda_attention& args) {
  const Work work = find_work(args, block_x(), kDecodeRows);
  if (work.sequence < 0) return;
  constexpr int kStored = kBytes == 0 ? 1 : kBytes;  // strides that the compiler knows to be constants keep registers free
  Sequence s = unchecked_sequence(args, work.sequence, block_y());
  s.k_page = args.k.strides[0] * kStored, s.v_page = args.v.strides[0] * kStored;
  s.k_token = static_cast<int>(args.k.strides[2]) * kStored, s.v_token = static_cast<int>(args.v.strides[2]) * kStored;
  if (s.tokens == 0) return;  // of a table that does not fit
  const int first_row = work.tile * kDecodeRows;
  const int last_row = first_row + kDecodeRows < s.rows() ? first_row + kDecodeRows - 1 : s.rows() - 1;
  const Range least = visible_keys(args.scores, s, first_row / s.group), most = visible_keys(args.scores, s, last_row / s.group);
  Part part = part_of(s, {least.begin, most.end}, sink_end(args.scores, s), Decode<T, kD, kDv, kBytes>::kStep, args.part, block_z());
  if (part.index < 0) return;
  // A part looks at the pages of its keys and at its share of the table: together they look at all of it.
  const int pages = pages_of(s), share = (pages + part.count - 1) / part.count, its = part.index * share;
  const bool own = pages_exist(args, s, part.first / s.page_size, (part.keys.end + s.page_size - 1) / s.page_size);
  const bool known = own && pages_exist(args, s, its, its + share < pages ? its + share : pages);
  if (!known) part.keys = {0, 0};
  const bool scaled_only = !(args.scores.softcap > 0) && !args.scores.alibi_slopes.data;
  int page_bits = 4;
  while (s.page_size >> page_bits > 1) page_bits++;
  if (s.page_size != 1 << page_bits) page_bits = -1;
  Decode<T, kD, kDv, kBytes> decode = {args, args.scores, s, first_row, part.first, part.keys,
                                       static_cast<float>(args.scores.scale), scaled_only, {most.begin, least.end}, last_row - first_row >= 8, page_bits};
  decode.start();
  decode.walk();
  decode.share_results();
  const Sequence& again = s;
  const int tiles = (again.group + kDecodeRows - 1) / kDecodeRows;
  meet<T>(args, again, part, first_row, last_row - first_row + 1, work.tile, tiles, 0, [&](int row, int column) {
    Merged m = decode.result(row, column);
    if (!known) m.sum = NAN;
    return m;
  });
}

}  // namespace heed
