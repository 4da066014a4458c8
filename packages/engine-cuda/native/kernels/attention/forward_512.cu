// Head sizes up to 512, values in slices of 256.
#include "forward.cuh"

HEED_KERNEL(heed_cuda_attention_bf16_512, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 512, 256, 64, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_512, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 512, 256, 64, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_512_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 512, 256, 64, 16, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_512_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 512, 256, 64, 16, 4, true>(args); }
