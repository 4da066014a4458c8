// Attention backward of any dtype and stride without tensor cores, the gradient of masks and of sinks, and what comes before: sums over
// rows.
#include "backward_any.cuh"

HEED_KERNEL(heed_cuda_attention_backward_statistics_f32, heed_cuda_attention_backward, 256) { heed::attention_statistics<float>(args); }
HEED_KERNEL(heed_cuda_attention_backward_statistics_f64, heed_cuda_attention_backward, 256) { heed::attention_statistics<double>(args); }
HEED_KERNEL(heed_cuda_attention_backward_sinks_f32, heed_cuda_attention_backward, 256) { heed::attention_sinks_gradient<float>(args); }
HEED_KERNEL(heed_cuda_attention_backward_sinks_f64, heed_cuda_attention_backward, 256) { heed::attention_sinks_gradient<double>(args); }
HEED_KERNEL(heed_cuda_attention_backward_keys_any_f32, heed_cuda_attention_backward, 128) { heed::AnyBackward<float>(args).run_keys(); }
HEED_KERNEL(heed_cuda_attention_backward_keys_any_f64, heed_cuda_attention_backward, 128) { heed::AnyBackward<double>(args).run_keys(); }
HEED_KERNEL(heed_cuda_attention_backward_rows_any_f32, heed_cuda_attention_backward, 128) { heed::AnyBackward<float>(args).run_rows(); }
HEED_KERNEL(heed_cuda_attention_backward_rows_any_f64, heed_cuda_attention_backward, 128) { heed::AnyBackward<double>(args).run_rows(); }
HEED_KERNEL(heed_cuda_attention_backward_mask_f32, heed_cuda_attention_backward, 128) { heed::AnyBackward<float>(args).run_mask(); }
HEED_KERNEL(heed_cuda_attention_backward_mask_f64, heed_cuda_attention_backward, 128) { heed::AnyBackward<double>(args).run_mask(); }
