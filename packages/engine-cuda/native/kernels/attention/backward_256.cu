// Head sizes up to 256, columns of dk and dv in two slices.
#include "backward.cuh"

HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 256, 256, 1, 16, 4, 2, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 256, 256, 1, 16, 4, 2, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 256, 256, 1, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 256, 256, 1, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 256, 256, 1, 16, 4, 2, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 256, 256, 1, 16, 4, 2, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 256, 256, 1, 16, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 256, 256, 1, 16, 4, true>(args); }
