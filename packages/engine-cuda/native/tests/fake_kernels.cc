// The kernel table of the runtime's tests, in the place of kernels_embedded.cc: three kernels of two modules for the fake driver.
#include "../runtime/kernels.h"

namespace heed {
const bool kEmulated = false;
const std::vector<KernelEntry>& KernelTable() {
  static const auto* table =
      new std::vector<KernelEntry>{{"heed_cuda_first", 0}, {"heed_cuda_other", 1}, {"heed_cuda_second", 0}};
  return *table;
}
const void* ModuleImage(int module) { return module == 0 ? "module zero" : "module one"; }
}  // namespace heed
