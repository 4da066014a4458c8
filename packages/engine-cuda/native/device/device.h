// What kernels call: a thin layer over PTX under nvcc (cuda.h), an emulation of the same names under g++ (../emulation/device.h).
// Blocks have one axis of threads. "Collective" functions are called by every thread of the warp (of the block), together.
//
//   int thread_x(), block_threads(), lane(), warp();  int block_x(), block_y(), block_z(), grid_x(), grid_y(), grid_z();
//   void sync_block(), sync_warp();                       collective
//   T shuffle_xor(T, int), T shuffle(T, int lane);        collective; float, double, int32_t, uint32_t
//   uint32_t ballot(bool);                                collective
//   Shared<T> shared<T>(uint32_t byte, int count);        a part of dynamic shared memory: [i], address(i); bounds-checked by the emulation
//   uint32_t shared_start();                              its first byte, as an address for the functions below; 1024-byte aligned
//   void copy_async_16(uint32_t to, const void* from, bool valid);   16 bytes, zeros where !valid, which arrive at the wait
//   void copy_async_commit(); void copy_async_wait<N>();  until at most N groups of this thread are under way
//   void load_matrix_x4(uint32_t (&r)[4], uint32_t row), load_matrix_x4_transposed(...);   ldmatrix; collective
//   void mma_16x8x16<T>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);  T = f16, bf16; collective
// Where HEED_WARPGROUP_PRODUCTS is defined, which is compute capability 9.0 and the emulation (wgmma.h). "Of the warpgroup": of 128 threads,
// the first a multiple of 128.
//   uint64_t matrix_descriptor(uint32_t start, uint32_t leading, uint32_t stride);   a tile of 16-bit numbers in the 128-byte swizzle
//   void warpgroup_multiply<T, N>(float (&c)[N / 8][4], uint64_t a, uint64_t b, bool add);   c [64, N] = (add ? c : 0) + a b^T, both K-major
//   void warpgroup_multiply_transposed<T, N>(float (&c)[N / 8][4], const uint32_t (&a)[4], uint64_t b);   c += a b, b MN-major
//   void warpgroup_fence();                               before a product of registers that were written; of the warpgroup, as are all of these
//   void warpgroup_commit(); void warpgroup_wait<N>();    until at most N groups of products are under way; until then nobody touches c and a
//   void publish_shared();                                this thread's stores and landed copies, for products behind the next barrier
//   void settle(float);                                   what a number that is not negative comes from is computed before what follows
//   void barrier_init(uint32_t at, int arrivals), barrier_arrive(uint32_t at), barrier_wait(uint32_t at, int parity);   mbarrier, 8 bytes
//   void sync_threads(int id, int threads);               a barrier of whole warps, id 1 .. 15
//   void take_registers<N>(), give_registers<N>();        registers of a thread from here on; of the warpgroup
//   float exp2_approx(float), log2_approx(float), reciprocal_approx(float);  tanh_approx is not used: its error is 2^-11
//   uint32_t float_bits(float), float bits_float(uint32_t): the same 32 bits
//   float to_float(f16 | bf16 | float), T from_float<T>(float): round to nearest even, infinities and NaN kept
//   uint32_t pack2<T>(float low, float high); float2_ unpack2<T>(uint32_t)
//   uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector): bytes of a (0 .. 3) and b (4 .. 7) by the selector's four low nibbles
//   uint32_t subtract2<T>(uint32_t, uint32_t): of two numbers each; e4m3_to_f16x2(uint16_t): two codes
//   uint32_t load_u32(const void*), Vec8 load_8(const void*), void store_8(void*, Vec8), Vec16 load_16, store_16: aligned vectors
//   void atomic_add(float* | double*, value); uint32_t atomic_fetch_add(uint32_t*, uint32_t); void memory_fence();
#pragma once
#ifdef __CUDACC__
#include "cuda.h"
#else
#include "../emulation/device.h"
#endif
