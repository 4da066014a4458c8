// Head sizes up to 256.
#include "forward.cuh"

HEED_KERNEL(heed_cuda_attention_bf16_256, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 256, 256, 64, 64, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_256, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 256, 256, 64, 64, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_256_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 256, 256, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_256_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 256, 256, 64, 64, 4, true>(args); }
