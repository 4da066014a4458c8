#include "registry.h"

#include <string.h>

namespace heed::emulation {
namespace {
const Registration* first = nullptr;  // zero before any constructor runs
}  // namespace

Registration::Registration(const char* kernel, size_t bytes, int threads, Body run)
    : name(kernel), args_bytes(bytes), max_threads(threads), body(run), next(first) {
  first = this;
}

const Registration* FirstKernel() { return first; }

const Registration* Find(const char* name) {
  for (const Registration* kernel = first; kernel; kernel = kernel->next)
    if (strcmp(kernel->name, name) == 0) return kernel;
  return nullptr;
}

}  // namespace heed::emulation
