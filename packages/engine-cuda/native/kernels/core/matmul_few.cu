#include "matmul_few.cuh"

using heed::bf16;
using heed::f16;
using heed::kFewRows;

HEED_KERNEL_BLOCKS(heed_cuda_matmul_float64_few, heed_cuda_matmul, 256, 2) { heed::matmul_few<double, double, kFewRows>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_matmul_float32_few, heed_cuda_matmul, 256, 2) { heed::matmul_few_float32<kFewRows>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_matmul_float16_few, heed_cuda_matmul, 256, 2) { heed::matmul_few<f16, f16, kFewRows>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_matmul_bfloat16_few, heed_cuda_matmul, 256, 2) { heed::matmul_few<bf16, bf16, kFewRows>(args); }
HEED_KERNEL(heed_cuda_matmul_float64_one, heed_cuda_matmul, 256) { heed::matmul_few<double, double, 1>(args); }
HEED_KERNEL(heed_cuda_matmul_float32_one, heed_cuda_matmul, 256) { heed::matmul_few_float32<1>(args); }
HEED_KERNEL(heed_cuda_matmul_float16_one, heed_cuda_matmul, 256) { heed::matmul_few<f16, f16, 1>(args); }
HEED_KERNEL(heed_cuda_matmul_bfloat16_one, heed_cuda_matmul, 256) { heed::matmul_few<bf16, bf16, 1>(args); }
