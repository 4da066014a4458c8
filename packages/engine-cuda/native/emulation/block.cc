#include "block.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <new>

#include "memory.h"
#include "races.h"

namespace heed::emulation {
namespace {

constexpr uint32_t kSharedEnd = 64;  // poisoned bytes after shared memory, to see writes past it

int Lane(const Thread& thread) { return thread.index % kWarp; }

}  // namespace

std::string Text(Site site) {
  const char* slash = strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

__thread Thread* current_thread = nullptr;

const char* NameOf(Op op) {
  static constexpr const char* names[] = {"nothing",     "sync_block",    "sync_threads",   "sync_warp",     "shuffle", "shuffle_xor",
                                          "ballot",      "load_matrix_x4", "load_matrix_x4_transposed", "mma_16x8x16",
                                          "warpgroup_multiply", "warpgroup_multiply_transposed", "warpgroup_fence",
                                          "warpgroup_commit", "warpgroup_wait"};
  return names[static_cast<int>(op)];
}

Block::Block() : fibers_(FiberMain, this) {
  // One allocation for all blocks: 1024-byte aligned, with the poisoned end.
  memory_.reset(new unsigned char[kMaxShared + kSharedEnd + 1024]);
  shared = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory_.get()) + 1023) & ~uintptr_t{1023});
}
Block::~Block() = default;

void Block::Begin(const Grid& next) {
  grid = next;
  shared_bytes = grid.shared;
  if (threads_.size() < static_cast<size_t>(grid.threads)) {
    threads_.resize(grid.threads);
    for (size_t i = 0; i < threads_.size(); i++) {
      threads_[i].index = static_cast<int>(i);
      threads_[i].block = this;
    }
  }
  warps_.resize((grid.threads + kWarp - 1) / kWarp);
  if (grid.races && !races_) races_.reset(new Races(*this));
  races = grid.races ? races_.get() : nullptr;
  // A compiler may keep the address of a thread-local variable in a stopped fiber: fibers don't move between host threads.
  const unsigned long self = static_cast<unsigned long>(pthread_self());
  if (host_thread_ != self) fibers_.Reset();
  host_thread_ = self;
}

std::string Block::Run(int x, int y, int z) {
  index[0] = x, index[1] = y, index[2] = z;
  const uint64_t number = x + static_cast<uint64_t>(grid.size[0]) * (y + static_cast<uint64_t>(grid.size[1]) * z);
  random.state = grid.seed ^ (number + 1) * 0xd1342543de82ef95ull;
  downwards_ = random.Next() & 1;
  memset(shared, 0xff, shared_bytes + kSharedEnd);
  left_ = grid.threads;
  at_barrier_ = 0;
  for (size_t w = 0; w < warps_.size(); w++) {
    Warp& warp = warps_[w];
    const int lanes = grid.threads - static_cast<int>(w) * kWarp;
    warp.unstarted = lanes >= kWarp ? ~0u : (1u << lanes) - 1;
    warp.first = &threads_[w * kWarp];
    warp.ready = warp.arrived = warp.at_barrier = warp.at_shared_barrier = warp.ended = 0;
    warp.at_named = 0;
    warp.products.Clear();
  }
  runnable_ = warps_.size() == 32 ? ~0u : (1u << warps_.size()) - 1;
  warp_ = &warps_[random.Next() % warps_.size()];
  fault_.clear();
  shared_barriers_.clear();
  for (NamedBarrier& barrier : named_) barrier = {};
  if (races) races->Start(shared_bytes, grid.threads);

  starting_ = Pick();
  Fiber* fiber = fibers_.Take();
  if (!fiber) return "no memory for the threads' stacks";
  Switch(main_, *fiber);
  current_thread = nullptr;
  if (fault_.empty() && left_ > 0) Blocked();
  if (fault_.empty())
    for (uint32_t i = 0; i < kSharedEnd; i++)
      if (shared[shared_bytes + i] != 0xff) {
        fault_ = "wrote past the " + std::to_string(shared_bytes) + " bytes of dynamic shared memory, at byte " +
                 std::to_string(shared_bytes + i);
        break;
      }
  if (fault_.empty()) return {};
  Forget();
  return "block (" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + "): " + fault_;
}

// A fiber runs threads that have not started, one after the other, until one of them waits; the fiber is then that thread's.
void Block::FiberMain(FiberPool& pool, Fiber& self) {
  Block& block = *static_cast<Block*>(pool.owner);
  for (;;) block.RunThreads(self);
}

__attribute__((noinline)) void Block::RunThreads(Fiber& self) {
  Thread* thread = starting_;
  for (;;) {
    Warp& warp = warps_[thread->index / kWarp];
    thread->warp = &warp;
    thread->fiber = &self;
    current_thread = thread;
    bool failed = false;
    try {
      grid.kernel->body(grid.args);
    } catch (const std::bad_alloc&) {  // the emulation's own vectors; kernels have no exceptions
      failed = true;
    }
    if (failed) Fault("no memory left for the emulation");
    Ended(*thread);
    thread = Pick();
    if (!thread) break;
    if (thread->fiber) {
      current_thread = thread;
      fibers_.Give(&self);
      return Switch(self, *thread->fiber);
    }
  }
  fibers_.Give(&self);
  Switch(self, main_);
}

void Block::Ended(Thread& thread) {
  if (races) races->Flush();
  if (FiberPool::Overrun(*thread.fiber)) Fault("the thread used more than %zu bytes of stack", kStackBytes);
  if (thread.copies.UnderWay())
    Fault("the thread ended with %u asynchronous copies that it never waited for", thread.copies.UnderWay());
  thread.copies.Clear();
  const WarpProducts& products = thread.warp->products;
  if (products.UnderWay())
    Fault("the thread ended with %u warpgroup products that its warp never waited for, %u of them in no group", products.UnderWay(),
          products.Uncommitted());
  if (left_ == 1) CheckWarpgroups();
  thread.fiber = nullptr;
  thread.warp->ended |= 1u << Lane(thread);
  left_--;
}

// The next thread to run, or null when none can. A warp goes on until all its lanes wait.
Thread* Block::Pick() {
  for (;;) {
    Warp& warp = *warp_;
    const uint32_t lanes = warp.ready ? warp.ready : warp.unstarted;
    if (lanes) {
      const int lane = downwards_ ? 31 - __builtin_clz(lanes) : __builtin_ctz(lanes);
      (warp.ready ? warp.ready : warp.unstarted) &= ~(1u << lane);
      return warp.first + lane;
    }
    runnable_ &= ~(1u << (warp_ - warps_.data()));
    if (!runnable_) return nullptr;
    const int turn = static_cast<int>(random.Next() % warps_.size());
    const uint32_t turned = turn ? runnable_ >> turn | runnable_ << (32 - turn) : runnable_;
    warp_ = &warps_[(__builtin_ctz(turned) + turn) & 31];
  }
}

void Block::Suspend(Thread& me) {
  if (static_cast<char*>(__builtin_frame_address(0)) < me.fiber->lowest + 1024)
    Fault("the thread used more than %zu bytes of stack", kStackBytes);
  if (races) races->Flush();
  Fiber& mine = *me.fiber;
  Thread* next = Pick();
  if (next == &me) return;
  if (next && next->fiber) {
    current_thread = next;
    return Switch(mine, *next->fiber);
  }
  if (!next) return Switch(mine, main_);
  Fiber* fiber = fibers_.Take();
  if (!fiber) Fault("no memory for the threads' stacks");
  starting_ = next;
  Switch(mine, *fiber);
}

void Block::SyncBlock(Site site) {
  Thread& me = *current_thread;
  if (at_barrier_ == 0)
    barrier_ = site;
  else if (barrier_.line != site.line || barrier_.file != site.file)
    Divergence(Op::kSyncBlock, site);
  if (++at_barrier_ < grid.threads) {
    me.warp->at_barrier |= 1u << Lane(me);
    return Suspend(me);
  }
  if (races) {
    races->Flush();
    races->BlockMet();
  }
  CheckWarpgroups();
  at_barrier_ = 0;
  for (Warp& warp : warps_) {
    warp.ready |= warp.at_barrier;
    warp.at_barrier = 0;
  }
  runnable_ = warps_.size() == 32 ? ~0u : (1u << warps_.size()) - 1;
}

// The warps of a warpgroup issue its products together: by now all of these have issued the same ones.
void Block::CheckWarpgroups(uint32_t warps) {
  for (size_t w = 0; w < warps_.size(); w++) {
    const size_t group = w / kWarpgroupWarps * kWarpgroupWarps;
    const uint32_t here = warps >> group & 0xf;
    if (!(warps >> w & 1)) continue;
    const size_t f = group + __builtin_ctz(here);
    const WarpProducts &first = warps_[f].products, &other = warps_[w].products;
    if (other.history != first.history)
      Fault("the warps of a warpgroup differ: warp %zu has issued %u warpgroup products and %u commits, warp %zu %u and %u%s", f,
            first.issued, first.commits, w, other.issued, other.commits,
            first.issued == other.issued && first.commits == other.commits ? " with other operands or in another order" : "");
  }
}

void Block::SyncWarp(Site site) {
  Collective(Op::kSyncWarp, site, nullptr, [this](void**) {
    if (!races) return;
    races->Flush();
    races->WarpMet(current_thread->index / kWarp);
  });
}

std::string Block::Where(const Thread& thread) const {
  const int lane = Lane(thread);
  return "thread " + std::to_string(thread.index) + " (warp " + std::to_string(thread.index / kWarp) + ", lane " +
         std::to_string(lane) + ")";
}

void Block::Fault(const char* format, ...) {
  char words[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(words, sizeof words, format, args);
  va_end(args);
  fault_ = Where(*current_thread) + ": " + words;
  Switch(*current_thread->fiber, main_);
  __builtin_unreachable();
}

void Block::Divergence(Op op, Site site) {
  const Warp& warp = *current_thread->warp;
  if (op == Op::kSyncBlock)
    Fault("divergence: it is at sync_block (%s) while %d threads of its block wait at another one (%s)", Text(site).c_str(),
          at_barrier_, Text(barrier_).c_str());
  Fault("divergence: it is at %s (%s) while lane %d of its warp waits at %s (%s)", NameOf(op), Text(site).c_str(),
        __builtin_ctz(warp.arrived), NameOf(warp.op), Text(warp.site).c_str());
}

void Block::SharedFault(uint32_t offset, uint32_t bytes, uint32_t alignment, const char* what) {
  if (offset % alignment != 0)
    Fault("%s: byte %d of shared memory is not a multiple of %u", what, static_cast<int>(offset), alignment);
  Fault("%s: bytes %d to %lld of shared memory, of which there are %u", what, static_cast<int>(offset),
        static_cast<long long>(static_cast<int>(offset)) + bytes, shared_bytes);
}

void Block::CheckAllocated(const void* p, uint32_t bytes, const char* what) {
  if (InShared(p) || grid.memory->Holds(p, bytes)) return;
  const uint64_t on_stack = static_cast<uint64_t>(static_cast<const char*>(p) - current_thread->fiber->lowest);
  if (on_stack < kStackBytes) return;  // a local array
  Fault("%s: the %u bytes at %p are in no allocation (%s)", what, bytes, p, grid.memory->Near(p).c_str());
}

std::string Block::State(const Thread& thread) const {
  const Warp& warp = warps_[thread.index / kWarp];
  const uint32_t bit = 1u << Lane(thread);
  if (warp.arrived & bit) return std::string("waits at ") + NameOf(warp.op) + " (" + Text(warp.site) + ")";
  if (warp.at_barrier & bit) return "waits at sync_block (" + Text(barrier_) + ")";
  if (warp.at_named || warp.at_shared_barrier & bit) return StateAtBarrier(thread);
  return "has ended";
}

// No thread can run, yet some have not ended: says for one of each kind what it waits for, first those of the first one's warp.
void Block::Blocked() {
  const char* const ended = "has ended";
  const Thread* waiting = &threads_[0];
  while (State(*waiting) == ended) waiting++;
  std::vector<std::string> told = {State(*waiting)};
  fault_ = "deadlock: " + Where(*waiting) + " " + told[0];
  const char* link = ", but ";
  const int warp = waiting->index / kWarp;
  const bool in_warp = warps_[warp].arrived >> Lane(*waiting) & 1;
  for (int pass = in_warp ? 0 : 1; pass < 2; pass++) {
    for (int i = 0; i < grid.threads; i++) {
      const std::string state = State(threads_[i]);
      if (pass == 0 ? i / kWarp != warp : in_warp && state == ended) continue;
      if (told.size() == 6 || std::find(told.begin(), told.end(), state) != told.end()) continue;
      fault_ += link + Where(threads_[i]) + " " + state;
      told.push_back(state);
      link = "; ";
    }
    if (pass > 0 || told.size() > 1) continue;
    fault_ += ", but its warp has only " + std::to_string(grid.threads % kWarp) + " threads of 32";
    link = "; ";
  }
}

// After a fault: threads stand in the middle of the kernel; their fibers begin anew.
void Block::Forget() {
  fibers_.Reset();
  for (Thread& thread : threads_) {
    thread.fiber = nullptr;
    thread.copies.Clear();
  }
  for (Warp& warp : warps_) warp.products.Clear();
}

}  // namespace heed::emulation
