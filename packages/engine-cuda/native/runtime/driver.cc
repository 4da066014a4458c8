#include "driver.h"

#include <dlfcn.h>

namespace heed {
int32_t LoadDriver(const char* path, Driver* driver, void** library) {
  const char* file = path ? path : "libcuda.so.1";
  void* opened = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) {
    const char* why = dlerror();
    return Fail(HEED_UNSUPPORTED,
                "no CUDA driver: %s could not be loaded (%s). Install the NVIDIA driver, 580 or newer (in a container, start it with "
                "the NVIDIA runtime), or use the engine \"cpu\"",
                file, why ? why : "no reason given");
  }
  const char* missing = nullptr;
#define X(name, symbol, parameters)                                                          \
  driver->name = reinterpret_cast<decltype(driver->name)>(dlsym(opened, #symbol));           \
  if (driver->name == nullptr && missing == nullptr) missing = #symbol;
  HEED_DRIVER(X)
#undef X
#define X(name, symbol, parameters) driver->name = reinterpret_cast<decltype(driver->name)>(dlsym(opened, #symbol));
  HEED_DRIVER_OPTIONAL(X)
#undef X
  if (missing != nullptr) {
    dlclose(opened);
    return Fail(HEED_UNSUPPORTED, "the CUDA driver %s has no %s: it is too old, install the NVIDIA driver 580 or newer", file, missing);
  }
  *library = opened;
  return HEED_OK;
}
void CloseDriver(void* library) { dlclose(library); }
}  // namespace heed
extern "C" const char* heed_cuda_build(void) { return "cuda"; }
