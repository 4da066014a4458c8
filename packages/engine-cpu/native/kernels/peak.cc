// What this processor can do at this level: the denominators of every efficiency figure.
#include "../simd/shuffle.h"
#include "../simd/vec.h"

namespace heed::HEED_ISA {
double FmaFlops(int64_t rounds);
double ReadBytes(const void* memory, int64_t bytes);

/// `rounds` rounds of independent multiply-adds on registers; returns the FLOPs done (float32).
/// 12 chains: two FMA units of latency 4 need 8, and 12 with two operands fit the 16 registers of AVX2.
double FmaFlops(int64_t rounds) {
  constexpr int kChains = 12;
  Vec<float> chain[kChains];
  HEED_UNROLL for (int i = 0; i < kChains; i++) chain[i] = Set1<float>(static_cast<float>(i));
  Vec<float> scale = Set1(0.999f), shift = Set1(0.001f);
  // The empty statements hide the values: the compiler can neither hoist nor drop a round.
  for (int64_t round = 0; round < rounds; round++) {
    HEED_UNROLL for (int i = 0; i < kChains; i++) chain[i] = Fma(chain[i], scale, shift);
    __asm__ volatile("" : "+x"(scale), "+x"(shift));
  }
  HEED_UNROLL for (int i = 0; i < kChains; i++) __asm__ volatile("" ::"x"(chain[i]));
  return 2.0 * kChains * Width<float> * static_cast<double>(rounds);
}
/// Reads `bytes` (rounded down to 8 vectors) once; returns a sum that depends on every one of them.
double ReadBytes(const void* memory, int64_t bytes) {
  constexpr int kLoads = 8;
  const float* p = static_cast<const float*>(memory);
  const int64_t blocks = bytes / (kLoads * kVecBytes);
  Vec<float> sum[kLoads] = {};
  for (int64_t block = 0; block < blocks; block++, p += kLoads * Width<float>) {
    HEED_UNROLL for (int i = 0; i < kLoads; i++) sum[i] += Load(p + i * Width<float>);
  }
  double total = 0;
  for (int i = 0; i < kLoads; i++) total += static_cast<double>(HorizontalSum<float>(sum[i]));
  return total;
}
}  // namespace heed::HEED_ISA
