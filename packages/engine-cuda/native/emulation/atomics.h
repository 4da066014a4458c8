// Atomic operations: blocks run on several host threads, so they are atomic there too. Relaxed, as atomicAdd is.
#pragma once
#include <stdint.h>
#include <string.h>

#include "block.h"
#include "races.h"

namespace heed::emulation {

/// Before an atomic operation on `bytes` of global or shared memory.
inline void CheckAtomic(const void* to, uint32_t bytes) {
  Block& block = *current_thread->block;
  block.CheckPointer(to, bytes, "atomic");
  if (block.races && block.InShared(to))
    block.races->Atomic(static_cast<uint32_t>(static_cast<const unsigned char*>(to) - block.shared), bytes);
}

/// *to += value; Bits is the integer of T's size.
template <typename Bits, typename T> inline void AtomicAddFloat(T* to, T value) {
  CheckAtomic(to, sizeof(T));
  Bits* bits = reinterpret_cast<Bits*>(to);
  Bits seen = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
  do {
    T sum;
    memcpy(&sum, &seen, sizeof sum);
    sum += value;
    memcpy(&wanted, &sum, sizeof wanted);
  } while (!__atomic_compare_exchange_n(bits, &seen, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

/// *to += value; what was there before.
inline uint32_t AtomicFetchAdd(uint32_t* to, uint32_t value) {
  CheckAtomic(to, 4);
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

}  // namespace heed::emulation
