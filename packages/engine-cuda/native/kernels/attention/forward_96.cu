// Head sizes up to 96.
#include "forward.cuh"

HEED_KERNEL(heed_cuda_attention_bf16_96, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 96, 96, 128, 48, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_96, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 96, 96, 128, 48, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_96_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 96, 96, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_96_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 96, 96, 64, 64, 4, true>(args); }
