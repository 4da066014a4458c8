// Kernels by name: which are in this library, and their modules in a context, loaded when one is first asked for.
#pragma once
#include <stdint.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "driver.h"

namespace heed {
struct Context;

/// Whether this is the emulated build.
extern const bool kEmulated;
/// Names of all kernels, sorted; of each, the number of its module.
struct KernelEntry {
  const char* name;
  int module;
};
const std::vector<KernelEntry>& KernelTable();
/// What cuModuleLoadData takes for that module.
const void* ModuleImage(int module);

struct Kernel {
  std::string name;
  CUfunction function;
  heed_cuda_kernel_info info;
  uint32_t shared_allowed;  // dynamic shared memory that the driver was told of
};

class Kernels {
 public:
  explicit Kernels(Context& context) : context_(context) {}
  void Close();
  int32_t Find(const char* name, Kernel** kernel);
  Kernel* Find(uint64_t handle) {
    const auto found = by_handle_.find(handle);
    return found == by_handle_.end() ? nullptr : found->second;
  }

 private:
  int32_t Module(int index, CUmodule* module);
  int32_t Describe(CUfunction function, const char* name, heed_cuda_kernel_info* info);

  Context& context_;
  std::unordered_map<int, CUmodule> modules_;
  std::unordered_map<std::string, Kernel> by_name_;
  std::unordered_map<uint64_t, Kernel*> by_handle_;
};
}  // namespace heed
