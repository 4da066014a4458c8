// Pages of 4 bits (docs/kernels/paged-quantised.md) on the way to the tensor cores: 16 rows of keys or values as codes, with the scales
// and zeros of their groups, become 16-bit numbers in shared memory. zero + scale * code is computed in float32. A
// value is rounded once, to what weights and output have; a key becomes the sum of 16-bit terms, since lse has the precision of float32.
#pragma once
#include "fragments.cuh"
#include "numbers.cuh"

namespace heed {

constexpr int kInt4Rows = 16;
// Terms of 16 bits that a key is the sum of, within 2^-22 of it: 8 significant bits each, or 11.
template <class T> struct KeyTerms { static constexpr int kCount = 3; };
template <> struct KeyTerms<f16> { static constexpr int kCount = 2; };

// The codes stand as in the pages, row after row; behind them scales, then zeros: of the channels of keys, [channel]; of values,
// [group of 32 channels][row].
template <class T, int kWidth, bool kKeys>
struct Int4 {
  static constexpr int kPitch = kWidth / 2 + 16;  // bytes of a staged row
  static constexpr int kScales = kWidth / 2;      // floats: of values 16 for 32 channels
  static constexpr int kPairs = kKeys ? kWidth : kScales, kCodes = kInt4Rows * kPitch, kStage = kCodes + 2 * 4 * kPairs;
  static constexpr int kTerms = kKeys ? KeyTerms<T>::kCount : 1, kTile = kInt4Rows * Tile<kWidth>::kPitch;  // bytes of a term's tile
  static constexpr int kWords = kWidth / 8;  // of a row of codes
  static_assert(32 % kWords == 0, "a lane has the same channels of every row");

  const StoredRows rows;
  const Sequence& s;
  const int head, sinks;
  const Range keys;

  DEVICE int width() const { return static_cast<int>(rows.residual.shape[3]); }
  DEVICE bool has(int j) const { return is_seen(j, keys, sinks); }
  DEVICE bool is_code(int j) const { return s.pages[j / s.page_size] < rows.pages.shape[0]; }
  // Whether the rows from `first`, a multiple of 16, on lie in one page of codes: they share a group of keys, and are staged.
  DEVICE bool is_staged(int first) const {
    return s.page_size % kInt4Rows == 0 && first < keys.end && (first + kInt4Rows > keys.begin || first < sinks) && is_code(first);
  }
  DEVICE int64_t scales_at(int j) const { return s.pages[j / s.page_size] * rows.scales.strides[0] + head * rows.scales.strides[1]; }
  DEVICE int64_t pair_at(int j, int channel) const {
    const int row = j % s.page_size;
    return scales_at(j) + (kKeys ? row / 32 * rows.scales.strides[2] + channel * rows.scales.strides[3]
                                 : channel / 32 * rows.scales.strides[2] + row * rows.scales.strides[3]);
  }

  DEVICE void load(int stage, int first) const {
    if (!is_staged(first)) return;
    const uint32_t start = shared_start() + stage;
    ROLLED for (int i = lane(); i < kInt4Rows * kWidth / 32; i += 32) {
      const int row = i / (kWidth / 32), chunk = i % (kWidth / 32), j = first + row;
      const bool valid = has(j) && chunk * 32 < width();
      const unsigned char* codes = kKeys ? key_at(s, first) + row * s.k_token : value_at(s, first) + row * s.v_token;
      copy_async_16(start + row * kPitch + chunk * 16, valid ? codes + chunk * 16 : rows.pages.data, valid);
    }
    const float* scales = static_cast<const float*>(rows.scales.data);
    const float* zeros = static_cast<const float*>(rows.zeros.data);
    ROLLED for (int i = lane(); i < kPairs / 4; i += 32) {
      const int channel = kKeys ? i * 4 : i / 4 * 32, j = kKeys ? first : first + i % 4 * 4;
      const bool valid = channel < width();
      const int64_t at = valid ? pair_at(j, channel) : 0;
      copy_async_16(start + kCodes + i * 16, scales + at, valid);
      copy_async_16(start + kCodes + kPairs * 4 + i * 16, zeros + at, valid);
    }
  }

  // Channels of a lane: 32 g + i .. + 3, in the low halves of its word, and 16 further on, in the high ones.
  DEVICE static int channel_of(int n) { return lane() % kWords / 4 * 32 + lane() % 4 * 4 + n % 4 + n / 4 * 16; }
  DEVICE static float code_of(uint32_t word, int n) {
    const int bit = n % 4 * 8 + n / 4 * 4;  // to the top of the mantissa of 16: 16 + code
    const uint32_t moved = bit < 19 ? word << (19 - bit) : word >> (bit - 19);
    return bits_float((moved & 0x780000) | 0x41800000) - 16.0f;
  }
  // Two numbers at a byte of a row of each term's tile. What a term that is not finite leaves is nothing.
  DEVICE static void store_pair(int to, float low, float high) {
    UNROLL for (int t = 0; t < kTerms; t++) {
      const uint32_t word = pack2<T>(low, high);
      shared<uint32_t>(to + t * kTile, 1)[0] = word;
      if (t + 1 == kTerms) break;
      const Pair term = unpack2<T>(word);
      low -= term.low, high -= term.high;
      low = fabsf(low) < INFINITY ? low : 0.0f;
      high = fabsf(high) < INFINITY ? high : 0.0f;
    }
  }
  DEVICE static void store(int to, int row, uint32_t word, const float (&scale)[8], const float (&zero)[8]) {
    UNROLL for (int half = 0; half < 2; half++) {
      const int at = to + row * Tile<kWidth>::kPitch + channel_of(half * 4) * 2;
      UNROLL for (int w = 0; w < 2; w++) {
        const int n = half * 4 + w * 2;
        store_pair(at + w * 4, fmaf(scale[n], code_of(word, n), zero[n]), fmaf(scale[n + 1], code_of(word, n + 1), zero[n + 1]));
      }
    }
  }
  DEVICE void unpack_staged(int stage, int first, int to) const {
    const Shared<float> scales = shared<float>(stage + kCodes, kPairs), zeros = shared<float>(stage + kCodes + kPairs * 4, kPairs);
    float scale[8], zero[8];
    if constexpr (kKeys)
      UNROLL for (int n = 0; n < 8; n++) scale[n] = scales[channel_of(n)], zero[n] = zeros[channel_of(n)];
    ROLLED for (int row = lane() / kWords; row < kInt4Rows; row += 32 / kWords) {
      const bool valid = has(first + row);  // the others are never multiplied by a NaN
      if constexpr (!kKeys) {
        const int at = lane() % kWords / 4 * kInt4Rows + row;
        const float its_scale = valid ? scales[at] : 0.0f, its_zero = valid ? zeros[at] : 0.0f;
        UNROLL for (int n = 0; n < 8; n++) scale[n] = its_scale, zero[n] = its_zero;
      }
      store(to, row, shared<uint32_t>(stage + row * kPitch + lane() % kWords * 4, 1)[0], scale, zero);
    }
  }
  // Token j from memory, number by number, into a row of a tile.
  DEVICE void fetch_row(int j, int row, int to) const {
    ROLLED for (int w = lane(); w < kWidth / 2; w += 32) {
      float pair[2];
      UNROLL for (int e = 0; e < 2; e++) pair[e] = has(j) && 2 * w + e < width() ? stored_number<float>(rows, s, head, j, 2 * w + e) : 0.0f;
      store_pair(to + row * Tile<kWidth>::kPitch + w * 4, pair[0], pair[1]);
    }
  }
  // Residual pages, and pages that 16 rows do not share.
  DEVICE void unpack_loose(int first, int to) const {
    ROLLED for (int row = 0; row < kInt4Rows; row++) fetch_row(first + row, row, to);
  }
  DEVICE void unpack(int stage, int first, int to) const {
    if (is_staged(first)) unpack_staged(stage, first, to);
    else unpack_loose(first, to);
  }
};

}  // namespace heed
