// The instruction set in use: the best x86-64 level that the processor and the system have, or the one that was asked for.
#include <cpuid.h>
#include <stdint.h>
#include <string.h>

#include "kernel_table.h"
#include "status.h"

namespace heed {
namespace {
struct Level {
  const char* name;
  const KernelTable* table;
};
constexpr int kLevels = 3;
const Level kLevel[kLevels] = {{"v2", &v2::kTable}, {"v3", &v3::kTable}, {"v4", &v4::kTable}};

/// The register state the system saves (XCR0); 0 without OSXSAVE.
uint64_t SavedState(uint32_t leaf1_ecx) {
  if (!(leaf1_ecx & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}
bool Has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

/// Number of levels this processor has: a level needs its instructions and the system's saving of its registers.
/// Source: System V psABI for x86-64, table 3.1.
int Detect() {
  uint32_t a, b, c, d, ext_a, ext_b, ext_c, ext_d, leaf7_b = 0, unused;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  if (!__get_cpuid(0x80000001, &ext_a, &ext_b, &ext_c, &ext_d)) return 0;
  if (__get_cpuid_count(7, 0, &a, &leaf7_b, &unused, &unused) == 0) leaf7_b = 0;
  const uint64_t saved = SavedState(c);
  constexpr uint32_t kLahf = 1u << 0, kLzcnt = 1u << 5;
  if (!Has(c, bit_SSE3 | bit_SSSE3 | bit_CMPXCHG16B | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT) || !Has(ext_c, kLahf)) return 0;
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;
  const bool avx2 = (saved & kYmm) == kYmm && Has(c, bit_AVX | bit_F16C | bit_FMA | bit_MOVBE) &&
                    Has(leaf7_b, bit_AVX2 | bit_BMI | bit_BMI2) && Has(ext_c, kLzcnt);
  if (!avx2) return 1;
  const bool avx512 =
      (saved & kZmm) == kZmm && Has(leaf7_b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
  return avx512 ? 3 : 2;
}
int Available() {
  static int levels = -1;  // two threads may both detect: they find the same
  int known = __atomic_load_n(&levels, __ATOMIC_RELAXED);
  if (known < 0) __atomic_store_n(&levels, known = Detect(), __ATOMIC_RELAXED);
  return known;
}
int chosen = -1;
int Chosen() {
  const int level = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
  if (level >= 0) return level;
  const int best = Available() - 1;
  return best < 0 ? 0 : best;
}
}  // namespace

const KernelTable& Table() { return *kLevel[Chosen()].table; }
}  // namespace heed

extern "C" int32_t heed_select_isa(const char* name) {
  using namespace heed;
  if (Available() == 0)
    return Fail(HEED_UNSUPPORTED,
                "[isa] the kernels need at least x86-64-v2 (SSE4.2), which this processor lacks; use the portable engine");
  if (name == nullptr) {
    __atomic_store_n(&chosen, Available() - 1, __ATOMIC_RELAXED);
    return HEED_OK;
  }
  for (int i = 0; i < kLevels; i++) {
    if (strcmp(name, kLevel[i].name) != 0) continue;
    if (i >= Available())
      return Fail(HEED_UNSUPPORTED, "[isa] this processor lacks x86-64-%s; it has %s", name, heed_available_isas());
    __atomic_store_n(&chosen, i, __ATOMIC_RELAXED);
    return HEED_OK;
  }
  return Fail(HEED_INVALID, "[isa] unknown instruction set \"%.32s\"; this library has v2, v3 and v4", name);
}
extern "C" const char* heed_isa(void) { return heed::kLevel[heed::Chosen()].name; }
extern "C" const char* heed_available_isas(void) {
  static const char* const kLists[] = {"", "v2", "v2,v3", "v2,v3,v4"};
  return kLists[heed::Available()];
}
