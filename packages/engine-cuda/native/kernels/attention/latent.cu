// Decode of latent attention over pages whose values are a prefix of their keys: up to 576 and 512. Tiles of 64 keys take all of the 227 KiB
// of shared memory of 9.0 and 10.0, tiles of 32 fit the 163 KiB of 8.0. A device has no machine code of what its shared memory rules out.
#include "latent.cuh"

namespace heed {
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;
#endif
constexpr bool kHasMost = kArchitecture == 900 || kArchitecture == 1000, kHasLittle = kArchitecture == 1200;
template <class T, int kKeys>
DEVICE void run_latent(const heed_cuda_attention& args) {
  if constexpr (!kHasLittle && !(kHasMost && kKeys == 32)) attention_latent<T, kKeys>(args);
}
template <class T>
DEVICE void run_merge(const heed_cuda_attention& args) {
  if constexpr (!kHasLittle) merge_latent<T>(args);
}
}  // namespace heed

HEED_KERNEL(heed_cuda_latent_bf16_64, heed_cuda_attention, 256) { heed::run_latent<heed::bf16, 64>(args); }
HEED_KERNEL(heed_cuda_latent_f16_64, heed_cuda_attention, 256) { heed::run_latent<heed::f16, 64>(args); }
HEED_KERNEL(heed_cuda_latent_bf16_32, heed_cuda_attention, 256) { heed::run_latent<heed::bf16, 32>(args); }
HEED_KERNEL(heed_cuda_latent_f16_32, heed_cuda_attention, 256) { heed::run_latent<heed::f16, 32>(args); }
HEED_KERNEL(heed_cuda_latent_merge_bf16, heed_cuda_attention, 128) { heed::run_merge<heed::bf16>(args); }
HEED_KERNEL(heed_cuda_latent_merge_f16, heed_cuda_attention, 128) { heed::run_merge<heed::f16>(args); }
