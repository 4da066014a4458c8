#include "rope.cuh"

HEED_KERNEL(heed_cuda_rope_float64, heed_cuda_rope, 256) { heed::rope<double>(args); }
HEED_KERNEL(heed_cuda_rope_float32, heed_cuda_rope, 256) { heed::rope<float>(args); }
HEED_KERNEL(heed_cuda_rope_float16, heed_cuda_rope, 256) { heed::rope<heed::f16>(args); }
HEED_KERNEL(heed_cuda_rope_bfloat16, heed_cuda_rope, 256) { heed::rope<heed::bf16>(args); }
