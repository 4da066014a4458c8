// Sizes are compiled together: what they share is compressed once, an eighth of the library.
#include "forward.cuh"
#include "forward_warpgroup.cuh"

// Where there is wgmma, the kernels on it stand for those without rules up to head size 256: the library has one of both for a device.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define ON_WARPS(...) __trap()
#else
#define ON_WARPS(...) heed::attention_forward<heed::__VA_ARGS__, false>(args)
#endif
#ifdef HEED_WARPGROUP_PRODUCTS
#define ON_WARPGROUPS(...) heed::attention_forward_warpgroup<heed::__VA_ARGS__>(args)
#else
#define ON_WARPGROUPS(...) __trap()
#endif

// Keys of a tile, and blocks that a multiprocessor holds: what 255 registers, or 168, are enough for. Measured on 9.0; 8.0 would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kKeys64 = 64, kBlocks64 = 2, kKeys128 = 48;
#else
constexpr int kKeys64 = 48, kBlocks64 = 3, kKeys128 = 64;
#endif

// Head sizes up to 64.
HEED_KERNEL_BLOCKS(heed_cuda_attention_bf16_64, heed_cuda_attention, 128, kBlocks64) { ON_WARPS(bf16, 64, 64, 128, kKeys64, 4); }
HEED_KERNEL_BLOCKS(heed_cuda_attention_f16_64, heed_cuda_attention, 128, kBlocks64) { ON_WARPS(f16, 64, 64, 128, kKeys64, 4); }
HEED_KERNEL(heed_cuda_attention_bf16_64_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 64, 64, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_64_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 64, 64, 64, 64, 4, true>(args); }

// Head sizes up to 96.
HEED_KERNEL(heed_cuda_attention_bf16_96, heed_cuda_attention, 128) { ON_WARPS(bf16, 96, 96, 128, 48, 4); }
HEED_KERNEL(heed_cuda_attention_f16_96, heed_cuda_attention, 128) { ON_WARPS(f16, 96, 96, 128, 48, 4); }

// Head sizes up to 128.
HEED_KERNEL(heed_cuda_attention_bf16_128, heed_cuda_attention, 128) { ON_WARPS(bf16, 128, 128, 128, kKeys128, 4); }
HEED_KERNEL(heed_cuda_attention_f16_128, heed_cuda_attention, 128) { ON_WARPS(f16, 128, 128, 128, kKeys128, 4); }
HEED_KERNEL(heed_cuda_attention_bf16_128_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 128, 128, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_128_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 128, 128, 64, 64, 4, true>(args); }

// Keys up to 192, values up to 128: multi-head latent attention, expanded.
HEED_KERNEL(heed_cuda_attention_bf16_192, heed_cuda_attention, 256) { ON_WARPS(bf16, 192, 128, 128, 64, 8); }
HEED_KERNEL(heed_cuda_attention_f16_192, heed_cuda_attention, 256) { ON_WARPS(f16, 192, 128, 128, 64, 8); }

// Head sizes up to 256.
HEED_KERNEL(heed_cuda_attention_bf16_256, heed_cuda_attention, 128) { ON_WARPS(bf16, 256, 256, 64, 64, 4); }
HEED_KERNEL(heed_cuda_attention_f16_256, heed_cuda_attention, 128) { ON_WARPS(f16, 256, 256, 64, 64, 4); }
HEED_KERNEL(heed_cuda_attention_bf16_256_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 256, 256, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_256_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 256, 256, 64, 64, 4, true>(args); }

// Head sizes up to 512, values in slices of 256.
HEED_KERNEL(heed_cuda_attention_bf16_512, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 512, 256, 64, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_512, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 512, 256, 64, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_512_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 512, 256, 64, 16, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_512_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 512, 256, 64, 16, 4, true>(args); }

// Head sizes up to 64, 128, 192 (values up to 128) and 256 on wgmma.
HEED_KERNEL(heed_cuda_attention_bf16_64_warpgroup, heed_cuda_attention, 512) { ON_WARPGROUPS(bf16, 64, 64, 3, 128); }
HEED_KERNEL(heed_cuda_attention_f16_64_warpgroup, heed_cuda_attention, 512) { ON_WARPGROUPS(f16, 64, 64, 3, 128); }
HEED_KERNEL(heed_cuda_attention_bf16_128_warpgroup, heed_cuda_attention, 384) { ON_WARPGROUPS(bf16, 128, 128, 2, 128); }
HEED_KERNEL(heed_cuda_attention_f16_128_warpgroup, heed_cuda_attention, 384) { ON_WARPGROUPS(f16, 128, 128, 2, 128); }
HEED_KERNEL(heed_cuda_attention_bf16_192_warpgroup, heed_cuda_attention, 384) { ON_WARPGROUPS(bf16, 192, 128, 2, 128); }
HEED_KERNEL(heed_cuda_attention_f16_192_warpgroup, heed_cuda_attention, 384) { ON_WARPGROUPS(f16, 192, 128, 2, 128); }
HEED_KERNEL(heed_cuda_attention_bf16_256_warpgroup, heed_cuda_attention, 384) { ON_WARPGROUPS(bf16, 256, 256, 2, 64); }
HEED_KERNEL(heed_cuda_attention_f16_256_warpgroup, heed_cuda_attention, 384) { ON_WARPGROUPS(f16, 256, 256, 2, 64); }
