#include "gemm.h"

#include "context.h"

namespace heed {
namespace {
// A matrix of `rows` by `columns`, rows `ld` elements apart, `batch` of them `stride` apart, within one allocation.
int32_t CheckMatrix(const Context& context, const char* name, uint64_t address, const heed_cuda_gemm_info& gemm, int64_t rows, int64_t columns,
                    int64_t ld, int64_t stride) {
  const uint64_t element = gemm.dtype == HEED_FLOAT64 ? 8 : gemm.dtype == HEED_FLOAT32 ? 4 : 2;
  if (ld < columns || ld > INT32_MAX || stride < 0)
    return Fail(HEED_INVALID, "matrix %s of the product has rows %lld apart that are %lld long", name, static_cast<long long>(ld),
                static_cast<long long>(columns));
  unsigned __int128 last = static_cast<unsigned __int128>(gemm.batch - 1) * stride;
  last += static_cast<unsigned __int128>(rows - 1) * ld + columns;
  if (last * element > UINT64_MAX) return Fail(HEED_INVALID, "matrix %s of the product ends beyond 2^64 bytes", name);
  return context.memory.CheckRange(address, static_cast<uint64_t>(last) * element, name);
}
int32_t CheckGemm(const Context& context, const heed_cuda_gemm_info& g) {
  if (g.dtype < HEED_FLOAT64 || g.dtype > HEED_BFLOAT16) return Fail(HEED_INVALID, "dtype %d of a product is no float", g.dtype);
  for (const int64_t length : {g.m, g.n, g.k, g.batch})
    if (length < 1 || length > INT32_MAX) return Fail(HEED_UNSUPPORTED, "cuBLAS takes lengths from 1 to 2147483647, not %lld", static_cast<long long>(length));
  if (int32_t status = CheckMatrix(context, "a", g.a, g, g.transpose_a ? g.k : g.m, g.transpose_a ? g.m : g.k, g.lda, g.stride_a)) return status;
  if (int32_t status = CheckMatrix(context, "b", g.b, g, g.transpose_b ? g.n : g.k, g.transpose_b ? g.k : g.n, g.ldb, g.stride_b)) return status;
  return CheckMatrix(context, "c", g.c, g, g.m, g.n, g.ldc, g.stride_c);
}
}  // namespace
}  // namespace heed

using namespace heed;

extern "C" int32_t heed_cuda_gemm(heed_cuda_context* handle, const heed_cuda_gemm_info* gemm) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (const int32_t status = CheckBlock(gemm, "heed_cuda_gemm_info")) return status;
  const Entered context(handle);
  if (!context) return context.status;
  if (const int32_t status = CheckGemm(*context, *gemm)) return status;
  return context->gemm.Run(*gemm);
}
extern "C" const char* heed_cuda_gemm_library(void) {
  const std::lock_guard<std::mutex> guard(Lock());
  return GemmLibrary().c_str();
}
