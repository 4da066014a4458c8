// Barriers besides that of the block: mbarriers in shared memory (PTX ISA 9.0, 9.7.13.15) and named ones. Their functions are Block's.
//
// A wait is for a parity, as on a device: a thread that goes on late, when the next phase has completed too, waits on.
#pragma once
#include <stdint.h>

#include "races.h"

namespace heed::emulation {

constexpr int kNamedBarriers = 16;           // 0 is that of sync_block
constexpr int kMaxArrivals = (1 << 20) - 1;  // of a phase

/// Where a kernel calls what may wait: default arguments fill it in.
struct Site {
  const char* file;
  int line;
};

/// An mbarrier.
struct SharedBarrier {
  uint32_t offset = 0;                 // in shared memory
  int arrivals = 0, missing = 0;       // of a phase; of the one under way
  uint32_t phase = 0;                  // phases that have completed
  bool known = false;                  // a thread has waited for the last of them
  uint32_t waiting[32] = {};           // by warp, lanes
  Clock arrived = {}, completed = {};  // with Races: of all arrivals, of those up to the last phase that has completed
};

/// bar.sync with an id.
struct NamedBarrier {
  int threads = 0;     // that it takes
  uint32_t warps = 0;  // that wait
  Site site = {};      // of the latest
  Clock arrived = {};  // with Races
};

/// setmaxnreg: only its number is checked.
void CheckRegisters(int registers, const char* what);

}  // namespace heed::emulation
