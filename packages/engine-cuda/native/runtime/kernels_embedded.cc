// The kernel table of libheed_cuda: kernel_table.inc, which the build writes from what the compiler saw, names each kernel and its
// module; modules.S embeds the modules.
#include "kernels.h"

#define KERNEL(name, module)
#define MODULE(number) extern "C" const unsigned char heed_module_##number[];
#include "kernel_table.inc"
#undef MODULE
#undef KERNEL

namespace heed {
const bool kEmulated = false;
const std::vector<KernelEntry>& KernelTable() {
  static const auto* table = new std::vector<KernelEntry>{
#define KERNEL(name, module) {#name, module},
#define MODULE(number)
#include "kernel_table.inc"
#undef MODULE
#undef KERNEL
  };
  return *table;
}
const void* ModuleImage(int module) {
  static const void* const images[] = {
#define KERNEL(name, module)
#define MODULE(number) heed_module_##number,
#include "kernel_table.inc"
#undef MODULE
#undef KERNEL
      nullptr};
  return images[module];
}
}  // namespace heed
