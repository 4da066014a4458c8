// Head sizes up to 128.
#include "forward.cuh"

HEED_KERNEL(heed_cuda_attention_bf16_128, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 128, 128, 128, 48, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_128, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 128, 128, 128, 48, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_128_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 128, 128, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_128_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 128, 128, 64, 64, 4, true>(args); }
