#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../abi/heed_cpu.h"
#include "scratch.h"

namespace heed {
namespace {
constexpr uint64_t kHuge = 2u << 20;
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
    free(block.memory);
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
    free(block.memory);
    __atomic_fetch_sub(&held, block.bytes, __ATOMIC_RELAXED);
    block.memory = heed_alloc(grown);
    block.bytes = block.memory ? grown : 0;
    __atomic_fetch_add(&held, block.bytes, __ATOMIC_RELAXED);
  }
  return block.memory;
}
}  // namespace

void* ThreadScratch(uint64_t bytes) { return Request(0, bytes); }
void* SharedScratch(int index, uint64_t bytes) { return Request(1 + index, bytes); }
}  // namespace heed

extern "C" void* heed_alloc(uint64_t bytes) {
  if (bytes > (uint64_t{1} << 47)) return nullptr;
  // Huge pages are worth up to 16 % of a decode step; below two of them the rounding costs more than it brings.
  const uint64_t align = bytes >= 2 * heed::kHuge ? heed::kHuge : 64;
  void* memory = nullptr;
  const uint64_t rounded = bytes == 0 ? align : (bytes + 63) & ~uint64_t{63};
  if (posix_memalign(&memory, align, rounded) != 0) return nullptr;
  if (align == heed::kHuge) madvise(memory, rounded & ~(heed::kHuge - 1), MADV_HUGEPAGE);
  return memory;
}
extern "C" void heed_free(void* memory, void*) { free(memory); }
extern "C" uint64_t heed_scratch_bytes(void) { return __atomic_load_n(&heed::held, __ATOMIC_RELAXED); }
extern "C" void heed_scratch_release(void) {
  __atomic_fetch_add(&heed::release_epoch, 1, __ATOMIC_RELEASE);
  if (heed::mine != nullptr) {
    heed::Drop(heed::mine);
    heed::mine->epoch = __atomic_load_n(&heed::release_epoch, __ATOMIC_ACQUIRE);
  }
}
