#include "elementwise.cuh"

HEED_KERNEL(heed_cuda_unary_float64, heed_cuda_unary, 256) { heed::unary<double>(args); }
HEED_KERNEL(heed_cuda_unary_float32, heed_cuda_unary, 256) { heed::unary<float>(args); }
HEED_KERNEL(heed_cuda_unary_float16, heed_cuda_unary, 256) { heed::unary<heed::f16>(args); }
HEED_KERNEL(heed_cuda_unary_bfloat16, heed_cuda_unary, 256) { heed::unary<heed::bf16>(args); }
HEED_KERNEL(heed_cuda_unary_int32, heed_cuda_unary, 256) { heed::unary<int32_t>(args); }
HEED_KERNEL(heed_cuda_unary_int64, heed_cuda_unary, 256) { heed::unary<int64_t>(args); }
HEED_KERNEL(heed_cuda_unary_bool, heed_cuda_unary, 256) {
  if (args.walk.width == 1) heed::not_units<1>(args);
  else heed::not_units<16>(args);
}
