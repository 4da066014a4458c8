// The names of ../device/device.h, emulated: what kernels call when g++ compiles them.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "../device/kernel.h"
#include "async_copy.h"
#include "atomics.h"
#include "barriers.h"
#include "block.h"
#include "matrix.h"
#include "numbers.h"
#include "shared.h"
#include "shuffle.h"
#include "warpgroup.h"

// The last parameters of a collective: where the kernel calls it.
#define HEED_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace heed {

// Device functions that CUDA has without a header, and host headers only in std.
using std::max;
using std::min;

DEVICE int thread_x() { return emulation::current_thread->index; }
DEVICE int block_threads() { return emulation::current_thread->block->grid.threads; }
DEVICE int lane() { return thread_x() & 31; }
DEVICE int warp() { return thread_x() >> 5; }
DEVICE int block_x() { return emulation::current_thread->block->index[0]; }
DEVICE int block_y() { return emulation::current_thread->block->index[1]; }
DEVICE int block_z() { return emulation::current_thread->block->index[2]; }
DEVICE int grid_x() { return emulation::current_thread->block->grid.size[0]; }
DEVICE int grid_y() { return emulation::current_thread->block->grid.size[1]; }
DEVICE int grid_z() { return emulation::current_thread->block->grid.size[2]; }
DEVICE void sync_block(HEED_SITE) { emulation::current_thread->block->SyncBlock({file, line}); }
DEVICE void sync_warp(HEED_SITE) { emulation::current_thread->block->SyncWarp({file, line}); }
template <typename T> DEVICE T shuffle_xor(T value, int lanes, HEED_SITE) {
  return emulation::ShuffleFrom(emulation::Op::kShuffleXor, value, lane() ^ lanes, {file, line});
}
template <typename T> DEVICE T shuffle(T value, int from, HEED_SITE) {
  return emulation::ShuffleFrom(emulation::Op::kShuffle, value, from, {file, line});
}
DEVICE uint32_t ballot(bool yes, HEED_SITE) { return emulation::Ballot(yes, {file, line}); }

DEVICE uint32_t shared_start() { return emulation::kSharedStart; }

DEVICE void copy_async_16(uint32_t to, const void* from, bool valid) {
  emulation::current_thread->copies.Start(to, from, valid);
}
DEVICE void copy_async_commit() { emulation::current_thread->copies.Commit(); }
template <int N> DEVICE void copy_async_wait() { emulation::current_thread->copies.Wait(N); }

DEVICE void load_matrix_x4(uint32_t (&r)[4], uint32_t row, HEED_SITE) { emulation::LoadMatrix(r, row, false, {file, line}); }
DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t row, HEED_SITE) {
  emulation::LoadMatrix(r, row, true, {file, line});
}
template <typename T>
DEVICE void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, HEED_SITE);
template <>
DEVICE void mma_16x8x16<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const char* file, int line) {
  emulation::MultiplyAccumulate(emulation::Half::kBfloat16, c, a, b0, b1, {file, line});
}
template <>
DEVICE void mma_16x8x16<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const char* file, int line) {
  emulation::MultiplyAccumulate(emulation::Half::kFloat16, c, a, b0, b1, {file, line});
}

DEVICE uint64_t matrix_descriptor(uint32_t start, uint32_t leading, uint32_t stride) {
  return (start & 0x3ffff) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 | 1ull << 62;
}
template <typename T> constexpr emulation::Half kHalfOf = emulation::Half::kFloat16;
template <> constexpr emulation::Half kHalfOf<bf16> = emulation::Half::kBfloat16;
template <typename T, int N> DEVICE void warpgroup_multiply(float (&c)[N / 8][4], uint64_t a, uint64_t b, bool add, HEED_SITE) {
  static_assert(N % 8 == 0 && N >= 8 && N <= emulation::kMaxColumns, "m64nNk16");
  emulation::WarpgroupMultiply({kHalfOf<T>, add, false, N, a, b}, c[0], nullptr, {file, line});
}
template <typename T, int N>
DEVICE void warpgroup_multiply_transposed(float (&c)[N / 8][4], const uint32_t (&a)[4], uint64_t b, HEED_SITE) {
  static_assert(N % 8 == 0 && N >= 8 && N <= emulation::kMaxColumns, "m64nNk16");
  emulation::WarpgroupMultiply({kHalfOf<T>, true, true, N, 0, b}, c[0], a, {file, line});
}
DEVICE void warpgroup_fence(HEED_SITE) { emulation::WarpgroupFence({file, line}); }
DEVICE void warpgroup_commit(HEED_SITE) { emulation::WarpgroupCommit({file, line}); }
template <int N> DEVICE void warpgroup_wait(HEED_SITE) { emulation::WarpgroupWait(N, {file, line}); }
DEVICE void settle(float) {}
DEVICE void publish_shared() { emulation::PublishShared(); }

DEVICE void barrier_init(uint32_t at, int arrivals) { emulation::current_thread->block->InitBarrier(at, arrivals); }
DEVICE void barrier_arrive(uint32_t at) { emulation::current_thread->block->ArriveAtBarrier(at); }
DEVICE void barrier_wait(uint32_t at, int parity, HEED_SITE) {
  emulation::current_thread->block->WaitAtBarrier(at, parity, {file, line});
}
DEVICE void sync_threads(int id, int threads, HEED_SITE) {
  emulation::current_thread->block->SyncThreads(id, threads, {file, line});
}
template <int N> DEVICE void take_registers() { emulation::CheckRegisters(N, "take_registers"); }
template <int N> DEVICE void give_registers() { emulation::CheckRegisters(N, "give_registers"); }

DEVICE float exp2_approx(float x) { return emulation::Exp2Approx(x); }
DEVICE float log2_approx(float x) { return emulation::Log2Approx(x); }
DEVICE float reciprocal_approx(float x) { return emulation::ReciprocalApprox(x); }

DEVICE uint32_t float_bits(float x) { return emulation::BitsOf(x); }
DEVICE float bits_float(uint32_t bits) { return emulation::FloatOf(bits); }
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(f16 x) { return emulation::FromFloat16(x.bits); }
DEVICE float to_float(bf16 x) { return emulation::FromBfloat16(x.bits); }
template <typename T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE f16 from_float<f16>(float x) { return {emulation::ToFloat16(x)}; }
template <> DEVICE bf16 from_float<bf16>(float x) { return {emulation::ToBfloat16(x)}; }

struct Pair { float low, high; };
template <typename T> DEVICE uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <typename T> DEVICE Pair unpack2(uint32_t pair) {
  return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}

DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t word = 0;
  for (int i = 0; i < 4; i++) word |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return word;
}
template <typename T> DEVICE uint32_t subtract2(uint32_t a, uint32_t b) {
  const Pair x = unpack2<T>(a), y = unpack2<T>(b);
  return pack2<T>(x.low - y.low, x.high - y.high);
}
DEVICE uint32_t e4m3_to_f16x2(uint16_t codes) {
  uint32_t pair = 0;
  for (int i = 0; i < 2; i++) {
    const uint32_t code = codes >> 8 * i & 0xff, rest = code & 0x7f;
    const float number = emulation::FromFloat16(static_cast<uint16_t>((code & 0x80) << 8 | rest << 7)) * 256;
    pair |= static_cast<uint32_t>(rest == 0x7f ? 0x7fff : emulation::ToFloat16(number)) << 16 * i;
  }
  return pair;
}

struct alignas(8) Vec8 { uint32_t words[2]; };
struct alignas(16) Vec16 { uint32_t words[4]; };
DEVICE uint32_t load_u32(const void* p) {
  emulation::CheckLoad(p, 4, "load_u32");
  uint32_t word;
  memcpy(&word, p, 4);
  return word;
}
DEVICE Vec8 load_8(const void* p) {
  emulation::CheckLoad(p, 8, "load_8");
  Vec8 v;
  memcpy(&v, p, 8);
  return v;
}
DEVICE void store_8(void* p, Vec8 v) {
  emulation::CheckStore(p, 8, "store_8");
  memcpy(p, &v, 8);
}
DEVICE Vec16 load_16(const void* p) {
  emulation::CheckLoad(p, 16, "load_16");
  Vec16 v;
  memcpy(&v, p, 16);
  return v;
}
DEVICE void store_16(void* p, Vec16 v) {
  emulation::CheckStore(p, 16, "store_16");
  memcpy(p, &v, 16);
}

DEVICE void atomic_add(float* to, float value) { emulation::AtomicAddFloat<uint32_t>(to, value); }
DEVICE void atomic_add(double* to, double value) { emulation::AtomicAddFloat<uint64_t>(to, value); }
DEVICE uint32_t atomic_fetch_add(uint32_t* to, uint32_t value) { return emulation::AtomicFetchAdd(to, value); }
DEVICE void memory_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // namespace heed

#undef HEED_SITE
