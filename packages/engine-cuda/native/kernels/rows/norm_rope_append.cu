#include "norm_rope_append.cuh"

HEED_KERNEL(heed_cuda_norm_rope_append_float64, heed_cuda_norm_rope_append, 256) { heed::norm_rope_append<double>(args); }
HEED_KERNEL(heed_cuda_norm_rope_append_float32, heed_cuda_norm_rope_append, 256) { heed::norm_rope_append<float>(args); }
HEED_KERNEL(heed_cuda_norm_rope_append_float16, heed_cuda_norm_rope_append, 256) { heed::norm_rope_append<heed::f16>(args); }
HEED_KERNEL(heed_cuda_norm_rope_append_bfloat16, heed_cuda_norm_rope_append, 256) { heed::norm_rope_append<heed::bf16>(args); }
