// The driver in use and the devices it sees.
#include <string.h>

#include "context.h"

namespace heed {
namespace {
struct Loaded {
  Driver driver;
  void* library = nullptr;
  std::string path;
  bool ready = false;
} loaded;
constexpr const char* kDefaultPath = "";

int32_t NoDriver() { return Fail(HEED_INVALID, "no driver is open: heed_cuda_open_driver comes first"); }
}  // namespace

const Driver* LoadedDriver() { return loaded.ready ? &loaded.driver : nullptr; }

std::string Describe(const Driver& driver, CUresult code) {
  const char *name = nullptr, *text = nullptr;
  if (driver.cuGetErrorName(code, &name) != CUDA_SUCCESS || name == nullptr) name = "an error this driver has no name for";
  if (driver.cuGetErrorString(code, &text) != CUDA_SUCCESS) text = nullptr;
  return std::string(name) + " (" + std::to_string(code) + ")" + (text ? std::string(": ") + text : "");
}
bool IsSticky(CUresult code) {
  switch (code) {
    case 214:  // ECC_UNCORRECTABLE
    case 220:  // NVLINK_UNCORRECTABLE
    case 226:  // CONTAINED
    case 700:  // ILLEGAL_ADDRESS
    case 702:  // LAUNCH_TIMEOUT
    case 709:  // CONTEXT_IS_DESTROYED
    case 710:  // ASSERT
    case 714:  // HARDWARE_STACK_ERROR
    case 715:  // ILLEGAL_INSTRUCTION
    case 716:  // MISALIGNED_ADDRESS
    case 717:  // INVALID_ADDRESS_SPACE
    case 718:  // INVALID_PC
    case 719:  // LAUNCH_FAILED
    case 721:  // TENSOR_MEMORY_LEAK
    case 999:  // UNKNOWN
      return true;
    default: return false;
  }
}
int32_t StatusOf(CUresult code) {
  if (code == CUDA_ERROR_OUT_OF_MEMORY) return HEED_OUT_OF_MEMORY;
  if (code == CUDA_ERROR_NOT_SUPPORTED) return HEED_UNSUPPORTED;
  return HEED_SYSTEM;
}

static int32_t DriverError(const Driver& driver, CUresult code, const char* what) {
  const char* advice = "";
  if (code == CUDA_ERROR_NO_DEVICE) advice = ". The driver sees no device: check nvidia-smi and CUDA_VISIBLE_DEVICES";
  if (code == 803 || code == 804) advice = ". Kernel module and driver library differ: restart the machine after an update of the driver";
  return Fail(StatusOf(code), "%s: %s%s", what, Describe(driver, code).c_str(), advice);
}
}  // namespace heed

using namespace heed;

extern "C" int32_t heed_cuda_open_driver(const char* path) {
  const std::lock_guard<std::mutex> guard(Lock());
  const std::string wanted = path ? path : kDefaultPath;
  if (loaded.ready && wanted == loaded.path) return HEED_OK;
  if (loaded.ready && Contexts().Count() > 0)
    return Fail(HEED_INVALID, "the driver cannot change from \"%s\" to \"%s\" while %zu contexts are open: close them first",
                loaded.path.c_str(), wanted.c_str(), Contexts().Count());
  Driver driver;
  void* library = nullptr;
  if (const int32_t status = LoadDriver(path, &driver, &library)) return status;
  if (const CUresult code = driver.cuInit(0)) {
    const int32_t status = DriverError(driver, code, "starting the CUDA driver");
    CloseDriver(library);
    return status;
  }
  if (loaded.ready) CloseDriver(loaded.library);
  loaded = {driver, library, wanted, true};
  return HEED_OK;
}

extern "C" int32_t heed_cuda_device_count(int32_t* count) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (count == nullptr) return Fail(HEED_INVALID, "nowhere to put the count");
  const Driver* driver = LoadedDriver();
  if (driver == nullptr) return NoDriver();
  int found = 0;
  if (const CUresult code = driver->cuDeviceGetCount(&found)) return DriverError(*driver, code, "counting devices");
  *count = found;
  return HEED_OK;
}

extern "C" int32_t heed_cuda_device_info(int32_t device, heed_cuda_device* info) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (const int32_t status = CheckBlock(info, "heed_cuda_device")) return status;
  const Driver* driver = LoadedDriver();
  if (driver == nullptr) return NoDriver();
  heed_cuda_device found = {};
  found.size = sizeof found;
  CUdevice handle = 0;
  size_t memory = 0;
  CUresult code = driver->cuDeviceGet(&handle, device);
  const auto attribute = [&](int which, int32_t* value) {
    if (code == CUDA_SUCCESS) code = driver->cuDeviceGetAttribute(value, which, handle);
  };
  attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &found.major);
  attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &found.minor);
  attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &found.multiprocessors);
  attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &found.shared_per_block);
  attribute(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, &found.memory_pools);
  attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, &found.level_2_bytes);
  if (code == CUDA_SUCCESS) code = driver->cuDeviceTotalMem(&memory, handle);
  if (code == CUDA_SUCCESS) code = driver->cuDeviceGetName(found.name, sizeof found.name - 1, handle);
  if (code == CUDA_SUCCESS) code = driver->cuDriverGetVersion(&found.driver_version);
  if (code != CUDA_SUCCESS) return DriverError(*driver, code, ("asking about device " + std::to_string(device)).c_str());
  found.memory = memory;
  *info = found;
  return HEED_OK;
}
