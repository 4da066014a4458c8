// Dropout of attention weights. Whether key j of query i, head h and batch b is kept is a pure function of these and of the seed:
//   word j % 4 of Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, doi:10.1145/2063384.2063405), key = seed,
//   counter = (j / 4, i, h, b), is at least the threshold, probability * 2^32
// so neither tiles, threads nor the instruction set change it, and the backward pass draws it again. Per key 2.5 instructions with
// AVX-512: kPhiloxBlocks counters side by side, a word in the low half of each 64-bit lane; what stands in the high half is ignored.
#pragma once
#include "../abi/heed_cpu.h"
#include "../simd/shuffle.h"
#include "../simd/storage.h"

namespace heed::HEED_ISA {
constexpr int64_t kPhiloxBlocks = kVecBytes / 8;

/// The words of counters (first + n, x1, x2, x3), n < kPhiloxBlocks, four for each.
HEED_INLINE void Philox(uint32_t (&words)[4 * kPhiloxBlocks], uint64_t first, uint64_t x1, uint64_t x2, uint64_t x3, uint64_t key) {
  constexpr uint64_t low = 0xffffffff;
  U64 a, b = x1 - U64{}, c = x2 - U64{}, d = x3 - U64{};
  HEED_UNROLL for (int64_t n = 0; n < kPhiloxBlocks; n++) a[n] = n;
  a += first;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  HEED_UNROLL for (int round = 0; round < 10; round++) {
    const U64 from_a = MultiplyLow(a, uint64_t{0xd2511f53} - U64{}), from_c = MultiplyLow(c, uint64_t{0xcd9e8d57} - U64{});
    a = (from_c >> 32) ^ b ^ uint64_t{k0};
    b = from_c;
    c = (from_a >> 32) ^ d ^ uint64_t{k1};
    d = from_a;
    k0 += 0x9e3779b9;
    k1 += 0xbb67ae85;
  }
  const U64 even = (a & low) | b << 32, odd = (c & low) | d << 32;
  const Vec<double> pairs[2] = {(Vec<double>)even, (Vec<double>)odd};
  const Vec<double> in_order[2] = {Shuffle<double, Riffle<kPhiloxBlocks, 0>>(pairs[0], pairs[1]),
                                   Shuffle<double, Riffle<kPhiloxBlocks, kPhiloxBlocks / 2>>(pairs[0], pairs[1])};
  memcpy(words, in_order, sizeof words);
}

/// heed_scores' dropout, resolved once per call.
template <class T> struct Dropout {
  T factor;  // of a kept weight: 1 / (1 - probability); 0: no dropout
  uint32_t threshold;
  uint64_t seed;

  bool On() const { return factor != 0; }
  /// keep[0 .. n) = factor where key j0 + i is kept, else 0.
  __attribute__((noinline)) void Draw(T* keep, int64_t n, int64_t batch, int64_t head, int64_t query, int64_t j0) const {
    constexpr int64_t each = 4 * kPhiloxBlocks;
    uint32_t words[each];
    const uint32_t least = threshold;
    const T kept = factor;
    for (int64_t j = j0 / 4 * 4; j < j0 + n; j += each) {
      Philox(words, j / 4, query, head, batch, seed);
      T drawn[each];
      // No branch: a coin would mispredict it.
      for (int64_t i = 0; i < each; i++) drawn[i] = static_cast<T>(words[i] >= least) * kept;
      const int64_t skip = j < j0 ? j0 - j : 0, end = j0 + n - j < each ? j0 + n - j : each;
      memcpy(keep + j + skip - j0, drawn + skip, static_cast<size_t>(end - skip) * sizeof(T));
    }
  }
};
/// p[0 .. n) *= keep, 0 where keep is 0, whatever p. n is a multiple of Width<T>.
template <class T> HEED_INLINE void Drop(T* p, const T* keep, int64_t n) {
  for (int64_t i = 0; i < n; i += Width<T>) {
    const Vec<T> factor = Load(keep + i);
    Store<T>(p + i, Select<T>(factor == Vec<T>{}, Vec<T>{}, Load(p + i) * factor));
  }
}
}  // namespace heed::HEED_ISA
