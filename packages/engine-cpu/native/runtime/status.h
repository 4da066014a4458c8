// Error text of the C boundary. No exceptions in this library: it links neither libstdc++ nor an unwinder's tables.
#pragma once
#include "../abi/heed_cpu.h"
namespace heed {
/// Stores a printf-formatted message for heed_last_error() of this thread and returns `status`.
int Fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));
}  // namespace heed
