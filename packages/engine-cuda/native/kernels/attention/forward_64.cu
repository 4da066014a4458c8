// Head sizes up to 64.
#include "forward.cuh"

HEED_KERNEL(heed_cuda_attention_bf16_64, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 64, 64, 128, 64, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_64, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 64, 64, 128, 64, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_64_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 64, 64, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_64_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 64, 64, 64, 64, 4, true>(args); }
