#include "append.cuh"

HEED_KERNEL(heed_cuda_kv_append_float64, heed_cuda_kv_append, 256) { heed::kv_append<double>(args); }
HEED_KERNEL(heed_cuda_kv_append_float32, heed_cuda_kv_append, 256) { heed::kv_append<float>(args); }
HEED_KERNEL(heed_cuda_kv_append_float16, heed_cuda_kv_append, 256) { heed::kv_append<heed::f16>(args); }
HEED_KERNEL(heed_cuda_kv_append_bfloat16, heed_cuda_kv_append, 256) { heed::kv_append<heed::bf16>(args); }
