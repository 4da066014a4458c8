// Keys up to 192, values up to 128: multi-head latent attention, expanded.
#include "forward.cuh"

HEED_KERNEL(heed_cuda_attention_bf16_192, heed_cuda_attention, 256) { heed::attention_forward<heed::bf16, 192, 128, 128, 64, 8, false>(args); }
HEED_KERNEL(heed_cuda_attention_f16_192, heed_cuda_attention, 256) { heed::attention_forward<heed::f16, 192, 128, 128, 64, 8, false>(args); }
HEED_KERNEL(heed_cuda_attention_bf16_192_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::bf16, 192, 128, 64, 64, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_f16_192_rich, heed_cuda_attention, 128) { heed::attention_forward<heed::f16, 192, 128, 64, 64, 4, true>(args); }
