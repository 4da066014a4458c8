// Kernel scratch memory, kept between calls so that a decode step does not touch the allocator. Each thread has its own, so
// calls from several JavaScript workers at once do not meet.
#pragma once
#include <stdint.h>
namespace heed {
/// 64-byte aligned scratch of this thread for one task; valid until its next request. Contents are not kept. NULL: no memory.
void* ThreadScratch(uint64_t bytes);
/// As ThreadScratch, for what the tasks of one call share; requested by the calling thread before the tasks start.
/// index 0 .. kSharedScratch - 1 tells several buffers of one call apart.
void* SharedScratch(int index, uint64_t bytes);
constexpr int kSharedScratch = 8;
}  // namespace heed
