// The kernel table of libheed_cuda_emulated: what HEED_KERNEL registered.
#include <string.h>

#include <algorithm>

#include "../emulation/registry.h"
#include "kernels.h"

namespace heed {
const bool kEmulated = true;
const std::vector<KernelEntry>& KernelTable() {
  static const auto* table = [] {
    auto* all = new std::vector<KernelEntry>;
    for (const auto* kernel = emulation::FirstKernel(); kernel; kernel = kernel->next) all->push_back({kernel->name, 0});
    std::sort(all->begin(), all->end(), [](const KernelEntry& a, const KernelEntry& b) { return strcmp(a.name, b.name) < 0; });
    return all;
  }();
  return *table;
}
const void* ModuleImage(int) { return nullptr; }
}  // namespace heed
