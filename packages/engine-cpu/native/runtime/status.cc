#include "status.h"

#include <stdarg.h>
#include <stdio.h>

namespace heed {
static thread_local char last_error[1024];
int Fail(int status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}
}  // namespace heed
extern "C" const char* heed_last_error(void) { return heed::last_error; }
