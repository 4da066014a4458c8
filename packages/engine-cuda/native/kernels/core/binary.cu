#include "elementwise.cuh"

HEED_KERNEL(heed_cuda_binary_float64, heed_cuda_binary, 256) { heed::binary<double>(args); }
HEED_KERNEL(heed_cuda_binary_float32, heed_cuda_binary, 256) { heed::binary<float>(args); }
HEED_KERNEL(heed_cuda_binary_float16, heed_cuda_binary, 256) { heed::binary<heed::f16>(args); }
HEED_KERNEL(heed_cuda_binary_bfloat16, heed_cuda_binary, 256) { heed::binary<heed::bf16>(args); }
HEED_KERNEL(heed_cuda_binary_int32, heed_cuda_binary, 256) { heed::binary<int32_t>(args); }
HEED_KERNEL(heed_cuda_binary_int64, heed_cuda_binary, 256) { heed::binary<int64_t>(args); }
HEED_KERNEL(heed_cuda_binary_bool, heed_cuda_binary, 256) {
  if (args.walk.width == 1) heed::logical_units<1>(args);
  else heed::logical_units<16>(args);
}
