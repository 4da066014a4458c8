#include "copy.cuh"

using heed::bf16;
using heed::f16;

HEED_KERNEL(heed_cuda_move, heed_cuda_copy_units, 256) {
  switch (heed::bytes_of(args.problem.x.dtype)) {
    case 8: return heed::move<uint64_t>(args);
    case 4: return heed::move<uint32_t>(args);
    case 2: return heed::move<uint16_t>(args);
    default: return heed::move<uint8_t>(args);
  }
}
HEED_KERNEL(heed_cuda_move_transposed, heed_cuda_transpose, 256) {
  switch (heed::bytes_of(args.problem.x.dtype)) {
    case 8: return heed::transpose<uint64_t>(args);
    case 4: return heed::transpose<uint32_t>(args);
    case 2: return heed::transpose<uint16_t>(args);
    default: return heed::transpose<uint8_t>(args);
  }
}
HEED_KERNEL(heed_cuda_convert_float, heed_cuda_copy_units, 256) {
  const int to = args.problem.out.dtype;
  switch (args.problem.x.dtype) {
    case HEED_FLOAT32: return to == HEED_FLOAT16 ? heed::convert<float, f16>(args) : heed::convert<float, bf16>(args);
    case HEED_FLOAT16: return to == HEED_FLOAT32 ? heed::convert<f16, float>(args) : heed::convert<f16, bf16>(args);
    default: return to == HEED_FLOAT32 ? heed::convert<bf16, float>(args) : heed::convert<bf16, f16>(args);
  }
}
HEED_KERNEL(heed_cuda_convert_any, heed_cuda_copy_units, 256) {
  if (args.walk.width == 1) heed::convert_any<1>(args);
  else heed::convert_any<4>(args);
}
