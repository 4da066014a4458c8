#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../abi/heed_cpu.h"
#include "scratch.h"

namespace heed {
namespace {
constexpr uint64_t kHuge = 2u << 20;

// Blocks from kLarge on are mapped without reserving memory for them: what a cache of 64 GiB never touches costs nothing, where the
// system's heuristic would refuse the block as a whole.
constexpr uint64_t kLarge = uint64_t{1} << 30;
struct LargeBlock {
  void *memory, *mapping;
  uint64_t bytes;  // of the mapping
  LargeBlock* next;
};
LargeBlock* large = nullptr;
pthread_mutex_t large_mutex = PTHREAD_MUTEX_INITIALIZER;

void* MapLarge(uint64_t bytes) {
  LargeBlock* block = static_cast<LargeBlock*>(malloc(sizeof(LargeBlock)));
  if (block == nullptr) return nullptr;
  block->bytes = bytes + kHuge;
  block->mapping = mmap(nullptr, block->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block->mapping == MAP_FAILED) {
    free(block);
    return nullptr;
  }
  block->memory = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block->mapping) + kHuge - 1) & ~uintptr_t{kHuge - 1});
  pthread_mutex_lock(&large_mutex);
  block->next = large;
  __atomic_store_n(&large, block, __ATOMIC_RELEASE);
  pthread_mutex_unlock(&large_mutex);
  return block->memory;
}
/// Unmaps a block of MapLarge; false: it is none.
bool UnmapLarge(void* memory) {
  if (__atomic_load_n(&large, __ATOMIC_ACQUIRE) == nullptr || (reinterpret_cast<uintptr_t>(memory) & (kHuge - 1)) != 0) return false;
  pthread_mutex_lock(&large_mutex);
  LargeBlock** at = &large;
  while (*at != nullptr && (*at)->memory != memory) at = &(*at)->next;
  LargeBlock* found = *at;
  if (found != nullptr) __atomic_store_n(at, found->next, __ATOMIC_RELEASE);
  pthread_mutex_unlock(&large_mutex);
  if (found == nullptr) return false;
  munmap(found->mapping, found->bytes);
  free(found);
  return true;
}
/// Returns a block of heed_alloc to the system.
void Free(void* memory) {
  if (memory != nullptr && !UnmapLarge(memory)) free(memory);
}

struct Block {
  void* memory;
  uint64_t bytes;
};
struct Scratch {
  Block blocks[1 + kSharedScratch];
  uint32_t epoch;
};
uint64_t held = 0;       // bytes of scratch in all threads
uint32_t release_epoch = 0;  // a thread drops its scratch when it sees that this moved
pthread_key_t key;
pthread_once_t key_once = PTHREAD_ONCE_INIT;
thread_local Scratch* mine = nullptr;

void Drop(Scratch* scratch) {
  for (Block& block : scratch->blocks) {
    Free(block.memory);
    __atomic_fetch_sub(&held, block.bytes, __ATOMIC_RELAXED);
    block = {nullptr, 0};
  }
}
void AtThreadExit(void* scratch) {
  Drop(static_cast<Scratch*>(scratch));
  free(scratch);
  mine = nullptr;
}
Scratch* Mine() {
  if (mine == nullptr) {
    pthread_once(&key_once, [] { pthread_key_create(&key, AtThreadExit); });
    mine = static_cast<Scratch*>(calloc(1, sizeof(Scratch)));
    if (mine == nullptr) return nullptr;
    mine->epoch = __atomic_load_n(&release_epoch, __ATOMIC_ACQUIRE);
    pthread_setspecific(key, mine);
  }
  return mine;
}
void* Request(int slot, uint64_t bytes) {
  Scratch* scratch = Mine();
  if (scratch == nullptr) return nullptr;
  const uint32_t now = __atomic_load_n(&release_epoch, __ATOMIC_ACQUIRE);
  // Only a task's own request may drop: the shared buffers of a running call were requested after the last release.
  if (scratch->epoch != now && slot != 0) {
    Drop(scratch);
    scratch->epoch = now;
  }
  Block& block = scratch->blocks[slot];
  if (bytes > block.bytes) {
    const uint64_t grown = (bytes + bytes / 4 + 4095) & ~uint64_t{4095};
    Free(block.memory);
    __atomic_fetch_sub(&held, block.bytes, __ATOMIC_RELAXED);
    block.memory = heed_alloc(grown);
    block.bytes = block.memory ? grown : 0;
    __atomic_fetch_add(&held, block.bytes, __ATOMIC_RELAXED);
  }
  return block.memory;
}
}  // namespace

// Freed blocks kept for the next allocation of about their size. A step of training frees what the next one asks for, and going
// through the system would fault every page in anew: 16,000 faults a step of a small model, a third of its time.
namespace {
constexpr uint64_t kSmallestKept = 32u << 10;  // the allocator keeps smaller ones itself
constexpr uint64_t kMostKept = 128u << 20;
constexpr int kKeptBlocks = 256;
struct KeptBlock {
  void* memory;
  uint64_t bytes;  // that it has room for
  uint64_t age;
};
KeptBlock kept[kKeptBlocks];
int kept_count = 0;
uint64_t kept_bytes = 0, kept_clock = 0;
pthread_mutex_t kept_mutex = PTHREAD_MUTEX_INITIALIZER;

void* Remove(int i) {
  void* memory = kept[i].memory;
  __atomic_fetch_sub(&kept_bytes, kept[i].bytes, __ATOMIC_RELAXED);
  kept[i] = kept[--kept_count];
  return memory;
}
/// The smallest kept block with room for `bytes` and little to spare: an eighth, and what alignment to huge pages may have added.
/// NULL: none.
void* TakeKept(uint64_t bytes) {
  if (bytes < kSmallestKept) return nullptr;
  const uint64_t most = bytes + bytes / 8 + (bytes >= 2 * kHuge ? kHuge : 0);
  pthread_mutex_lock(&kept_mutex);
  int best = -1;
  for (int i = 0; i < kept_count; i++)
    if (kept[i].bytes >= bytes && kept[i].bytes <= most && (best < 0 || kept[i].bytes < kept[best].bytes)) best = i;
  void* memory = best < 0 ? nullptr : Remove(best);
  pthread_mutex_unlock(&kept_mutex);
  return memory;
}
/// Gives the oldest blocks back to the system until at most `limit` bytes are kept, and a place is free.
void DropOldest(uint64_t limit) {
  while (kept_count > 0 && (kept_bytes > limit || kept_count == kKeptBlocks)) {
    int oldest = 0;
    for (int i = 1; i < kept_count; i++)
      if (kept[i].age < kept[oldest].age) oldest = i;
    free(Remove(oldest));
  }
}
void DropKept(uint64_t limit) {
  pthread_mutex_lock(&kept_mutex);
  DropOldest(limit);
  pthread_mutex_unlock(&kept_mutex);
}
/// Keeps a block that is no longer used; false: it is too small or too large for that.
bool Keep(void* memory) {
  const uint64_t bytes = malloc_usable_size(memory);
  if (bytes < kSmallestKept || bytes > kMostKept / 2) return false;
  pthread_mutex_lock(&kept_mutex);
  DropOldest(kMostKept - bytes);
  kept[kept_count++] = {memory, bytes, kept_clock++};
  __atomic_fetch_add(&kept_bytes, bytes, __ATOMIC_RELAXED);
  pthread_mutex_unlock(&kept_mutex);
  return true;
}
}  // namespace

void* ThreadScratch(uint64_t bytes) { return Request(0, bytes); }
void* SharedScratch(int index, uint64_t bytes) { return Request(1 + index, bytes); }
}  // namespace heed

extern "C" void* heed_alloc(uint64_t bytes) {
  if (bytes > (uint64_t{1} << 47)) return nullptr;
  const uint64_t rounded = bytes == 0 ? 64 : (bytes + 63) & ~uint64_t{63};
  if (void* kept = heed::TakeKept(rounded)) return kept;
  // Huge pages are worth up to 16 % of a decode step; below two of them the rounding costs more than it brings.
  const uint64_t align = rounded >= 2 * heed::kHuge ? heed::kHuge : 64;
  void* memory = nullptr;
  if (rounded >= heed::kLarge) {
    memory = heed::MapLarge(rounded);
    if (memory != nullptr) madvise(memory, rounded, MADV_HUGEPAGE);
    return memory;
  }
  if (posix_memalign(&memory, align, rounded) != 0) {
    heed::DropKept(0);
    if (posix_memalign(&memory, align, rounded) != 0) return nullptr;
  }
  if (align == heed::kHuge) madvise(memory, rounded & ~(heed::kHuge - 1), MADV_HUGEPAGE);
  return memory;
}
extern "C" void heed_free(void* memory, void*) {
  if (memory == nullptr || heed::UnmapLarge(memory)) return;
  if (!heed::Keep(memory)) free(memory);
}
extern "C" uint64_t heed_scratch_bytes(void) {
  return __atomic_load_n(&heed::held, __ATOMIC_RELAXED) + __atomic_load_n(&heed::kept_bytes, __ATOMIC_RELAXED);
}
extern "C" void heed_scratch_release(void) {
  __atomic_fetch_add(&heed::release_epoch, 1, __ATOMIC_RELEASE);
  if (heed::mine != nullptr) {
    heed::Drop(heed::mine);
    heed::mine->epoch = __atomic_load_n(&heed::release_epoch, __ATOMIC_ACQUIRE);
  }
  heed::DropKept(0);
}
