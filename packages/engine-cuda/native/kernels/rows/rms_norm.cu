#include "rms_norm.cuh"

HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_float64, heed_cuda_rms_norm, 256, 3) { heed::rms_norm<double>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_float32, heed_cuda_rms_norm, 256, 4) { heed::rms_norm<float>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_float16, heed_cuda_rms_norm, 256, 4) { heed::rms_norm<heed::f16>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_bfloat16, heed_cuda_rms_norm, 256, 4) { heed::rms_norm<heed::bf16>(args); }

HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_backward_float64, heed_cuda_rms_norm_backward, 256, 2) { heed::rms_norm_backward<double>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_backward_float32, heed_cuda_rms_norm_backward, 256, 2) { heed::rms_norm_backward<float>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_backward_float16, heed_cuda_rms_norm_backward, 256, 2) { heed::rms_norm_backward<heed::f16>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_rms_norm_backward_bfloat16, heed_cuda_rms_norm_backward, 256, 2) { heed::rms_norm_backward<heed::bf16>(args); }
