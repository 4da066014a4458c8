// Attention forward of any dtype, stride and storage, without tensor cores.
#include "any.cuh"

HEED_KERNEL(heed_cuda_attention_any_f32, heed_cuda_attention, 128) { heed::attention_any<float>(args); }
HEED_KERNEL(heed_cuda_attention_any_f64, heed_cuda_attention, 128) { heed::attention_any<double>(args); }
