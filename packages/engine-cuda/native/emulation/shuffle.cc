#include "shuffle.h"

namespace heed::emulation {

uint32_t Ballot(bool yes, Site site) {
  uint32_t mine = yes;
  current_thread->block->Collective(Op::kBallot, site, &mine, [](void** operands) {
    uint32_t votes = 0;
    for (int lane = 0; lane < kWarp; lane++) votes |= *static_cast<uint32_t*>(operands[lane]) << lane;
    for (int lane = 0; lane < kWarp; lane++) *static_cast<uint32_t*>(operands[lane]) = votes;
  });
  return mine;
}

}  // namespace heed::emulation
