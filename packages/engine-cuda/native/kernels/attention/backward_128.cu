// Head sizes up to 128.
#include "backward.cuh"

HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 128, 128, 1, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 128, 128, 1, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 128, 128, 1, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 128, 128, 1, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 128, 128, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 128, 128, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 128, 128, 1, 32, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 128, 128, 1, 32, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_128_tall, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 128, 128, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_128_tall, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 128, 128, 2, 32, 4, false>(args); }
