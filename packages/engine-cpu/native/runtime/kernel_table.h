// One entry per operation; a table per instruction set. The ABI layer calls the chosen table and nothing else.
#pragma once
#include "../abi/heed_cpu.h"
namespace heed {
// name: the C name without its prefix, so that heed_<name> is the block and heed_<name>_run the entry point.
#define HEED_KERNELS(X)                                                                                                  \
  X(unary) X(binary) X(reduce) X(copy) X(matmul) X(softmax) X(gather) X(scatter_add) X(rope) X(rms_norm)                 \
  X(rms_norm_backward) X(attention) X(attention_backward) X(paged_attention) X(kv_append) X(norm_rope_append) X(seal_pages)

struct KernelTable {
#define X(name) int (*name)(const heed_##name&);
  HEED_KERNELS(X)
#undef X
  double (*fma_flops)(int64_t rounds);                             // runs that many rounds, returns the FLOPs done
  double (*read_bytes)(const void* memory, int64_t bytes);         // reads the memory once, returns a sum nobody needs
};
namespace v2 { extern const KernelTable kTable; }
namespace v3 { extern const KernelTable kTable; }
namespace v4 { extern const KernelTable kTable; }
const KernelTable& Table();
}  // namespace heed
