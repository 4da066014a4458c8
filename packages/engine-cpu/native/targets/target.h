// Every kernel source is compiled once per instruction set, with HEED_ISA (v2, v3 or v4) as its namespace. Kernel sources include
// no header that defines inline functions with external linkage (<algorithm>, <vector>, ...): the linker would keep one copy,
// perhaps the one that uses instructions this processor lacks. tools/check-native.ts checks that.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifndef HEED_ISA
#define HEED_ISA v2
#endif
#define HEED_INLINE static inline __attribute__((always_inline))
// For specialisations, which take no `static` (the namespace keeps the levels apart), and for static members.
#define HEED_ALWAYS_INLINE inline __attribute__((always_inline))
#define HEED_NOINLINE static __attribute__((noinline))
#define HEED_UNROLL _Pragma("GCC unroll 16")
// In the body of a strided loop: keeps the compiler from making gathers and scatters of it, which cost twice the loads they replace.
#define HEED_SCALAR __asm__ volatile("")

namespace heed::HEED_ISA {
HEED_INLINE int64_t Divide(int64_t n, int64_t by) { return (n + by - 1) / by; }  // rounded up
HEED_INLINE int64_t RoundUp(int64_t n, int64_t to) { return Divide(n, to) * to; }
}  // namespace heed::HEED_ISA
