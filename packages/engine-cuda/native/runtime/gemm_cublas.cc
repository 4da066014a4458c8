// cuBLAS by dlopen: plain functions of its API, whose values are those of the cuBLAS 13 manual. They have been the same since 11.
#include <dirent.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "context.h"

namespace heed {
namespace {
enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_GEMM_DEFAULT = -1 };
enum { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_64F = 70 };
// No TF32 for float32, and no partial sums in 16 bits.
enum { CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16 };
constexpr uint64_t kWorkspaceBytes = 32ull << 20;  // what cuBLAS recommends for Hopper

struct Cublas {
  int (*cublasCreate_v2)(void** handle) = nullptr;
  int (*cublasDestroy_v2)(void* handle) = nullptr;
  int (*cublasSetStream_v2)(void* handle, CUstream stream) = nullptr;
  int (*cublasSetWorkspace_v2)(void* handle, void* workspace, size_t bytes) = nullptr;
  int (*cublasSetMathMode)(void* handle, int mode) = nullptr;
  int (*cublasGetVersion_v2)(void* handle, int* version) = nullptr;
  int (*cublasGemmStridedBatchedEx)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int type_a,
                                    int lda, long long stride_a, const void* b, int type_b, int ldb, long long stride_b, const void* beta,
                                    void* c, int type_c, int ldc, long long stride_c, int batch, int compute, int algorithm) = nullptr;
};
struct Found {
  Cublas functions;
  std::string path;     // "" where there is none
  std::string version;  // path and version, once a handle was made
  std::string tried;    // the places, for the words
};

void AddSitePackages(const std::string& root, std::vector<std::string>* folders) {
  const std::string lib = root + "/lib";
  DIR* folder = opendir(lib.c_str());
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    if (strncmp(entry->d_name, "python", 6) != 0) continue;
    for (const char* package : {"cu13", "cublas"})
      folders->push_back(lib + "/" + entry->d_name + "/site-packages/nvidia/" + package + "/lib/");
  }
  closedir(folder);
}
std::vector<std::string> Candidates() {
  if (const char* path = getenv("HEED_CUBLAS")) return {path};
  std::vector<std::string> folders = {""}, files;
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* home = getenv(variable)) folders.push_back(std::string(home) + "/lib64/");
  folders.push_back("/usr/local/cuda/lib64/");
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* root = getenv(variable)) AddSitePackages(root, &folders);
  for (const std::string& folder : folders)
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"}) files.push_back(folder + name);
  return files;
}
bool Load(const std::string& path, Cublas* functions) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
  bool complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    complete &= function != nullptr;
  };
  find(functions->cublasCreate_v2, "cublasCreate_v2");
  find(functions->cublasDestroy_v2, "cublasDestroy_v2");
  find(functions->cublasSetStream_v2, "cublasSetStream_v2");
  find(functions->cublasSetWorkspace_v2, "cublasSetWorkspace_v2");
  find(functions->cublasSetMathMode, "cublasSetMathMode");
  find(functions->cublasGetVersion_v2, "cublasGetVersion_v2");
  find(functions->cublasGemmStridedBatchedEx, "cublasGemmStridedBatchedEx");
  if (!complete) dlclose(library);
  return complete;
}
Found& Library() {
  static Found* found = [] {
    auto* search = new Found;
    for (const std::string& path : Candidates()) {
      if (Load(path, &search->functions)) {
        search->path = path;
        break;
      }
      search->tried += (search->tried.empty() ? "" : ", ") + path;
    }
    return search;
  }();
  return *found;
}
int32_t CublasError(int code, const char* what) {
  // 3 ALLOC_FAILED, 15 NOT_SUPPORTED.
  const int32_t status = code == 3 ? HEED_OUT_OF_MEMORY : code == 15 ? HEED_UNSUPPORTED : HEED_SYSTEM;
  return Fail(status, "%s: cuBLAS gave status %d", what, code);
}
}  // namespace

// The name the caller is told; "" until a product was asked for.
static std::string& InUse() {
  static auto* words = new std::string;
  return *words;
}
const std::string& GemmLibrary() { return InUse(); }

int32_t Gemm::Open() {
  Found& library = Library();
  if (library.path.empty()) return Fail(HEED_UNSUPPORTED, "there is no cuBLAS: tried %s", library.tried.c_str());
  if (context_.recording) return Fail(HEED_UNSUPPORTED, "cuBLAS cannot start while a graph is recorded: multiply once before");
  const Cublas& blas = library.functions;
  CUdeviceptr workspace = 0;
  if (int32_t status = context_.memory.Allocate(kWorkspaceBytes, &workspace)) return status;
  void* handle = nullptr;
  int version = 0;
  int code = blas.cublasCreate_v2(&handle);
  if (code == 0) code = blas.cublasSetStream_v2(handle, context_.stream);
  if (code == 0) code = blas.cublasSetWorkspace_v2(handle, reinterpret_cast<void*>(workspace), kWorkspaceBytes);
  if (code == 0) code = blas.cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  if (code == 0) code = blas.cublasGetVersion_v2(handle, &version);
  if (code != 0) {
    if (handle != nullptr) blas.cublasDestroy_v2(handle);
    context_.memory.Free(workspace);
    return CublasError(code, "starting cuBLAS");
  }
  handle_ = handle;
  workspace_ = workspace;
  InUse() = library.path + ", version " + std::to_string(version);
  return HEED_OK;
}

void Gemm::Close() {
  if (handle_ != nullptr) Library().functions.cublasDestroy_v2(handle_);
  if (workspace_ != 0) context_.memory.Free(workspace_);
  handle_ = nullptr;
  workspace_ = 0;
}

int32_t Gemm::Run(const heed_cuda_gemm_info& g) {
  if (handle_ == nullptr) {
    if (int32_t status = Open()) return status;
  }
  const bool wide = g.dtype == HEED_FLOAT64;
  const int type = wide ? CUDA_R_64F : g.dtype == HEED_FLOAT32 ? CUDA_R_32F : g.dtype == HEED_FLOAT16 ? CUDA_R_16F : CUDA_R_16BF;
  const float alpha = static_cast<float>(g.alpha), beta = static_cast<float>(g.beta);
  const auto at = [](uint64_t address) { return reinterpret_cast<void*>(address); };
  // cuBLAS has columns where this has rows: c^T = b^T a^T, on the same memory.
  const int code = Library().functions.cublasGemmStridedBatchedEx(
      handle_, g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, static_cast<int>(g.n),
      static_cast<int>(g.m), static_cast<int>(g.k), wide ? static_cast<const void*>(&g.alpha) : &alpha, at(g.b), type,
      static_cast<int>(g.ldb), g.stride_b, at(g.a), type, static_cast<int>(g.lda), g.stride_a, wide ? static_cast<const void*>(&g.beta) : &beta,
      at(g.c), type, static_cast<int>(g.ldc), g.stride_c, static_cast<int>(g.batch), wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
      CUBLAS_GEMM_DEFAULT);
  if (code != 0) return CublasError(code, "multiplying matrices");
  return context_.debug && !context_.recording
             ? context_.Check(context_.driver->cuStreamSynchronize(context_.stream), "multiplying matrices with cuBLAS")
             : HEED_OK;
}
}  // namespace heed
