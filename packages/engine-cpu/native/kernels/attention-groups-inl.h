// Blocks of HEED_PAGES_INT4 decoded without numbers in memory, all rows of a key head together (KIVI: Liu et al. 2024, arXiv:2402.02750).
//   keys:    q . (zero + scale * code) = q . zero + (q * scale) . code             for the 32 tokens of a group
//   values:  sum p (zero + scale * code) = sum p zero + sum (p * scale) code       for the 32 channels of a group
// Tokens of keys are lanes: their codes are transposed as words of eight, once for all rows, so that no product ends in a sum over
// lanes, which for rows of 128 numbers costs a third of the products. Channels of values are lanes, as they lie.
#pragma once
#include "codes-inl.h"
#include "../simd/shuffle.h"

namespace heed::HEED_ISA {
/// The 32 tokens of a page that are half of a block; they share the scales of keys.
struct HalfBlock {
  const uint8_t* codes;  // rows `step` bytes apart
  int64_t step;
  const float *scales, *zeros;  // of the group (keys), or of the tokens in channel group 0 (values)
};
template <class T> HEED_INLINE HalfBlock HalfBlockAt(const CodedPages<T>& of, int64_t page, int64_t head, int64_t row) {
  const heed_tensor &s = *of.scales, &z = *of.zeros;
  const int64_t group = of.keys ? row / kCodeGroup : 0, token = of.keys ? 0 : row;
  return {CodesAt(*of.codes, page, head, row), of.codes->strides[2],
          static_cast<const float*>(s.data) + OffsetOf(s, page, head, group) + token,
          static_cast<const float*>(z.data) + OffsetOf(z, page, head, group) + token};
}
/// Words of eight codes in a row. Rows are padded to groups of 32 channels.
HEED_INLINE int64_t CodeWords(int64_t width) { return Divide(width, kCodeGroup) * (kCodeGroup / 8); }

/// Cache lines of the next block, asked for one by one while this one is computed.
struct LinesAhead {
  static constexpr int64_t kMost = 1024;
  int64_t next = 0, count = 0;
  const char* line[kMost];

  void Add(const void* from, int64_t bytes) {
    const char* at = static_cast<const char*>(from);
    for (const char* end = at + bytes; at < end && count < kMost; at += 64) line[count++] = at;
  }
  template <class T> void Add(const HalfBlock& half, const CodedPages<T>& of) {
    const int64_t row = 4 * CodeWords(of.width), groups = of.keys ? 1 : Divide(of.width, kCodeGroup);
    if (half.step == row) Add(half.codes, kCodeGroup * row);
    else
      for (int64_t t = 0; t < kCodeGroup; t++) Add(half.codes + t * half.step, row);
    for (int64_t g = 0; g < groups; g++) {
      Add(half.scales + g * of.scales->strides[2], (of.keys ? of.width : kCodeGroup) * 4);
      Add(half.zeros + g * of.zeros->strides[2], (of.keys ? of.width : kCodeGroup) * 4);
    }
  }
  HEED_ALWAYS_INLINE void Ask(int64_t n) {
    for (; n > 0 && next < count; n--) __builtin_prefetch(line[next++], 0, 3);
  }
};
template <int From> struct InterleaveLow { static constexpr int At(int i) { return i / 4 * 4 + i % 4 / 2 + From + (i & 1) * Width<float>; } };
template <int From> struct InterleavePairs { static constexpr int At(int i) { return i / 4 * 4 + (i & 1) + From + (i % 4 / 2) * Width<float>; } };
/// to[word][token] = word of the token's row, for 32 tokens.
HEED_NOINLINE void TransposeWords(const HalfBlock& of, int64_t words, uint32_t* to) {
  constexpr int w = Width<float>;
  for (int64_t t = 0; t < kCodeGroup; t += w)
    for (int64_t k = 0; k < words; k += 4) {
      const uint8_t* from = of.codes + t * of.step + k * 4;
      Vec<float> row[4], low[2], high[2];  // four by four, in every 16 bytes of the vectors
      HEED_UNROLL for (int i = 0; i < 4; i++) row[i] = LoadQuads(from + i * of.step, 4 * of.step);
      HEED_UNROLL for (int i = 0; i < 2; i++) {
        low[i] = Shuffle<float, InterleaveLow<0>>(row[2 * i], row[2 * i + 1]);
        high[i] = Shuffle<float, InterleaveLow<2>>(row[2 * i], row[2 * i + 1]);
      }
      float* out = reinterpret_cast<float*>(to) + k * kCodeGroup + t;
      Store<float>(out, Shuffle<float, InterleavePairs<0>>(low[0], low[1]));
      Store<float>(out + kCodeGroup, Shuffle<float, InterleavePairs<2>>(low[0], low[1]));
      Store<float>(out + 2 * kCodeGroup, Shuffle<float, InterleavePairs<0>>(high[0], high[1]));
      Store<float>(out + 3 * kCodeGroup, Shuffle<float, InterleavePairs<2>>(high[0], high[1]));
    }
}
/// scaled = q * scales, 0 from `width` to whole groups, and base = q . zeros, of R rows `pitch` apart.
template <int R>
HEED_INLINE void ScaleQueries(const float* q, int64_t q_pitch, const HalfBlock& of, int64_t width, float* scaled, int64_t pitch, float* base) {
  Vec<float> sums[R] = {};
  for (int64_t d = 0; d < width; d += Width<float>) {
    const Vec<float> scale = LoadFirst(of.scales + d, width - d), zero = LoadFirst(of.zeros + d, width - d);
    HEED_UNROLL for (int i = 0; i < R; i++) {
      const Vec<float> x = Load(q + i * q_pitch + d);
      Store<float>(scaled + i * pitch + d, x * scale);
      sums[i] = Fma(x, zero, sums[i]);
    }
  }
  for (int64_t d = RoundUp(width, Width<float>); d < pitch; d += Width<float>)
    HEED_UNROLL for (int i = 0; i < R; i++) Store<float>(scaled + i * pitch + d, Vec<float>{});
  HEED_UNROLL for (int i = 0; i < R; i++) base[i] = HorizontalSum<float>(sums[i]);
}
/// to[i][token] = base[i] + scaled[i] . codes of the token, for R rows and 32 tokens whose words are transposed.
template <int R>
HEED_NOINLINE void DotWords(const float* scaled, int64_t pitch, const float* base, const uint32_t* words, float* to, int64_t to_pitch,
                            LinesAhead& ahead) {
  constexpr int w = Width<float>, chains = kRegisters == 32 ? 2 : 1;  // 16 sums of 32 registers, 8 of 16
  for (int64_t t = 0; t < kCodeGroup; t += 2 * w) {
    Vec<float> sums[chains][R][2] = {};
    HEED_UNROLL for (int i = 0; i < R; i++) sums[0][i][0] = sums[0][i][1] = Set1(base[i]);
    const uint32_t* word = words + t;
    for (int64_t d = 0; d < pitch; d += kCodeGroup)
      for (int64_t o = d; o < d + 16; o += 4, word += kCodeGroup) {
        const Mask<float> codes[2] = {LoadWords(word), LoadWords(word + w)};
        ahead.Ask(Divide(w, 8));
        // Code s of word o / 4 is that of channel o + s / 2, of the group's second half where s is odd.
        HEED_UNROLL for (int s = 0; s < 8; s++) {
          const Vec<float> number[2] = {LowCode(codes[0] >> (4 * s)), LowCode(codes[1] >> (4 * s))};
          HEED_UNROLL for (int i = 0; i < R; i++) {
            const Vec<float> x = Set1(scaled[i * pitch + o + s / 2 + (s & 1) * 16]);
            HEED_UNROLL for (int v = 0; v < 2; v++) sums[s % chains][i][v] = Fma(x, number[v], sums[s % chains][i][v]);
          }
        }
      }
    HEED_UNROLL for (int i = 0; i < R; i++)
      HEED_UNROLL for (int v = 0; v < 2; v++) {
        if (chains == 2) sums[0][i][v] += sums[chains - 1][i][v];
        Store<float>(to + i * to_pitch + t + v * w, sums[0][i][v]);
      }
  }
}

/// What R rows add for the tokens [low, high) of a block, in N groups of channels at a time.
template <int R, int N> struct ValueWeights {
  float at[N][R][2 * kCodeGroup];  // p * scale
  float offset[N][R];              // sum p * zero
};
/// Weights of group g, for rows of p `pitch` apart. Scales of tokens that are not to be added are not used, only read.
template <int R>
HEED_INLINE void WeighGroup(const float* p, int64_t pitch, const float* const (&scales)[2], const float* const (&zeros)[2], int64_t halves,
                            float (*weights)[2 * kCodeGroup], float* offset) {
  Vec<float> total[R] = {};
  for (int64_t h = 0; h < halves; h++)
    HEED_UNROLL for (int64_t j = 0; j < kCodeGroup; j += Width<float>) {
      const Vec<float> scale = Load(scales[h] + j), zero = Load(zeros[h] + j);
      HEED_UNROLL for (int i = 0; i < R; i++) {
        const Vec<float> x = Load(p + i * pitch + h * kCodeGroup + j);
        Store<float>(weights[i] + h * kCodeGroup + j, x * scale);
        total[i] = Fma(x, zero, total[i]);
      }
    }
  HEED_UNROLL for (int i = 0; i < R; i++) offset[i] = HorizontalSum<float>(total[i]);
}
/// out = alpha * out + offset + weights @ codes for R rows of `out` and Halves halves (the second are channels 16 further) of
/// Width<float> channels in N neighbouring groups, whose codes stand at `from` in the rows.
template <int R, int N, int Halves>
HEED_NOINLINE void AddCodes(const HalfBlock (&of)[2], int64_t from, int64_t low, int64_t high, const float (*weights)[R][2 * kCodeGroup],
                            const float (*offset)[R], const float* alpha, float* out, int64_t pitch, LinesAhead& ahead) {
  Vec<float> acc[N][R][Halves];
  HEED_UNROLL for (int n = 0; n < N; n++)
    HEED_UNROLL for (int i = 0; i < R; i++)
      HEED_UNROLL for (int x = 0; x < Halves; x++)
        acc[n][i][x] = Fma(Load(out + i * pitch + n * kCodeGroup + x * 16), Set1(alpha[i]), Set1(offset[n][i]));
  for (int64_t h = low / kCodeGroup; h * kCodeGroup < high; h++) {
    const int64_t first = h * kCodeGroup < low ? low : h * kCodeGroup, end = high < (h + 1) * kCodeGroup ? high : (h + 1) * kCodeGroup;
    const uint8_t* row = of[h].codes + from + (first - h * kCodeGroup) * of[h].step;
    for (int64_t j = first; j < end; j++, row += of[h].step) {
      if (j % (kCodeGroup / (N * Width<float>)) == 0) ahead.Ask(1);
      HEED_UNROLL for (int n = 0; n < N; n++) {
        const Mask<float> codes = LoadBytes(row + n * (kCodeGroup / 2));
        const Vec<float> number[2] = {LowHalves(codes), HighHalves(codes)};
        HEED_UNROLL for (int i = 0; i < R; i++) {
          const Vec<float> weight = Set1(weights[n][i][j]);
          HEED_UNROLL for (int x = 0; x < Halves; x++) acc[n][i][x] = Fma(weight, number[x], acc[n][i][x]);
        }
      }
    }
  }
  HEED_UNROLL for (int n = 0; n < N; n++)
    HEED_UNROLL for (int i = 0; i < R; i++)
      HEED_UNROLL for (int x = 0; x < Halves; x++) Store<float>(out + i * pitch + n * kCodeGroup + x * 16, acc[n][i][x]);
}
}  // namespace heed::HEED_ISA
