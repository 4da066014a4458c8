// Error text of the C boundary.
#pragma once
#include "../abi/heed_cuda.h"

namespace heed {
/// Stores a printf-formatted message for heed_cuda_last_error() of this thread and returns `status`.
int32_t Fail(int32_t status, const char* format, ...) __attribute__((format(printf, 2, 3)));
/// Checks the size that a block starts with, before anything else of it is read.
template <class Block>
int32_t CheckBlock(const Block* block, const char* name) {
  if (block != nullptr && block->size == sizeof *block) return HEED_OK;
  return Fail(HEED_INVALID, "a %s of %u bytes, the library expects %zu: reinstall the package so that both sides match", name,
              block ? block->size : 0u, sizeof *block);
}
}  // namespace heed
