// Head sizes up to 64.
#include "backward.cuh"

HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_64, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 64, 64, 2, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_64, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 64, 64, 2, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_64, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 64, 64, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_64, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 64, 64, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 64, 64, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 64, 64, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 64, 64, 1, 32, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 64, 64, 1, 32, 4, true>(args); }
