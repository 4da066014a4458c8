// Pages of 4 bits (docs/kernels/paged-quantised.md) on the way to the tensor cores. Of 32 tokens in one page of codes, which share scales and
// zeros of the keys' channels, codes go to the operands as they are: q (zero + scale code) = q zero + (q scale) code, and
// w (zero + scale code) = w zero + (w scale) code, the products with codes on tensor cores, in bfloat16, whose range does not end before
// float32's, the others in float32. q scale is the sum of three terms, since lse has the precision of float32. Other tokens become
// 16-bit numbers in shared memory: a value is rounded once, a key is a sum of terms.
#pragma once
#include "codes.cuh"
#include "fragments.cuh"
#include "numbers.cuh"
#include "staging.cuh"

namespace heed {

constexpr int kInt4Rows = 32, kLooseRows = 16;
// 16-bit terms of a number within 2^-22 of it: 8 significant bits each, or 11. And bfloat16 terms of a weight with T's precision.
template <class T> struct Terms { static constexpr int kKey = 3, kWeight = 1; };
template <> struct Terms<f16> { static constexpr int kKey = 2, kWeight = 2; };
constexpr int kQueryTerms = 3;

// A stage has the codes as in the pages, row after row; behind them scales, then zeros: of the channels of keys, [channel]; of values,
// [group of 32 channels][row].
template <class T, int kWidth, bool kKeys>
struct Int4 {
  static constexpr int kPitch = kWidth / 2 + 16;  // bytes of a staged row
  static constexpr int kScales = kInt4Rows * kPitch, kZeros = kScales + 4 * kWidth, kStage = kZeros + 4 * kWidth;  // bytes
  static constexpr int kTile = kLooseRows * Tile<kWidth>::kPitch;

  const StoredRows rows;
  const Sequence& s;
  const int head, sinks;
  const Range keys;

  DEVICE int width() const { return static_cast<int>(rows.residual.shape[3]); }
  // 32 tokens of a page, from its row `row` on.
  DEVICE void load(int stage, int64_t page, int row) const {
    const uint32_t start = shared_start() + stage;
    const unsigned char* codes = kKeys ? s.k + page * s.k_page + row * s.k_token : s.v + page * s.v_page + row * s.v_token;
    copy_rows<kWidth / 2, kPitch, kInt4Rows>(start, codes, kKeys ? s.k_token : s.v_token, (width() + 31) / 32 * 16);
    int64_t at = page * rows.scales.strides[0] + head * rows.scales.strides[1];
    at += kKeys ? row / 32 * rows.scales.strides[2] : row;
    const float* scales = static_cast<const float*>(rows.scales.data) + at;
    const float* zeros = static_cast<const float*>(rows.zeros.data) + at;
    UNROLL for (int first = 0; first < kWidth / 4; first += 32) {
      const int i = first + lane();
      const bool valid = (kKeys ? i * 4 : i / 8 * 32) < width();
      const int64_t from = !valid ? 0 : kKeys ? i * 4 : i / 8 * rows.scales.strides[2] + i % 8 * 4;
      if (kWidth / 4 < 32 && i >= kWidth / 4) break;
      copy_async_16(start + kScales + i * 16, scales + from, valid);
      copy_async_16(start + kZeros + i * 16, zeros + from, valid);
    }
  }
  DEVICE static Vec8 scale_pair(int stage, int at) { return shared<Vec8>(stage + kScales + at * 4, 1)[0]; }
  DEVICE static Vec8 zero_pair(int stage, int at) { return shared<Vec8>(stage + kZeros + at * 4, 1)[0]; }
  // Four scales (zeros) of channels from `at` on.
  DEVICE static Vec16 scales_at(int stage, int at) { return shared<Vec16>(stage + kScales + at * 4, 1)[0]; }
  DEVICE static Vec16 zeros_at(int stage, int at) { return shared<Vec16>(stage + kZeros + at * 4, 1)[0]; }

  // Loose tokens. Two neighbouring numbers of a row of a tile: of values those of even and of odd channels of each 16 stand side by side,
  // as the codes' operands have them.
  DEVICE static void store_pair(int row, int channel, uint32_t pair) {
    if constexpr (kKeys) {
      shared<uint32_t>(row + channel * 2, 1)[0] = pair;
    } else {
      const Shared<uint16_t> out = shared<uint16_t>(row + channel / 16 * 32 + channel % 16, 9);
      out[0] = static_cast<uint16_t>(pair);
      out[8] = static_cast<uint16_t>(pair >> 16);
    }
  }
  DEVICE static uint16_t tile_number(int row, int channel) {
    return shared<uint16_t>(row + channel / 16 * 32 + channel % 2 * 16 + channel % 16 / 2 * 2, 1)[0];
  }
  DEVICE float number(int j, int channel) const {
    return channel < width() ? stored_number<float>(rows, s, head, j, channel) : 0.0f;
  }
  // What is left of a pair after `term` terms, as T. What a term that is not finite leaves is nothing.
  DEVICE static uint32_t term_of(float low, float high, int term) {
    uint32_t word = pack2<T>(low, high);
    ROLLED for (int t = 0; t < term; t++) {
      const Pair taken = unpack2<T>(word);
      low -= taken.low, high -= taken.high;
      low = fabsf(low) < INFINITY ? low : 0.0f;
      high = fabsf(high) < INFINITY ? high : 0.0f;
      word = pack2<T>(low, high);
    }
    return word;
  }
  // Whether residual pages hold T, at multiples of 16 bytes.
  DEVICE bool is_vectors() const {
    const heed_tensor& t = rows.residual;
    const int64_t starts = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data)) | (t.shape[3] | t.strides[0] | t.strides[1] | t.strides[2]) * 2;
    return t.dtype == kDtype<T> && t.strides[3] == 1 && starts % 16 == 0;
  }
  // Term number `term` of 16 tokens from `first` on, into a tile; as_stored: they are T in one residual page.
  DEVICE void fetch(int first, int term, bool as_stored, int to, int from_row = 0, int to_row = kLooseRows) const {
    constexpr int kChunks = kWidth / 8;
    const int channel = lane() % kChunks * 8;
    ROLLED for (int row = from_row + lane() / kChunks; row < to_row; row += 32 / kChunks) {
      const int j = first + row, out = to + row * Tile<kWidth>::kPitch;
      const bool valid = is_seen(j, keys, sinks) && channel < width();  // the others are never multiplied by a NaN
      if (as_stored) {
        Vec16 numbers = {{0, 0, 0, 0}};
        if (valid) {
          const heed_tensor& t = rows.residual;
          const int64_t page = s.pages[j / s.page_size] - rows.pages.shape[0];
          numbers = load_16(static_cast<const T*>(t.data) + page * t.strides[0] + head * t.strides[1] + j % s.page_size * t.strides[2] + channel);
        }
        UNROLL for (int w = 0; w < 4; w++) store_pair(out, channel + 2 * w, numbers.words[w]);
      } else {
        ROLLED for (int c = channel; c < channel + 8; c += 2)
          store_pair(out, c, valid ? term_of(number(j, c), number(j, c + 1), term) : 0);
      }
    }
  }
};

// Four codes of 4 bits, the halves of a word's bytes, less `kBase`: two pairs of bfloat16, of bytes 0 and 1 and of 2 and 3, or of 0 and 2
// and of 1 and 3. 0x4300 is 128, whose last bit counts as 1.
template <bool kHigh>
DEVICE uint32_t int4_bytes(uint32_t codes) { return (kHigh ? codes >> 4 : codes) & 0x0f0f0f0f; }
template <int kBase>
DEVICE uint32_t int4_pair(uint32_t bytes, uint32_t selector) {
  return subtract2<bf16>(permute_bytes(bytes, 0x43434343, selector), 0x43004300 + kBase * 0x00010001);
}

}  // namespace heed
