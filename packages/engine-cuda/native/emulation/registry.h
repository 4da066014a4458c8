// The kernels of the emulated build by name: HEED_KERNEL (../device/kernel.h) leaves one Registration for each of them.
#pragma once
#include <stddef.h>

namespace heed::emulation {

/// A kernel as the launcher needs it. Registers itself when constructed; lives until the process ends.
struct Registration {
  using Body = void (*)(const void* args);

  Registration(const char* name, size_t args_bytes, int max_threads, Body body);
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  const char* name;
  size_t args_bytes;  // of the one parameter
  int max_threads;    // of a block
  Body body;          // runs one thread
  const Registration* next;
};

/// The kernel of that name, or null.
const Registration* Find(const char* name);
/// All kernels, linked by `next`, or null when there are none. The order is that of the linker.
const Registration* FirstKernel();

}  // namespace heed::emulation
