#include "matmul_tile.cuh"

HEED_KERNEL(heed_cuda_matmul_float64_64, heed_cuda_matmul, 256) { heed::matmul_tiles<double, double, 64, 4, 8>(args); }
HEED_KERNEL(heed_cuda_matmul_float32_64, heed_cuda_matmul, 256) { heed::matmul_tiles_float32<64, 4, 16>(args); }
HEED_KERNEL(heed_cuda_matmul_float32_128, heed_cuda_matmul, 256) { heed::matmul_tiles_float32<128, 8, 8>(args); }
