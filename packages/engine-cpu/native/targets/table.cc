#include "../runtime/kernel_table.h"
#include "target.h"
namespace heed::HEED_ISA {
#define X(name) int name(const heed_##name&);
HEED_KERNELS(X)
#undef X
double FmaFlops(int64_t rounds);
double ReadBytes(const void* memory, int64_t bytes);
extern const KernelTable kTable = {
#define X(name) name,
    HEED_KERNELS(X)
#undef X
        FmaFlops, ReadBytes};
}  // namespace heed::HEED_ISA
