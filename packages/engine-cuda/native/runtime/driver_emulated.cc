// The driver of libheed_cuda_emulated: device memory is host memory of the emulation, everything is done when the call returns, and a
// launch runs the kernel's emulation. A recorded stream keeps what it was given and does it at each launch of the graph.
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <new>
#include <utility>
#include <vector>

#include "../emulation/launch.h"
#include "../emulation/memory.h"
#include "kernels.h"

namespace heed {
struct CUgraph_st {
  std::vector<std::function<CUresult()>> steps;
};
struct CUgraphExec_st {
  std::vector<std::function<CUresult()>> steps;
};
struct CUstream_st {
  CUgraph_st* recording = nullptr;
};

namespace {
using emulation::Registration;
constexpr size_t kTotalBytes = 4ull << 30;
constexpr int kSharedPerBlock = 227 * 1024;  // of Hopper
emulation::Options options;
thread_local std::string fault;              // the words of the last one

emulation::Memory& DeviceMemory() {
  static auto* memory = new emulation::Memory;
  return *memory;
}
CUresult Fault(std::string words) {
  fault = std::move(words);
  return CUDA_ERROR_LAUNCH_FAILED;
}
/// Now, or at each launch of the graph that is being recorded.
template <class Step>
CUresult Do(CUstream stream, Step step) {
  if (stream == nullptr || stream->recording == nullptr) return step();
  stream->recording->steps.push_back(std::move(step));
  return CUDA_SUCCESS;
}
void* Host(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult Init(unsigned) {
  const char* seed = getenv("HEED_CUDA_EMULATION_SEED");
  options.seed = seed ? strtoull(seed, nullptr, 10) : 1;
  options.races = getenv("HEED_CUDA_EMULATION_RACES") != nullptr;
  options.memory = &DeviceMemory();
  return CUDA_SUCCESS;
}
CUresult ErrorName(CUresult code, const char** text) {
  switch (code) {
    case CUDA_ERROR_INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case CUDA_ERROR_INVALID_DEVICE: *text = "CUDA_ERROR_INVALID_DEVICE"; break;
    case CUDA_ERROR_NOT_FOUND: *text = "CUDA_ERROR_NOT_FOUND"; break;
    case CUDA_ERROR_LAUNCH_FAILED: *text = "CUDA_ERROR_LAUNCH_FAILED"; break;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}
CUresult ErrorString(CUresult code, const char** text) {
  if (code == CUDA_ERROR_LAUNCH_FAILED) *text = fault.c_str();
  else if (code == CUDA_ERROR_OUT_OF_MEMORY) *text = "the emulated device has 4 GiB";
  else if (code == CUDA_ERROR_INVALID_DEVICE) *text = "the emulation has one device, number 0";
  else return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}
CUresult Attribute(int* value, int attribute, CUdevice) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 8; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 4; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 1 << 20; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = kSharedPerBlock; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}
CUresult FunctionAttribute(int* value, int attribute, CUfunction function) {
  const auto* kernel = reinterpret_cast<const Registration*>(function);
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? kernel->max_threads : 0;
  return CUDA_SUCCESS;
}
CUresult Allocate(CUdeviceptr* address, size_t bytes) {
  if (bytes > kTotalBytes - DeviceMemory().BytesInUse()) return CUDA_ERROR_OUT_OF_MEMORY;
  void* memory = DeviceMemory().Allocate(bytes);
  *address = reinterpret_cast<CUdeviceptr>(memory);
  return memory ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult Free(CUdeviceptr address) {
  std::string words = DeviceMemory().Free(Host(address));
  return words.empty() ? CUDA_SUCCESS : Fault(std::move(words));
}
CUresult Copy(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return Do(stream, [=] {
    memmove(Host(to), from, bytes);
    return CUDA_SUCCESS;
  });
}
CUresult Launch(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned shared,
                CUstream stream, void** parameters, void**) {
  const auto* kernel = reinterpret_cast<const Registration*>(function);
  const auto* args = static_cast<const char*>(parameters[0]);
  return Do(stream, [=, block = std::vector<char>(args, args + kernel->args_bytes)] {
    emulation::Launch launch;
    launch.grid[0] = x, launch.grid[1] = y, launch.grid[2] = z;
    launch.threads = threads;
    launch.shared = shared;
    launch.args = block.data();
    launch.args_bytes = block.size();
    std::string words = emulation::Run(*kernel, launch, options);
    return words.empty() ? CUDA_SUCCESS : Fault(std::move(words));
  });
}
CUresult EndCapture(CUstream stream, CUgraph* graph) {
  *graph = std::exchange(stream->recording, nullptr);
  return *graph ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
}
CUresult LaunchGraph(CUgraphExec exec, CUstream) {
  for (const auto& step : exec->steps)
    if (const CUresult code = step()) return code;
  return CUDA_SUCCESS;
}
template <class T>
CUresult Make(T** made) {
  *made = new T;
  return CUDA_SUCCESS;
}
char token;  // what handles without anything behind them point to
template <class T>
CUresult Token(T* made) {
  *made = reinterpret_cast<T>(&token);
  return CUDA_SUCCESS;
}

void FillDevices(Driver& d) {
  d.cuInit = Init;
  d.cuDriverGetVersion = [](int* version) -> CUresult { return *version = 0, CUDA_SUCCESS; };
  d.cuGetErrorName = ErrorName;
  d.cuGetErrorString = ErrorString;
  d.cuDeviceGetCount = [](int* count) -> CUresult { return *count = 1, CUDA_SUCCESS; };
  d.cuDeviceGet = [](CUdevice* device, int ordinal) -> CUresult {
    return *device = 0, ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
  };
  d.cuDeviceGetName = [](char* name, int length, CUdevice) -> CUresult {
    strncpy(name, "emulation", length);
    return CUDA_SUCCESS;
  };
  d.cuDeviceGetAttribute = Attribute;
  d.cuDeviceTotalMem = [](size_t* bytes, CUdevice) -> CUresult { return *bytes = kTotalBytes, CUDA_SUCCESS; };
  d.cuDevicePrimaryCtxRetain = [](CUcontext* context, CUdevice) { return Token(context); };
  d.cuDevicePrimaryCtxRelease = [](CUdevice) -> CUresult { return CUDA_SUCCESS; };
  d.cuCtxSetCurrent = [](CUcontext) -> CUresult { return CUDA_SUCCESS; };
}
void FillStreams(Driver& d) {
  d.cuStreamCreate = [](CUstream* stream, unsigned) { return Make(stream); };
  d.cuStreamDestroy = [](CUstream stream) -> CUresult { return delete stream, CUDA_SUCCESS; };
  d.cuStreamSynchronize = [](CUstream) -> CUresult { return CUDA_SUCCESS; };
  d.cuStreamBeginCapture = [](CUstream stream, int) { return Make(&stream->recording); };
  d.cuStreamEndCapture = EndCapture;
  d.cuGraphInstantiateWithFlags = [](CUgraphExec* exec, CUgraph graph, unsigned long long) -> CUresult {
    return *exec = new CUgraphExec_st{graph->steps}, CUDA_SUCCESS;
  };
  d.cuGraphDestroy = [](CUgraph graph) -> CUresult { return delete graph, CUDA_SUCCESS; };
  d.cuGraphLaunch = LaunchGraph;
  d.cuGraphExecDestroy = [](CUgraphExec exec) -> CUresult { return delete exec, CUDA_SUCCESS; };
  d.cuEventCreate = [](CUevent* event, unsigned) { return Token(event); };
  d.cuEventDestroy = d.cuEventQuery = d.cuEventSynchronize = [](CUevent) -> CUresult { return CUDA_SUCCESS; };
  d.cuEventRecord = [](CUevent, CUstream) -> CUresult { return CUDA_SUCCESS; };
  d.cuEventElapsedTime = [](float* milliseconds, CUevent, CUevent) -> CUresult { return *milliseconds = 0, CUDA_SUCCESS; };
}
void FillMemory(Driver& d) {
  d.cuMemGetInfo = [](size_t* free, size_t* total) -> CUresult {
    return *total = kTotalBytes, *free = kTotalBytes - DeviceMemory().BytesInUse(), CUDA_SUCCESS;
  };
  d.cuMemAlloc = Allocate;
  d.cuMemFree = Free;
  d.cuMemAllocFromPoolAsync = [](CUdeviceptr* address, size_t bytes, CUmemoryPool, CUstream) { return Allocate(address, bytes); };
  d.cuMemFreeAsync = [](CUdeviceptr address, CUstream) { return Free(address); };
  d.cuMemPoolCreate = [](CUmemoryPool* pool, const CUmemPoolProps*) { return Token(pool); };
  d.cuMemPoolDestroy = [](CUmemoryPool) -> CUresult { return CUDA_SUCCESS; };
  d.cuMemPoolSetAttribute = [](CUmemoryPool, int, void*) -> CUresult { return CUDA_SUCCESS; };
  d.cuMemPoolTrimTo = [](CUmemoryPool, size_t) -> CUresult { return CUDA_SUCCESS; };
  d.cuMemHostAlloc = [](void** memory, size_t bytes, unsigned) -> CUresult {
    *memory = malloc(bytes);
    return *memory ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
  };
  d.cuMemFreeHost = [](void* memory) -> CUresult { return free(memory), CUDA_SUCCESS; };
  d.cuMemcpyHtoDAsync = Copy;
  d.cuMemcpyDtoHAsync = [](void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return Copy(reinterpret_cast<CUdeviceptr>(to), Host(from), bytes, stream);
  };
  d.cuMemcpyDtoDAsync = [](CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) { return Copy(to, Host(from), bytes, stream); };
  d.cuMemsetD8Async = [](CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    return Do(stream, [=] {
      memset(Host(to), value, bytes);
      return CUDA_SUCCESS;
    });
  };
}
void FillKernels(Driver& d) {
  d.cuModuleLoadData = [](CUmodule* module, const void*) { return Token(module); };
  d.cuModuleUnload = [](CUmodule) -> CUresult { return CUDA_SUCCESS; };
  d.cuModuleGetFunction = [](CUfunction* function, CUmodule, const char* name) -> CUresult {
    const Registration* kernel = emulation::Find(name);
    *function = reinterpret_cast<CUfunction>(const_cast<Registration*>(kernel));
    return kernel ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
  };
  d.cuFuncGetAttribute = FunctionAttribute;
  d.cuFuncSetAttribute = [](CUfunction, int, int) -> CUresult { return CUDA_SUCCESS; };
  d.cuFuncGetParamInfo = [](CUfunction function, size_t, size_t* offset, size_t* bytes) -> CUresult {
    return *offset = 0, *bytes = reinterpret_cast<const Registration*>(function)->args_bytes, CUDA_SUCCESS;
  };
  d.cuLaunchKernel = Launch;
}
}  // namespace

int32_t LoadDriver(const char*, Driver* driver, void** library) {
  FillDevices(*driver);
  FillStreams(*driver);
  FillMemory(*driver);
  FillKernels(*driver);
  *library = nullptr;
  return HEED_OK;
}
void CloseDriver(void*) {}
}  // namespace heed
extern "C" const char* heed_cuda_build(void) { return "emulated"; }
