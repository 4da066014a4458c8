#include "seal_pages.cuh"

HEED_KERNEL(heed_cuda_seal_pages_float32, heed_cuda_seal_pages, 256) { heed::seal_pages<float>(args); }
HEED_KERNEL(heed_cuda_seal_pages_float16, heed_cuda_seal_pages, 256) { heed::seal_pages<heed::f16>(args); }
HEED_KERNEL(heed_cuda_seal_pages_bfloat16, heed_cuda_seal_pages, 256) { heed::seal_pages<heed::bf16>(args); }
