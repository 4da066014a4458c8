#include "status.h"

#include <stdarg.h>
#include <stdio.h>

#include <string>

namespace heed {
// A library that is loaded late gets some hundred bytes of thread-local storage in all, so the text itself is elsewhere.
static thread_local std::string last_error;
int32_t Fail(int32_t status, const char* format, ...) {
  char text[2048];  // formatted aside: an argument may be the last error itself
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  last_error = text;
  return status;
}
}  // namespace heed
extern "C" const char* heed_cuda_last_error(void) { return heed::last_error.c_str(); }
extern "C" int32_t heed_cuda_abi_version(void) { return HEED_CUDA_ABI_VERSION; }
