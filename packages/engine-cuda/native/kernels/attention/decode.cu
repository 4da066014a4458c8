// Few query rows over pages: of the queries' dtype, or of 8-bit codes.
#include "decode.cuh"

HEED_KERNEL_BLOCKS(heed_cuda_decode_bf16_64, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::bf16, 64, 64, 2>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_bf16_128, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::bf16, 128, 128, 2>(args); }
HEED_KERNEL(heed_cuda_decode_bf16_256, heed_cuda_attention, 128) { heed::attention_decode<heed::bf16, 256, 256, 2>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_f16_64, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::f16, 64, 64, 2>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_f16_128, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::f16, 128, 128, 2>(args); }
HEED_KERNEL(heed_cuda_decode_f16_256, heed_cuda_attention, 128) { heed::attention_decode<heed::f16, 256, 256, 2>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_bf16_64_codes, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::bf16, 64, 64, 1>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_bf16_128_codes, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::bf16, 128, 128, 1>(args); }
HEED_KERNEL(heed_cuda_decode_bf16_256_codes, heed_cuda_attention, 128) { heed::attention_decode<heed::bf16, 256, 256, 1>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_f16_64_codes, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::f16, 64, 64, 1>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_f16_128_codes, heed_cuda_attention, 128, 3) { heed::attention_decode<heed::f16, 128, 128, 1>(args); }
HEED_KERNEL(heed_cuda_decode_f16_256_codes, heed_cuda_attention, 128) { heed::attention_decode<heed::f16, 256, 256, 1>(args); }

// Few query rows over pages of 4-bit codes and their residual pages.
HEED_KERNEL_BLOCKS(heed_cuda_decode_bf16_64_int4, heed_cuda_attention, 128, 2) { heed::attention_decode<heed::bf16, 64, 64, 0>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_bf16_128_int4, heed_cuda_attention, 128, 2) { heed::attention_decode<heed::bf16, 128, 128, 0>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_bf16_256_int4, heed_cuda_attention, 128, 1) { heed::attention_decode<heed::bf16, 256, 256, 0>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_f16_64_int4, heed_cuda_attention, 128, 2) { heed::attention_decode<heed::f16, 64, 64, 0>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_f16_128_int4, heed_cuda_attention, 128, 2) { heed::attention_decode<heed::f16, 128, 128, 0>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_decode_f16_256_int4, heed_cuda_attention, 128, 1) { heed::attention_decode<heed::f16, 256, 256, 0>(args); }
