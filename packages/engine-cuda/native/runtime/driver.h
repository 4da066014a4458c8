// The part of the CUDA driver API that the runtime uses, as a table of function pointers named as in the API: from libcuda.so.1
// (driver.cc), or from the emulation (driver_emulated.cc). Types and values are those of the CUDA 13.0 driver API manual.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>

#include "status.h"

namespace heed {
using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUmemoryPool = struct CUmemPoolHandle_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphExec = struct CUgraphExec_st*;

struct CUmemPoolProps {
  int alloc_type;    // 1: pinned, the only kind
  int handle_types;  // 0: not shared between processes
  int location_type; // 1: device
  int location_id;
  void* security_attributes;
  size_t max_size;   // 0: the system's
  unsigned short usage;
  unsigned char reserved[54];
};
static_assert(sizeof(CUmemPoolProps) == 88);

enum : CUresult {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NO_DEVICE = 100,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_INVALID_HANDLE = 400,
  CUDA_ERROR_NOT_FOUND = 500,
  CUDA_ERROR_NOT_READY = 600,
  CUDA_ERROR_LAUNCH_FAILED = 719,
  CUDA_ERROR_NOT_SUPPORTED = 801,
  CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
};
enum {
  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
  CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
  CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED = 115,
};
enum {
  CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
  CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
  CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
  CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
};
enum { CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES = 3, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD = 4 };
enum { CU_STREAM_NON_BLOCKING = 1, CU_EVENT_DEFAULT = 0, CU_STREAM_CAPTURE_MODE_RELAXED = 2 };

// X(name, symbol of the library, parameters). A header would pick the _v2 symbols by macro; here they are spelled out.
#define HEED_DRIVER(X)                                                                                                          \
  X(cuInit, cuInit, (unsigned int flags))                                                                                       \
  X(cuDriverGetVersion, cuDriverGetVersion, (int* version))                                                                     \
  X(cuGetErrorName, cuGetErrorName, (CUresult code, const char** text))                                                         \
  X(cuGetErrorString, cuGetErrorString, (CUresult code, const char** text))                                                     \
  X(cuDeviceGetCount, cuDeviceGetCount, (int* count))                                                                           \
  X(cuDeviceGet, cuDeviceGet, (CUdevice * device, int ordinal))                                                                 \
  X(cuDeviceGetName, cuDeviceGetName, (char* name, int length, CUdevice device))                                                \
  X(cuDeviceGetAttribute, cuDeviceGetAttribute, (int* value, int attribute, CUdevice device))                                   \
  X(cuDeviceTotalMem, cuDeviceTotalMem_v2, (size_t * bytes, CUdevice device))                                                   \
  X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                                 \
  X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                                 \
  X(cuCtxSetCurrent, cuCtxSetCurrent, (CUcontext context))                                                                      \
  X(cuStreamCreate, cuStreamCreate, (CUstream * stream, unsigned int flags))                                                    \
  X(cuStreamDestroy, cuStreamDestroy_v2, (CUstream stream))                                                                     \
  X(cuStreamSynchronize, cuStreamSynchronize, (CUstream stream))                                                                \
  X(cuStreamBeginCapture, cuStreamBeginCapture_v2, (CUstream stream, int mode))                                                 \
  X(cuStreamEndCapture, cuStreamEndCapture, (CUstream stream, CUgraph * graph))                                                 \
  X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, (CUgraphExec * exec, CUgraph graph, unsigned long long flags))    \
  X(cuGraphDestroy, cuGraphDestroy, (CUgraph graph))                                                                            \
  X(cuGraphLaunch, cuGraphLaunch, (CUgraphExec exec, CUstream stream))                                                          \
  X(cuGraphExecDestroy, cuGraphExecDestroy, (CUgraphExec exec))                                                                 \
  X(cuEventCreate, cuEventCreate, (CUevent * event, unsigned int flags))                                                        \
  X(cuEventDestroy, cuEventDestroy_v2, (CUevent event))                                                                         \
  X(cuEventRecord, cuEventRecord, (CUevent event, CUstream stream))                                                             \
  X(cuEventQuery, cuEventQuery, (CUevent event))                                                                                \
  X(cuEventSynchronize, cuEventSynchronize, (CUevent event))                                                                    \
  X(cuEventElapsedTime, cuEventElapsedTime, (float* milliseconds, CUevent from, CUevent to))                                    \
  X(cuMemGetInfo, cuMemGetInfo_v2, (size_t * free, size_t * total))                                                             \
  X(cuMemAlloc, cuMemAlloc_v2, (CUdeviceptr * address, size_t bytes))                                                           \
  X(cuMemFree, cuMemFree_v2, (CUdeviceptr address))                                                                             \
  X(cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync, (CUdeviceptr * address, size_t bytes, CUmemoryPool pool, CUstream stream)) \
  X(cuMemFreeAsync, cuMemFreeAsync, (CUdeviceptr address, CUstream stream))                                                     \
  X(cuMemPoolCreate, cuMemPoolCreate, (CUmemoryPool * pool, const CUmemPoolProps* properties))                                  \
  X(cuMemPoolDestroy, cuMemPoolDestroy, (CUmemoryPool pool))                                                                    \
  X(cuMemPoolSetAttribute, cuMemPoolSetAttribute, (CUmemoryPool pool, int attribute, void* value))                              \
  X(cuMemPoolTrimTo, cuMemPoolTrimTo, (CUmemoryPool pool, size_t bytes))                                                        \
  X(cuMemHostAlloc, cuMemHostAlloc, (void** memory, size_t bytes, unsigned int flags))                                          \
  X(cuMemFreeHost, cuMemFreeHost, (void* memory))                                                                               \
  X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void* from, size_t bytes, CUstream stream))                 \
  X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void* to, CUdeviceptr from, size_t bytes, CUstream stream))                       \
  X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                 \
  X(cuMemsetD8Async, cuMemsetD8Async, (CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream))                     \
  X(cuModuleLoadData, cuModuleLoadData, (CUmodule * module, const void* image))                                                 \
  X(cuModuleUnload, cuModuleUnload, (CUmodule module))                                                                          \
  X(cuModuleGetFunction, cuModuleGetFunction, (CUfunction * function, CUmodule module, const char* name))                       \
  X(cuFuncGetAttribute, cuFuncGetAttribute, (int* value, int attribute, CUfunction function))                                   \
  X(cuFuncSetAttribute, cuFuncSetAttribute, (CUfunction function, int attribute, int value))                                    \
  X(cuLaunchKernel, cuLaunchKernel,                                                                                             \
    (CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int threads_x,                \
     unsigned int threads_y, unsigned int threads_z, unsigned int shared, CUstream stream, void** parameters, void** extra))
// Absent before CUDA 12.4: null there.
#define HEED_DRIVER_OPTIONAL(X) \
  X(cuFuncGetParamInfo, cuFuncGetParamInfo, (CUfunction function, size_t index, size_t * offset, size_t * bytes))

struct Driver {
#define X(name, symbol, parameters) CUresult(*name) parameters = nullptr;
  HEED_DRIVER(X)
  HEED_DRIVER_OPTIONAL(X)
#undef X
};

/// Fills the table from the library at `path` (null: libcuda.so.1). On success *library is what CloseDriver takes.
int32_t LoadDriver(const char* path, Driver* driver, void** library);
void CloseDriver(void* library);
/// The driver in use, or null.
const Driver* LoadedDriver();
/// "CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered".
std::string Describe(const Driver& driver, CUresult code);
/// Whether nothing of the context works any more after this error.
bool IsSticky(CUresult code);
/// The status that tells a caller what kind of error it is.
int32_t StatusOf(CUresult code);
}  // namespace heed
