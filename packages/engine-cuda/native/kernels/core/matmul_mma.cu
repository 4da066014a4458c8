#include "matmul_mma.cuh"

HEED_KERNEL(heed_cuda_matmul_float16_64, heed_cuda_matmul, 128) { heed::matmul_mma<heed::f16, 64, 32, 32>(args); }
HEED_KERNEL(heed_cuda_matmul_bfloat16_64, heed_cuda_matmul, 128) { heed::matmul_mma<heed::bf16, 64, 32, 32>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_matmul_float16_128, heed_cuda_matmul, 256, 2) { heed::matmul_mma<heed::f16, 128, 64, 32>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_matmul_bfloat16_128, heed_cuda_matmul, 256, 2) { heed::matmul_mma<heed::bf16, 128, 64, 32>(args); }
