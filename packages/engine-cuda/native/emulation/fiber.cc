#include "fiber.h"

#include <string.h>
#include <sys/mman.h>

#include <new>

#ifdef __x86_64__
// heed_emulation_switch(void** save, void* go): the registers that a function must keep (System V ABI), the stack pointer, return.
extern "C" __attribute__((visibility("hidden"))) void heed_emulation_switch(void** save, void* go);
asm(R"(
.text
.p2align 4
.hidden heed_emulation_switch
.globl heed_emulation_switch
.type heed_emulation_switch, @function
heed_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size heed_emulation_switch, .-heed_emulation_switch
)");
#endif

namespace heed::emulation {
namespace {

constexpr size_t kFibersAtOnce = 32;
// Stacks lie this far apart: not a power of two, so that the tops of a warp's stacks fall into different sets of the caches.
constexpr size_t kStride = kStackBytes + 4096 + 5 * 64;
constexpr uint64_t kUntouched = 0x5afe57ac5afe57acull;  // at the low end of each stack

// What a fresh fiber is to run, from Prepare to its first instruction: the entry finds it above its frame.
struct Start {
  FiberPool* pool;
  Fiber* fiber;
  FiberPool::Entry entry;
};

#ifndef __x86_64__
void Enter(unsigned high, unsigned low) {
  const Start& start = *reinterpret_cast<Start*>(static_cast<uintptr_t>(high) << 32 | low);
  start.entry(*start.pool, *start.fiber);
}
#endif

}  // namespace

#ifdef __x86_64__
void Switch(Fiber& from, Fiber& to) { heed_emulation_switch(&from.stack_pointer, to.stack_pointer); }

extern "C" __attribute__((visibility("hidden"), used)) void heed_emulation_enter(const void* start) {
  const Start& s = *static_cast<const Start*>(start);
  s.entry(*s.pool, *s.fiber);
  __builtin_trap();
}
extern "C" __attribute__((visibility("hidden"))) void heed_emulation_first();
// The first "return" of a fiber arrives here, with `start` in rbx.
asm(R"(
.text
.p2align 4
.hidden heed_emulation_first
.globl heed_emulation_first
.type heed_emulation_first, @function
heed_emulation_first:
  movq %rbx, %rdi
  call heed_emulation_enter
  ud2
.size heed_emulation_first, .-heed_emulation_first
)");
#else
void Switch(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

void FiberPool::Prepare(Fiber& fiber) {
  memcpy(fiber.lowest, &kUntouched, sizeof kUntouched);
  Start* start = reinterpret_cast<Start*>(fiber.lowest + kStackBytes) - 2;
  *start = {this, &fiber, entry_};
#ifdef __x86_64__
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(start) & ~uintptr_t{15});
  *--top = nullptr;  // keeps the frame of heed_emulation_first aligned to 16 bytes
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(heed_emulation_first);
  *--top = nullptr;  // rbp
  *--top = start;    // rbx
  for (int i = 0; i < 4; i++) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.lowest;
  fiber.context.uc_stack.ss_size = kStackBytes - 4 * sizeof(Start);
  fiber.context.uc_link = nullptr;
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  makecontext(&fiber.context, reinterpret_cast<void (*)()>(Enter), 2, static_cast<unsigned>(address >> 32),
              static_cast<unsigned>(address));
#endif
}

bool FiberPool::Grow() {
  void* memory = mmap(nullptr, kFibersAtOnce * kStride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  mappings_.push_back(static_cast<char*>(memory));
  for (size_t i = 0; i < kFibersAtOnce; i++) {
    Fiber* fiber = new Fiber;
    fiber->lowest = static_cast<char*>(memory) + i * kStride;
    Prepare(*fiber);
    all_.push_back(fiber);
  }
  for (size_t i = 0; i < kFibersAtOnce; i++) idle_.push_back(all_[all_.size() - 1 - i]);
  return true;
}

void FiberPool::Reset() {
  idle_.clear();
  for (size_t i = all_.size(); i--;) {
    Prepare(*all_[i]);
    idle_.push_back(all_[i]);
  }
}

bool FiberPool::Overrun(const Fiber& fiber) { return memcmp(fiber.lowest, &kUntouched, sizeof kUntouched) != 0; }

FiberPool::~FiberPool() {
  for (Fiber* fiber : all_) delete fiber;
  for (char* mapping : mappings_) munmap(mapping, kFibersAtOnce * kStride);
}

}  // namespace heed::emulation
