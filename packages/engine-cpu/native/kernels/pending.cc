// TEMPORARY: operations whose kernels are still being written refuse in words. The definitions are weak: a real one replaces them.
#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "../targets/target.h"
namespace heed::HEED_ISA {
#define PENDING(name)                                                                                                \
  int name(const heed_##name&);                                                                                      \
  __attribute__((weak)) int name(const heed_##name&) {                                                               \
    return Fail(HEED_UNSUPPORTED, "[" #name "] no native kernel in this build yet");                                 \
  }
HEED_KERNELS(PENDING)
#undef PENDING
}  // namespace heed::HEED_ISA
