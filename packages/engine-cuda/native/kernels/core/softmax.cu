#include "softmax.cuh"

HEED_KERNEL(heed_cuda_softmax_float64, heed_cuda_softmax, 256) { heed::softmax<double>(args); }
HEED_KERNEL(heed_cuda_softmax_float32, heed_cuda_softmax, 256) { heed::softmax<float>(args); }
HEED_KERNEL(heed_cuda_softmax_float16, heed_cuda_softmax, 256) { heed::softmax<heed::f16>(args); }
HEED_KERNEL(heed_cuda_softmax_bfloat16, heed_cuda_softmax, 256) { heed::softmax<heed::bf16>(args); }
