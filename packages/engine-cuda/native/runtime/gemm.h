// The matrix product of another library, where there is one.
#pragma once
#include <string>

#include "driver.h"

namespace heed {
struct Context;

/// A context's handle in cuBLAS.
class Gemm {
 public:
  explicit Gemm(Context& context) : context_(context) {}
  /// The product, its block checked. HEED_UNSUPPORTED where there is no library or it does not take the product.
  int32_t Run(const heed_cuda_gemm_info& gemm);
  void Close();

 private:
  int32_t Open();

  Context& context_;
  void* handle_ = nullptr;  // cublasHandle_t
  CUdeviceptr workspace_ = 0;
};
/// Path and version of the library in use, or "".
const std::string& GemmLibrary();
}  // namespace heed
