// Sizes are compiled together: what they share is compressed once, an eighth of the library.
#include "backward_pairs.cuh"

// Head sizes up to 64.
HEED_KERNEL_BLOCKS(heed_cuda_attention_backward_keys_bf16_64, heed_cuda_attention_backward, 128, 3) { heed::attention_backward_key_pairs<heed::bf16, 64, 4>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_attention_backward_keys_f16_64, heed_cuda_attention_backward, 128, 3) { heed::attention_backward_key_pairs<heed::f16, 64, 4>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_attention_backward_rows_bf16_64, heed_cuda_attention_backward, 128, 3) { heed::attention_backward_rows<heed::bf16, 64, 64, 2, 32, 4, false>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_attention_backward_rows_f16_64, heed_cuda_attention_backward, 128, 3) { heed::attention_backward_rows<heed::f16, 64, 64, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 64, 64, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 64, 64, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 64, 64, 1, 32, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_64_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 64, 64, 1, 32, 4, true>(args); }

// Head sizes up to 96.
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_key_pairs<heed::bf16, 96, 6>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_key_pairs<heed::f16, 96, 6>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 96, 96, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_96, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 96, 96, 2, 32, 4, false>(args); }

// Head sizes up to 128.
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 128, 128, 1, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 128, 128, 1, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 128, 128, 1, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_128, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 128, 128, 1, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 128, 128, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 128, 128, 1, 32, 4, 1, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 128, 128, 1, 32, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_128_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 128, 128, 1, 32, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_128_pairs, heed_cuda_attention_backward, 128) { heed::attention_backward_key_pairs<heed::bf16, 128, 2>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_128_pairs, heed_cuda_attention_backward, 128) { heed::attention_backward_key_pairs<heed::f16, 128, 2>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_128_tall, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 128, 128, 2, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_128_tall, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 128, 128, 2, 32, 4, false>(args); }

// Keys up to 192, values up to 128: multi-head latent attention, expanded.
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_192, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 192, 128, 1, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_192, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 192, 128, 1, 32, 4, 1, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_192, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 192, 128, 1, 32, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_192, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 192, 128, 1, 32, 4, false>(args); }

// Head sizes up to 256, columns of dk and dv in two slices.
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 256, 256, 1, 16, 4, 2, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 256, 256, 1, 16, 4, 2, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 256, 256, 1, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_256, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 256, 256, 1, 16, 4, false>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_bf16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::bf16, 256, 256, 1, 16, 4, 2, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_f16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_keys<heed::f16, 256, 256, 1, 16, 4, 2, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_bf16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::bf16, 256, 256, 1, 16, 4, true>(args); }
HEED_KERNEL(heed_cuda_attention_backward_rows_f16_256_rich, heed_cuda_attention_backward, 128) { heed::attention_backward_rows<heed::f16, 256, 256, 1, 16, 4, true>(args); }
