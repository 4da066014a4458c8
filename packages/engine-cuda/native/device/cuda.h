// The names of device.h in PTX. Each wrapper is one instruction; PTX ISA 9.0 has their definitions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "kernel.h"

namespace heed {

DEVICE int thread_x() { return threadIdx.x; }
DEVICE int block_threads() { return blockDim.x; }
DEVICE int lane() { return threadIdx.x & 31; }
DEVICE int warp() { return threadIdx.x >> 5; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int grid_x() { return gridDim.x; }
DEVICE int grid_y() { return gridDim.y; }
DEVICE int grid_z() { return gridDim.z; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
template <typename T>
DEVICE T shuffle_xor(T value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }
template <typename T>
DEVICE T shuffle(T value, int from) { return __shfl_sync(~0u, value, from); }
DEVICE uint32_t ballot(bool yes) { return __ballot_sync(~0u, yes); }

extern __shared__ __align__(1024) unsigned char dynamic_shared[];
DEVICE uint32_t shared_start() { return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared)); }
template <typename T>
struct Shared {
  T* data;
  uint32_t start;  // for copy_async_16 and load_matrix_x4
  DEVICE T& operator[](int i) const { return data[i]; }
  DEVICE uint32_t address(int i) const { return start + i * static_cast<int>(sizeof(T)); }
};
template <typename T>
DEVICE Shared<T> shared(uint32_t byte, int /*count*/) {
  return {reinterpret_cast<T*>(dynamic_shared + byte), shared_start() + byte};
}

DEVICE void copy_async_16(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;  // the rest of the 16 becomes zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

DEVICE void load_matrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
// c [16, 8] += a [16, 16] b [16, 8], in the fragments of PTX's mma.m16n8k16.
template <typename T>
DEVICE void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
DEVICE void mma_16x8x16<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
DEVICE void mma_16x8x16<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(uint32_t word) { return __uint_as_float(word); }
DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
template <typename T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) { return x; }
template <>
DEVICE f16 from_float<f16>(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
template <>
DEVICE bf16 from_float<bf16>(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }

struct Pair { float low, high; };
template <typename T>
DEVICE uint32_t pack2(float low, float high);
template <>
DEVICE uint32_t pack2<bf16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
DEVICE uint32_t pack2<f16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <typename T>
DEVICE Pair unpack2(uint32_t pair) {
  return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}

// Bytes of a (0 .. 3) and b (4 .. 7) by the four low nibbles of a selector.
DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
template <typename T>
DEVICE uint32_t subtract2(uint32_t a, uint32_t b);
template <>
DEVICE uint32_t subtract2<f16>(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <>
DEVICE uint32_t subtract2<bf16>(uint32_t a, uint32_t b) {  // sub.bf16x2 is of 9.0 on
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(b), "r"(0xbf80bf80), "r"(a));
  return r;
}
// Two codes of e4m3 as float16: exact, NaN kept.
DEVICE uint32_t e4m3_to_f16x2(uint16_t codes) {
  uint32_t r;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(codes));
#else
  const uint32_t x = __byte_perm(codes, 0, 0x4140), rest = x & 0x007f007f, nan = rest + 0x00010001 & 0x00800080;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x << 8 & 0x80008000 | rest << 7), "r"(0x5c005c00));  // 2^8, what the biases differ by
  r |= (nan << 8) - (nan >> 7);
#endif
  return r;
}

struct alignas(8) Vec8 { uint32_t words[2]; };
struct alignas(16) Vec16 { uint32_t words[4]; };
DEVICE uint32_t load_u32(const void* p) { return *static_cast<const uint32_t*>(p); }
DEVICE Vec8 load_8(const void* p) {
  const uint2 v = *static_cast<const uint2*>(p);
  return {{v.x, v.y}};
}
DEVICE void store_8(void* p, Vec8 v) { *static_cast<uint2*>(p) = make_uint2(v.words[0], v.words[1]); }
DEVICE Vec16 load_16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
DEVICE void store_16(void* p, Vec16 v) { *static_cast<uint4*>(p) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]); }

DEVICE void atomic_add(float* to, float value) { atomicAdd(to, value); }
DEVICE void atomic_add(double* to, double value) { atomicAdd(to, value); }
DEVICE uint32_t atomic_fetch_add(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
DEVICE void memory_fence() { __threadfence(); }

}  // namespace heed

#include "wgmma.h"
