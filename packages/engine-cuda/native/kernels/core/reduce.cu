#include "reduce.cuh"

HEED_KERNEL(heed_cuda_reduce_float64, heed_cuda_reduce, 256) { heed::reduce<double>(args); }
HEED_KERNEL(heed_cuda_reduce_float32, heed_cuda_reduce, 256) { heed::reduce<float>(args); }
HEED_KERNEL(heed_cuda_reduce_int32, heed_cuda_reduce, 256) { heed::reduce<int32_t>(args); }
HEED_KERNEL(heed_cuda_reduce_int64, heed_cuda_reduce, 256) { heed::reduce<int64_t>(args); }
