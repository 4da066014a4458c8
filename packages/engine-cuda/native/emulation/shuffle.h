// Exchange between the lanes of a warp.
#pragma once
#include <stdint.h>

#include "block.h"

namespace heed::emulation {

template <typename T> struct Exchange {
  T value;
  int lane;  // whose value is wanted
  T result;
};

/// The value that lane `from` (mod 32) of the warp brings. A shuffle_xor comes with the lane it computes.
template <typename T> inline T ShuffleFrom(Op op, T value, int from, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "float, double, int32_t, uint32_t");
  Exchange<T> mine = {value, from & (kWarp - 1), {}};
  current_thread->block->Collective(op, site, &mine, [](void** operands) {
    for (int lane = 0; lane < kWarp; lane++) {
      Exchange<T>* exchange = static_cast<Exchange<T>*>(operands[lane]);
      exchange->result = static_cast<Exchange<T>*>(operands[exchange->lane])->value;
    }
  });
  return mine.result;
}

/// Bit i is what lane i brings.
uint32_t Ballot(bool yes, Site site);

}  // namespace heed::emulation
