#include "kernels.h"

#include <string.h>

#include <algorithm>

#include "context.h"

namespace heed {
namespace {
constexpr uint32_t kSharedWithoutAsking = 48 * 1024;  // above, a kernel has to opt in
constexpr uint32_t kParameterBytes = 4096;            // the most a kernel takes on every device (32764 from Volta on, with CUDA 12.1)
}  // namespace

void Kernels::Close() {
  for (const auto& [index, module] : modules_) context_.driver->cuModuleUnload(module);
  modules_.clear();
  by_name_.clear();
  by_handle_.clear();
}

int32_t Kernels::Module(int index, CUmodule* module) {
  const auto found = modules_.find(index);
  if (found != modules_.end()) {
    *module = found->second;
    return HEED_OK;
  }
  CUmodule loaded = nullptr;
  const CUresult code = context_.driver->cuModuleLoadData(&loaded, ModuleImage(index));
  if (code != CUDA_SUCCESS) {
    int version = 0;
    context_.driver->cuDriverGetVersion(&version);
    // 200 invalid image, 209 no binary for this device, 218 and 222 PTX that it cannot compile: all what an old driver says.
    const bool old = (code == 200 || code == 209 || code == 218 || code == 222) && version < 13000;
    return context_.Check(code, "loading the kernels%s", old ? " into a driver older than 580, which they need: update it" : "");
  }
  *module = modules_[index] = loaded;
  return HEED_OK;
}

int32_t Kernels::Describe(CUfunction function, const char* name, heed_cuda_kernel_info* info) {
  const Driver& driver = *context_.driver;
  int threads = 0, shared = 0, local = 0, registers = 0;
  CUresult code = driver.cuFuncGetAttribute(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function);
  if (code == CUDA_SUCCESS) code = driver.cuFuncGetAttribute(&shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function);
  if (code == CUDA_SUCCESS) code = driver.cuFuncGetAttribute(&local, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function);
  if (code == CUDA_SUCCESS) code = driver.cuFuncGetAttribute(&registers, CU_FUNC_ATTRIBUTE_NUM_REGS, function);
  size_t offset = 0, bytes = 0;
  if (code == CUDA_SUCCESS && driver.cuFuncGetParamInfo) code = driver.cuFuncGetParamInfo(function, 0, &offset, &bytes);
  if (int32_t status = context_.Check(code, "asking about kernel %s", name)) return status;
  *info = {sizeof *info, registers, 0, static_cast<uint32_t>(bytes), static_cast<uint32_t>(threads), static_cast<uint32_t>(local),
           static_cast<uint32_t>(shared)};
  return HEED_OK;
}

int32_t Kernels::Find(const char* name, Kernel** kernel) {
  const auto known = by_name_.find(name);
  if (known != by_name_.end()) {
    *kernel = &known->second;
    return HEED_OK;
  }
  const std::vector<KernelEntry>& all = KernelTable();
  const auto entry = std::lower_bound(all.begin(), all.end(), name,
                                      [](const KernelEntry& a, const char* wanted) { return strcmp(a.name, wanted) < 0; });
  if (entry == all.end() || strcmp(entry->name, name) != 0)
    return Fail(HEED_UNSUPPORTED, "there is no kernel %s among the %zu of this library", name, all.size());
  CUmodule module = nullptr;
  if (int32_t status = Module(entry->module, &module)) return status;
  Kernel found = {name, nullptr, {}, kSharedWithoutAsking};
  if (int32_t status = context_.Check(context_.driver->cuModuleGetFunction(&found.function, module, name), "finding kernel %s", name))
    return status;
  if (int32_t status = Describe(found.function, name, &found.info)) return status;
  found.info.handle = NextHandle();
  const auto added = by_name_.emplace(name, std::move(found)).first;
  by_handle_[added->second.info.handle] = &added->second;
  *kernel = &added->second;
  return HEED_OK;
}

// Everything about a launch that the driver would call an invalid value without saying which.
static int32_t CheckLaunch(const Context& context, const Kernel& kernel, const heed_cuda_launch_info& launch) {
  const char* name = kernel.name.c_str();
  const uint32_t* grid = launch.grid;
  if (launch.threads < 1 || launch.threads > kernel.info.max_threads)
    return Fail(HEED_INVALID, "%s takes blocks of 1 to %u threads, not %u", name, kernel.info.max_threads, launch.threads);
  if (grid[0] < 1 || grid[0] > INT32_MAX || grid[1] < 1 || grid[1] > 65535 || grid[2] < 1 || grid[2] > 65535)
    return Fail(HEED_INVALID, "%s in a grid of %u x %u x %u blocks: from 1 to 2147483647, 65535 and 65535", name, grid[0], grid[1], grid[2]);
  if (uint64_t{launch.shared} + kernel.info.shared_bytes > static_cast<uint64_t>(context.shared_per_block))
    return Fail(HEED_INVALID, "%s with %u bytes of shared memory beside its own %u: the device gives a block %d", name, launch.shared,
                kernel.info.shared_bytes, context.shared_per_block);
  const uint32_t expected = kernel.info.parameter_bytes;
  if (expected ? launch.args_bytes != expected : launch.args_bytes > kParameterBytes)
    return Fail(HEED_INVALID, "%s with an argument block of %u bytes, the kernel takes %u: reinstall the package so that both sides match",
                name, launch.args_bytes, expected ? expected : kParameterBytes);
  return HEED_OK;
}

static int32_t Launch(Context& context, Kernel& kernel, const heed_cuda_launch_info& launch) {
  const Driver& driver = *context.driver;
  if (int32_t status = CheckLaunch(context, kernel, launch)) return status;
  const uint32_t* grid = launch.grid;
  if (launch.shared > kernel.shared_allowed) {
    const CUresult code = driver.cuFuncSetAttribute(kernel.function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                    static_cast<int>(launch.shared));
    if (int32_t status = context.Check(code, "giving %s %u bytes of shared memory", kernel.name.c_str(), launch.shared)) return status;
    kernel.shared_allowed = launch.shared;
  }
  void* parameters[] = {const_cast<void*>(launch.args ? launch.args : static_cast<const void*>(&launch + 1))};
  CUresult code = driver.cuLaunchKernel(kernel.function, grid[0], grid[1], grid[2], launch.threads, 1, 1, launch.shared, context.stream,
                                        parameters, nullptr);
  if (code == CUDA_SUCCESS && context.debug && !context.recording) code = driver.cuStreamSynchronize(context.stream);
  return context.Check(code, "running %s (grid %u x %u x %u, %u threads, %u bytes of shared memory)", kernel.name.c_str(), grid[0], grid[1],
                       grid[2], launch.threads, launch.shared);
}
}  // namespace heed

using namespace heed;

extern "C" int32_t heed_cuda_kernel(heed_cuda_context* handle, const char* name, heed_cuda_kernel_info* info) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (const int32_t status = CheckBlock(info, "heed_cuda_kernel_info")) return status;
  if (name == nullptr) return Fail(HEED_INVALID, "a kernel without a name");
  const Entered context(handle);
  if (!context) return context.status;
  Kernel* kernel = nullptr;
  if (const int32_t status = context->kernels.Find(name, &kernel)) return status;
  *info = kernel->info;
  return HEED_OK;
}

extern "C" int32_t heed_cuda_launch(heed_cuda_context* handle, const heed_cuda_launch_info* launch) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (const int32_t status = CheckBlock(launch, "heed_cuda_launch_info")) return status;
  const Entered context(handle);
  if (!context) return context.status;
  Kernel* kernel = context->kernels.Find(launch->kernel);
  if (kernel == nullptr) return Fail(HEED_INVALID, "kernel handle %llu is not of this context", static_cast<unsigned long long>(launch->kernel));
  return Launch(*context, *kernel, *launch);
}

extern "C" const char* heed_cuda_kernels(void) {
  const std::lock_guard<std::mutex> guard(Lock());
  static const std::string* names = [] {
    auto* all = new std::string;
    for (const KernelEntry& kernel : KernelTable()) *all += std::string(all->empty() ? "" : "\n") + kernel.name;
    return all;
  }();
  return names->c_str();
}
