// Sizes are compiled together: what they share is compressed once, an eighth of the library.
#include "forward.cuh"

// Keys of a tile, and blocks that a multiprocessor holds: what 255 registers, or 168, are enough for. Measured on 9.0; 8.0 would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kKeys64 = 64, kBlocks64 = 2, kKeys128 = 48;
#else
constexpr int kKeys64 = 48, kBlocks64 = 3, kKeys128 = 64;
#endif

// Head sizes up to 64.
HEED_KERNEL_BLOCKS(heed_cuda_attention_bf16_64, heed_cuda_attention, 128, kBlocks64) { heed::attention_forward<heed::bf16, 64, 64, 128, kKeys64, 4, false>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_attention_f16_64, heed_cuda_attention, 128, kBlocks64) { heed::attention_forward<heed::f16, 64, 64, 128, kKeys64, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_64_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 64, 64, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_64_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 64, 64, 64, 64, 4, true>(args); }

// Head sizes up to 96.
HEED_KERNEL(heed_cuda_attention_bf16_96, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 96, 96, 128, 48, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_96, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 96, 96, 128, 48, 4, false>(args); }

// Head sizes up to 128.
HEED_KERNEL(heed_cuda_attention_bf16_128, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 128, 128, 128, kKeys128, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_128, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 128, 128, 128, kKeys128, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_128_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 128, 128, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_128_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 128, 128, 64, 64, 4, true>(args); }

// Keys up to 192, values up to 128: multi-head latent attention, expanded.
HEED_KERNEL(heed_cuda_attention_bf16_192, heed_cuda_attention, 256) { heed::attention_forward<heed::bf16, 192, 128, 128, 64, 8, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_192, heed_cuda_attention, 256) { heed::attention_forward<heed::f16, 192, 128, 128, 64, 8, false>(args); }

// Head sizes up to 256.
HEED_KERNEL(heed_cuda_attention_bf16_256, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 256, 256, 64, 64, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_256, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 256, 256, 64, 64, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_256_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 256, 256, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_256_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 256, 256, 64, 64, 4, true>(args); }

// Head sizes up to 512, values in slices of 256.
HEED_KERNEL(heed_cuda_attention_bf16_512, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 512, 256, 64, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_512, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 512, 256, 64, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_512_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 512, 256, 64, 16, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_512_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 512, 256, 64, 16, 4, true>(args); }
