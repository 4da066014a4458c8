// Decode of latent attention over pages whose values are a prefix of their keys: up to 576 and 512.
#include "latent.cuh"

HEED_KERNEL(heed_cuda_latent_bf16, heed_cuda_attention, 256) { heed::attention_latent<heed::bf16>(args); }
HEED_KERNEL(heed_cuda_latent_f16, heed_cuda_attention, 256) { heed::attention_latent<heed::f16>(args); }
