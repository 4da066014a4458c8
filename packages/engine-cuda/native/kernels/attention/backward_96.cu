// Head sizes up to 96.
#include "backward.cuh"

HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 96, 96, 2, 16, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 96, 96, 2, 16, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 96, 96, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 96, 96, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_96_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 96, 96, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_96_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 96, 96, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_96_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 96, 96, 1, 32, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_96_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 96, 96, 1, 32, 4, true>(args); }
