// One block of threads on one host thread. A thread of the kernel is a fiber only while it waits: a thread that never waits costs a
// function call. Warps meet at collectives, the block at its barrier; a wait that cannot end, a collective that is not reached by all,
// and everything that kernels report with Fault ends the block with words.
//
// Which warp runs next is drawn at random, and so is whether its lanes run upwards or downwards.
#pragma once
#include <stdint.h>

#include <memory>
#include <string>
#include <vector>

#include "async_copy.h"
#include "barriers.h"
#include "fiber.h"
#include "registry.h"
#include "warpgroup.h"

namespace heed::emulation {

class Block;
class Races;
class Memory;

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;           // of a block
constexpr uint32_t kMaxShared = 227 * 1024;  // bytes that a block of compute capability 9.0 may opt into
constexpr uint32_t kSharedStart = 1024;      // the address of the first byte of dynamic shared memory: not zero, as on a device

std::string Text(Site site);

enum class Op : uint8_t {
  kNone, kSyncBlock, kSyncThreads, kSyncWarp, kShuffle, kShuffleXor, kBallot, kLoadMatrix, kLoadMatrixTransposed, kMma,
  kWarpgroupMultiply, kWarpgroupMultiplyTransposed, kWarpgroupFence, kWarpgroupCommit, kWarpgroupWait
};
const char* NameOf(Op op);

struct Thread;
struct Warp {
  uint32_t unstarted = 0, ready = 0;  // masks of lanes that can run
  uint32_t arrived = 0;               // at `op`, waiting for the others
  uint32_t at_barrier = 0, ended = 0;
  uint32_t at_shared_barrier = 0;
  int at_named = 0;                   // all lanes wait at that barrier; 0: they do not
  Op op = Op::kNone;
  Site site = {};
  void* operand[kWarp];
  Thread* first = nullptr;  // of its lanes
  WarpProducts products;
};

struct Thread {
  int index = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  Fiber* fiber = nullptr;  // null before it starts
  AsyncCopies copies;
  // While it waits at a shared barrier.
  int barrier = 0, parity = 0;
  Site site = {};
};

/// The kernel's thread that runs on this host thread.
extern __thread Thread* current_thread __attribute__((tls_model("initial-exec")));

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random {
  uint64_t state;
  uint64_t Next() {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
};

/// What all blocks of a launch have in common.
struct Grid {
  const Registration* kernel = nullptr;
  const void* args = nullptr;
  int size[3] = {1, 1, 1};
  int threads = 0;
  uint32_t shared = 0;           // bytes
  uint64_t seed = 0;
  bool races = false;            // follow each access to shared memory
  const Memory* memory = nullptr;  // where set, global addresses must lie in its allocations
};

/// Runs blocks, one after the other.
class Block {
 public:
  Block();
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  /// Before the blocks of a launch.
  void Begin(const Grid& grid);
  /// Runs one block. Empty, or what went wrong.
  std::string Run(int x, int y, int z);

  /// A collective of the calling thread's warp: `complete(operands)` runs once all 32 lanes have brought theirs, before any goes on.
  template <class F> void Collective(Op op, Site site, void* operand, const F& complete) {
    Thread& me = *current_thread;
    Warp& warp = *me.warp;
    if (!IsLast(op, site, operand)) return Suspend(me);
    complete(warp.operand);
    warp.ready |= warp.arrived;
    warp.arrived = 0;
  }
  void SyncBlock(Site site);
  void SyncWarp(Site site);
  /// An mbarrier at a shared address, of `arrivals` a phase. See ../device/device.h, as for the functions below.
  void InitBarrier(uint32_t at, int arrivals);
  void ArriveAtBarrier(uint32_t at);
  void WaitAtBarrier(uint32_t at, int parity, Site site);
  /// A named barrier: a collective of each warp.
  void SyncThreads(int id, int threads, Site site);

  /// Ends the block with these words. Does not return: the threads stay where they are and are forgotten.
  [[noreturn]] __attribute__((format(printf, 2, 3))) void Fault(const char* format, ...);

  // Dynamic shared memory.
  unsigned char* shared = nullptr;
  uint32_t shared_bytes = 0;
  /// `bytes` at the shared address, which must be a multiple of `alignment`.
  unsigned char* SharedAt(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what) {
    const uint32_t offset = address - kSharedStart;
    if (offset > shared_bytes || bytes > shared_bytes - offset || offset % alignment != 0)
      SharedFault(offset, bytes, alignment, what);
    return shared + offset;
  }
  bool InShared(const void* p) const {
    return static_cast<uint64_t>(static_cast<const unsigned char*>(p) - shared) < shared_bytes;
  }
  /// An aligned access to `bytes` of global or shared memory through a pointer.
  void CheckPointer(const void* p, uint32_t bytes, const char* what) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) Fault("%s: address %p is not a multiple of %u", what, p, bytes);
    if (grid.memory) CheckAllocated(p, bytes, what);
  }

  Grid grid;
  int index[3] = {0, 0, 0};
  Random random = {0};
  Races* races = nullptr;  // null unless grid.races

 private:
  /// The calling thread brings its operand to a collective: whether it is the warp's last. All others have to wait.
  bool IsLast(Op op, Site site, void* operand) {
    Warp& warp = *current_thread->warp;
    const int lane = current_thread->index % kWarp;
    if (!warp.arrived) {
      warp.op = op;
      warp.site = site;
    } else if (warp.op != op || warp.site.line != site.line || warp.site.file != site.file) {
      Divergence(op, site);
    }
    warp.operand[lane] = operand;
    if ((warp.arrived | 1u << lane) == ~0u) return true;
    warp.arrived |= 1u << lane;
    return false;
  }
  static void FiberMain(FiberPool& pool, Fiber& self);
  void RunThreads(Fiber& self);
  void Ended(Thread& thread);
  void CheckWarpgroups(uint32_t warps = ~0u);
  int BarrierAt(uint32_t at, const char* what);
  void Meet(NamedBarrier& barrier);
  void Wake(int warp, uint32_t lanes) {
    warps_[warp].ready |= lanes;
    if (lanes) runnable_ |= 1u << warp;
  }
  void Suspend(Thread& me);
  void GiveWay();
  Thread* Pick();
  void Go(Fiber& from, Thread* next, bool from_is_idle);
  void Blocked();
  void Forget();
  std::string Where(const Thread& thread) const;
  std::string State(const Thread& thread) const;
  std::string StateAtBarrier(const Thread& thread) const;
  void CheckAllocated(const void* p, uint32_t bytes, const char* what);
  [[noreturn]] void Divergence(Op op, Site site);
  [[noreturn]] void SharedFault(uint32_t offset, uint32_t bytes, uint32_t alignment, const char* what);

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  uint32_t runnable_ = 0;  // warps that may have a lane to run
  Warp* warp_ = nullptr;   // the one that runs
  bool downwards_ = false;
  int at_barrier_ = 0, left_ = 0;
  Site barrier_ = {};
  std::vector<SharedBarrier> shared_barriers_;
  NamedBarrier named_[kNamedBarriers];
  Thread* starting_ = nullptr;  // what a fresh fiber is to run
  Fiber main_;
  FiberPool fibers_;
  std::string fault_;
  std::unique_ptr<unsigned char[]> memory_;
  std::unique_ptr<Races> races_;
  unsigned long host_thread_ = 0;
};

}  // namespace heed::emulation
