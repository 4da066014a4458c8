#include "gather.cuh"

HEED_KERNEL(heed_cuda_gather_rows, heed_cuda_gather, 256) {
  switch (heed::bytes_of(args.problem.x.dtype)) {
    case 8: return heed::gather<uint64_t>(args);
    case 4: return heed::gather<uint32_t>(args);
    case 2: return heed::gather<uint16_t>(args);
    default: return heed::gather<uint8_t>(args);
  }
}
HEED_KERNEL_BLOCKS(heed_cuda_scatter_add_float64, heed_cuda_scatter_add, 128, 8) { heed::scatter_add<double>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_scatter_add_float32, heed_cuda_scatter_add, 128, 8) { heed::scatter_add<float>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_scatter_add_float16, heed_cuda_scatter_add, 128, 8) { heed::scatter_add<heed::f16>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_scatter_add_bfloat16, heed_cuda_scatter_add, 128, 8) { heed::scatter_add<heed::bf16>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_scatter_add_int32, heed_cuda_scatter_add, 128, 8) { heed::scatter_add<int32_t>(args); }
HEED_KERNEL_BLOCKS(heed_cuda_scatter_add_int64, heed_cuda_scatter_add, 128, 8) { heed::scatter_add<int64_t>(args); }
