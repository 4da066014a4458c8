// Launching a kernel of the emulated build. Nothing that a kernel does wrong ends the process, short of a wild pointer: it comes back
// as words that name the kernel, the block and the thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>

#include "registry.h"

namespace heed::emulation {

class Memory;

/// How launches run.
struct Options {
  uint64_t seed = 1;               // of the order of blocks and warps, and of when copies read
  bool races = false;              // report unsynchronised accesses to shared memory (several times slower)
  const Memory* memory = nullptr;  // where set: pointers given to the vector, copy and atomic functions must lie in its allocations,
                                   // and the poison around these must be whole after the launch
  int host_threads = 0;            // at most; 0 for as many as the machine has
};

struct Launch {
  int64_t grid[3] = {1, 1, 1};
  int64_t threads = 1;         // of a block
  int64_t shared = 0;          // bytes of dynamic shared memory
  const void* args = nullptr;  // the kernel's one parameter, copied
  size_t args_bytes = 0;
};

/// Runs all blocks and returns when they have ended. Empty, or what went wrong; then some blocks may not have run.
/// The same seed gives each block the same order of warps. Safe from several host threads.
std::string Run(const Registration& kernel, const Launch& launch, const Options& options = {});

}  // namespace heed::emulation
