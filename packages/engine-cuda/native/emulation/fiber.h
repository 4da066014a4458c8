// Stacks to switch between: a fiber runs until it switches to another, on the same host thread. Twelve instructions on x86-64,
// ucontext elsewhere.
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <vector>

namespace heed::emulation {

struct Fiber {
#ifdef __x86_64__
  void* stack_pointer = nullptr;  // while it does not run
#else
  ucontext_t context = {};
#endif
  char* lowest = nullptr;  // of its stack, null for a host thread's own
};

/// Stops `from` here and goes on where `to` stopped. Returns when something switches to `from`.
void Switch(Fiber& from, Fiber& to);

/// Fibers that start in one function. They are made once and used again.
class FiberPool {
 public:
  using Entry = void (*)(FiberPool& pool, Fiber& self);  // must not return

  FiberPool(Entry entry, void* owner) : owner(owner), entry_(entry) {}
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  /// A fiber that stands at its entry, or null when there is no memory for its stack.
  Fiber* Take() {
    if (idle_.empty() && !Grow()) return nullptr;
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }
  /// Gives one back that stands where Take's caller may go on with it.
  void Give(Fiber* fiber) { idle_.push_back(fiber); }
  /// All fibers stand at their entry again, whatever they were in the middle of.
  void Reset();
  /// Whether a fiber has written the low end of its stack.
  static bool Overrun(const Fiber& fiber);

  void* const owner;

 private:
  bool Grow();
  void Prepare(Fiber& fiber);

  const Entry entry_;
  std::vector<Fiber*> all_, idle_;
  std::vector<char*> mappings_;
};

/// Bytes of stack for one thread of a kernel. Registers and local arrays of a kernel take a few KB at most; Fault's formatting 4 KB.
constexpr size_t kStackBytes = 64 * 1024;

}  // namespace heed::emulation
