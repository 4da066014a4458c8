// Compiled by build:cuda, with the toolkit's cuda.h: the runtime's own declarations agree with it.
#include <cuda.h>
#include <stddef.h>

#include <type_traits>

// After cuda.h, whose macros then give the table's names their versions too.
#include "../runtime/driver.h"

namespace {
template <class Mine, class Theirs>
constexpr bool kSameParameter = sizeof(Mine) == sizeof(Theirs) && std::is_pointer_v<Mine> == std::is_pointer_v<Theirs> &&
                                (std::is_pointer_v<Mine> || std::is_floating_point_v<Mine> == std::is_floating_point_v<Theirs>);
template <class Mine, class Theirs>
constexpr bool kSame = false;
template <class... Mine, class... Theirs>
constexpr bool kSame<int (*)(Mine...), CUresult (*)(Theirs...)> = [] {
  if constexpr (sizeof...(Mine) != sizeof...(Theirs)) return false;
  else return (kSameParameter<Mine, Theirs> && ...);
}();
#define X(name, symbol, parameters) static_assert(kSame<decltype(heed::Driver::name), decltype(&::symbol)>, #symbol);
HEED_DRIVER(X)
HEED_DRIVER_OPTIONAL(X)
#undef X

static_assert(sizeof(heed::CUmemPoolProps) == sizeof(CUmemPoolProps));
static_assert(offsetof(heed::CUmemPoolProps, alloc_type) == offsetof(CUmemPoolProps, allocType) && CU_MEM_ALLOCATION_TYPE_PINNED == 1);
static_assert(offsetof(heed::CUmemPoolProps, handle_types) == offsetof(CUmemPoolProps, handleTypes) && CU_MEM_HANDLE_TYPE_NONE == 0);
static_assert(offsetof(heed::CUmemPoolProps, location_type) == offsetof(CUmemPoolProps, location.type) && CU_MEM_LOCATION_TYPE_DEVICE == 1);
static_assert(offsetof(heed::CUmemPoolProps, location_id) == offsetof(CUmemPoolProps, location.id));
static_assert(offsetof(heed::CUmemPoolProps, max_size) == offsetof(CUmemPoolProps, maxSize));

#define SAME(name) static_assert(static_cast<int>(heed::name) == static_cast<int>(::name), #name);
SAME(CUDA_SUCCESS)
SAME(CUDA_ERROR_INVALID_VALUE)
SAME(CUDA_ERROR_OUT_OF_MEMORY)
SAME(CUDA_ERROR_NO_DEVICE)
SAME(CUDA_ERROR_INVALID_DEVICE)
SAME(CUDA_ERROR_INVALID_HANDLE)
SAME(CUDA_ERROR_NOT_FOUND)
SAME(CUDA_ERROR_NOT_READY)
SAME(CUDA_ERROR_LAUNCH_FAILED)
SAME(CUDA_ERROR_NOT_SUPPORTED)
SAME(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED)
SAME(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
SAME(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
SAME(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
SAME(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
SAME(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
SAME(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)
SAME(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
SAME(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
SAME(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
SAME(CU_FUNC_ATTRIBUTE_NUM_REGS)
SAME(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
SAME(CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES)
SAME(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
SAME(CU_STREAM_NON_BLOCKING)
SAME(CU_EVENT_DEFAULT)
SAME(CU_STREAM_CAPTURE_MODE_RELAXED)
}  // namespace
