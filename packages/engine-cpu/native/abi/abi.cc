// Entry points: checks the block's size, forwards to the table of the chosen instruction set.
#include "../runtime/kernel_table.h"
#include "../runtime/parallel.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"

#define X(name)                                                                                                        \
  extern "C" int32_t heed_##name##_run(const heed_##name* p) {                                                         \
    if (p == nullptr || p->size != sizeof *p)                                                                          \
      return heed::Fail(HEED_INVALID, "[" #name "] parameter block of %u bytes, the library expects %zu: reinstall the " \
                                      "package so that both sides match",                                              \
                        p ? p->size : 0u, sizeof *p);                                                                  \
    return heed::Table().name(*p);                                                                                     \
  }
HEED_KERNELS(X)
#undef X

extern "C" int32_t heed_abi_version(void) { return HEED_ABI_VERSION; }
extern "C" int32_t heed_measure_peak(int32_t kind, int32_t threads, double* per_second);
