// Of compute capability 9.0 alone: matrix products of a warpgroup (PTX ISA 9.0, 9.7.15: wgmma.mma_async), and what lets warpgroups have roles
// of their own: mbarriers (9.7.13.15), barriers of some threads, registers that one gives and another takes.
#pragma once
#include "kernel.h"

#ifdef HEED_WARPGROUP_PRODUCTS
#define HEED_C4(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define HEED_C16(n) HEED_C4(n), HEED_C4(n + 1), HEED_C4(n + 2), HEED_C4(n + 3)
#define HEED_C32(n) HEED_C16(n), HEED_C16(n + 4)
#define HEED_C64(n) HEED_C32(n), HEED_C32(n + 8)
#define HEED_R32_0                                                                                                                          \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define HEED_R32_32                                                                                                                         \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define HEED_R32_64                                                                                                                         \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define HEED_R32_96                                                                                                                         \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123," \
  "%124,%125,%126,%127"
#define HEED_R64 HEED_R32_0 "," HEED_R32_32
#define HEED_R128 HEED_R64 "," HEED_R32_64 "," HEED_R32_96
// a and b in shared memory, and whether c is added to; a in registers, b in shared memory. Then: no factors of -1, which operands are stored
// transposed.
#define HEED_SHARED(N, type, registers, a, b, add)                                                              \
  "{.reg .pred p; setp.ne.b32 p, " add ", 0;\n wgmma.mma_async.sync.aligned.m64n" N "k16.f32." type "." type " " \
  "{" registers "}, " a ", " b ", p, 1, 1, 0, 0;}"
#define HEED_REGISTERS(N, type, registers, a0, a1, a2, a3, b)                      \
  "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." type "." type " {" registers "}, " \
  "{" a0 ", " a1 ", " a2 ", " a3 "}, " b ", 1, 1, 1, 1;"

namespace heed {

template <typename T, int N>
DEVICE void warpgroup_multiply(float (&c)[N / 8][4], uint64_t a, uint64_t b, bool add);
template <typename T, int N>
DEVICE void warpgroup_multiply_transposed(float (&c)[N / 8][4], const uint32_t (&a)[4], uint64_t b);

#define HEED_PRODUCTS(T, type)                                                                                                         \
  template <>                                                                                                                          \
  DEVICE void warpgroup_multiply<T, 64>(float (&c)[8][4], uint64_t a, uint64_t b, bool add) {                                          \
    asm volatile(HEED_SHARED("64", type, HEED_R32_0, "%32", "%33", "%34") : HEED_C32(0) : "l"(a), "l"(b), "r"(static_cast<int>(add))); \
  }                                                                                                                                    \
  template <>                                                                                                                          \
  DEVICE void warpgroup_multiply<T, 128>(float (&c)[16][4], uint64_t a, uint64_t b, bool add) {                                        \
    asm volatile(HEED_SHARED("128", type, HEED_R64, "%64", "%65", "%66") : HEED_C64(0) : "l"(a), "l"(b), "r"(static_cast<int>(add)));  \
  }                                                                                                                                    \
  template <>                                                                                                                          \
  DEVICE void warpgroup_multiply_transposed<T, 64>(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {                             \
    asm volatile(HEED_REGISTERS("64", type, HEED_R32_0, "%32", "%33", "%34", "%35", "%36")                                             \
                 : HEED_C32(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                  \
  }                                                                                                                                    \
  template <>                                                                                                                          \
  DEVICE void warpgroup_multiply_transposed<T, 128>(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) {                           \
    asm volatile(HEED_REGISTERS("128", type, HEED_R64, "%64", "%65", "%66", "%67", "%68")                                              \
                 : HEED_C64(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                  \
  }                                                                                                                                    \
  template <>                                                                                                                          \
  DEVICE void warpgroup_multiply_transposed<T, 256>(float (&c)[32][4], const uint32_t (&a)[4], uint64_t b) {                           \
    asm volatile(HEED_REGISTERS("256", type, HEED_R128, "%128", "%129", "%130", "%131", "%132")                                        \
                 : HEED_C64(0), HEED_C64(16) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                    \
  }
HEED_PRODUCTS(bf16, "bf16")
HEED_PRODUCTS(f16, "f16")

DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEVICE void warpgroup_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// What a number that is not negative comes from is computed before what follows. The assembler would move it behind a wait, where tensor
// cores idle; over a store it moves neither. Nothing is stored.
DEVICE void settle(float x) {
  asm volatile("{.reg .pred p; setp.eq.f32 p, %0, 0fBF800000;\n @p st.volatile.shared.f32 [%1], %0;}" ::"f"(x), "r"(shared_start()) : "memory");
}
DEVICE void barrier_init(uint32_t at, int arrivals) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory"); }
DEVICE void barrier_arrive(uint32_t at) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(at) : "memory"); }
DEVICE void barrier_wait(uint32_t at, int parity) {
  asm volatile("{.reg .pred p;\n WAIT: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n @!p bra WAIT;}" ::"r"(at), "r"(parity) : "memory");
}
DEVICE void sync_threads(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
template <int N>
DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Of the 128-byte swizzle.
DEVICE uint64_t matrix_descriptor(uint32_t start, uint32_t leading, uint32_t stride) {
  const uint64_t sixteens = static_cast<uint64_t>(stride >> 4) << 32 | leading >> 4 << 16 | (start & 0x3ffff) >> 4;
  return sixteens | 1ull << 62;
}

}  // namespace heed
#undef HEED_C4
#undef HEED_C16
#undef HEED_C32
#undef HEED_C64
#undef HEED_R32_0
#undef HEED_R32_32
#undef HEED_R32_64
#undef HEED_R32_96
#undef HEED_R64
#undef HEED_R128
#undef HEED_SHARED
#undef HEED_REGISTERS
#undef HEED_PRODUCTS
#endif
