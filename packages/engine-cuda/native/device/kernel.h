// How a kernel is declared, once for nvcc and once for the emulation, and the types that both share.
//
//   HEED_KERNEL(heed_cuda_softmax, heed_softmax, 256) { ... args.x ... }
//
// defines a kernel of that name, launched with at most 256 threads in one axis, whose only parameter is the block `args`. Kernels are
// found by name at run time; a template gets one HEED_KERNEL line for each instantiation.
#pragma once
#include <stdint.h>

// Where there are matrix products of a warpgroup.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HEED_WARPGROUP_PRODUCTS
#endif

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")  // a loop that stays one, to keep registers free or code small
#define OUTLINED __noinline__ __device__
#define HEED_KERNEL(name, Args, max_threads) \
  extern "C" __global__ void __launch_bounds__(max_threads) name(const __grid_constant__ Args args)
// The same with a floor for the blocks that a multiprocessor holds at once, which bounds the registers of a thread.
#define HEED_KERNEL_BLOCKS(name, Args, max_threads, min_blocks) \
  extern "C" __global__ void __launch_bounds__(max_threads, min_blocks) name(const __grid_constant__ Args args)
#else
#define DEVICE inline __attribute__((always_inline))
#define UNROLL
#define ROLLED
#define OUTLINED inline
#include "../emulation/registry.h"
#define HEED_KERNEL(name, Args, max_threads)                                                             \
  static void name##_body(const Args& args);                                                             \
  static const heed::emulation::Registration name##_registration{                                        \
      #name, sizeof(Args), max_threads, [](const void* args) { name##_body(*static_cast<const Args*>(args)); }}; \
  static void name##_body(const Args& args)
#define HEED_KERNEL_BLOCKS(name, Args, max_threads, min_blocks) HEED_KERNEL(name, Args, max_threads)
#endif

namespace heed {
// Storage of 16-bit floats; device.h converts.
struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };
}  // namespace heed
