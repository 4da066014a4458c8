#include "barriers.h"

#include <string.h>

#include "block.h"

namespace heed::emulation {
namespace {

constexpr unsigned char kMark[8] = {0xba, 0x44, 0x1e, 0x4b, 0xa4, 0x41, 0xe4, 0xba};  // what stands where a barrier is

struct NamedCall {  // what a lane brings
  int id, threads;
};

}  // namespace

void Block::InitBarrier(uint32_t at, int arrivals) {
  unsigned char* place = SharedAt(at, sizeof kMark, sizeof kMark, "barrier_init");
  SharedBarrier barrier;
  barrier.offset = static_cast<uint32_t>(place - shared);
  if (arrivals < 1 || arrivals > kMaxArrivals) Fault("barrier_init: a phase of %d arrivals; there are 1 to %d", arrivals, kMaxArrivals);
  for (const SharedBarrier& other : shared_barriers_)
    if (other.offset == barrier.offset) Fault("barrier_init: the barrier at byte %u of shared memory is initialised already", other.offset);
  if (races) races->Write(barrier.offset, sizeof kMark);
  memcpy(place, kMark, sizeof kMark);
  barrier.arrivals = barrier.missing = arrivals;
  shared_barriers_.push_back(barrier);
}

// The number of the barrier at a shared address.
int Block::BarrierAt(uint32_t at, const char* what) {
  const unsigned char* place = SharedAt(at, sizeof kMark, sizeof kMark, what);
  const uint32_t offset = static_cast<uint32_t>(place - shared);
  size_t i = 0;
  while (i < shared_barriers_.size() && shared_barriers_[i].offset != offset) i++;
  if (i == shared_barriers_.size()) Fault("%s: no barrier was initialised at byte %u of shared memory", what, offset);
  if (memcmp(place, kMark, sizeof kMark) != 0) Fault("%s: the barrier at byte %u of shared memory was written over", what, offset);
  if (races) races->UseBarrier(offset, sizeof kMark);
  return static_cast<int>(i);
}

// Nobody arrives in a phase before somebody has waited for the phase before: by nothing else could it know that this has completed.
void Block::ArriveAtBarrier(uint32_t at) {
  SharedBarrier& barrier = shared_barriers_[BarrierAt(at, "barrier_arrive")];
  if (barrier.phase > 0 && !barrier.known)
    Fault("barrier_arrive: phase %u of the barrier at byte %u of shared memory has had its %d arrivals, and no thread has waited for it yet",
          barrier.phase - 1, barrier.offset, barrier.arrivals);
  if (races) races->Release(current_thread->index / kWarp, barrier.arrived);
  if (--barrier.missing > 0) return;
  barrier.missing = barrier.arrivals;
  barrier.phase++;
  barrier.known = false;
  barrier.completed = barrier.arrived;
  for (size_t w = 0; w < warps_.size(); w++) {
    warps_[w].at_shared_barrier &= ~barrier.waiting[w];
    Wake(static_cast<int>(w), barrier.waiting[w]);
    barrier.waiting[w] = 0;
  }
  if (random.Next() & 1) GiveWay();
}

// Lets another warp run, perhaps one that has been woken.
void Block::GiveWay() {
  Thread& me = *current_thread;
  Wake(me.index / kWarp, 1u << me.index % kWarp);
  warp_ = &warps_[random.Next() % warps_.size()];
  Suspend(me);
}

void Block::WaitAtBarrier(uint32_t at, int parity, Site site) {
  if (parity != 0 && parity != 1) Fault("barrier_wait: a parity of %d", parity);
  Thread& me = *current_thread;
  const int warp = me.index / kWarp, number = BarrierAt(at, "barrier_wait");
  const uint32_t bit = 1u << me.index % kWarp;
  while (static_cast<int>(shared_barriers_[number].phase & 1) == parity) {
    me.barrier = number;
    me.parity = parity;
    me.site = site;
    me.warp->at_shared_barrier |= bit;
    shared_barriers_[number].waiting[warp] |= bit;
    Suspend(me);
  }
  shared_barriers_[number].known = true;
  if (races) races->Acquire(warp, shared_barriers_[number].completed);
}

void Block::SyncThreads(int id, int threads, Site site) {
  if (id < 1 || id >= kNamedBarriers) Fault("sync_threads: barrier %d; there are 1 to %d", id, kNamedBarriers - 1);
  if (threads < kWarp || threads % kWarp != 0 || threads > grid.threads)
    Fault("sync_threads: %d threads in a block of %d; whole warps meet", threads, grid.threads);
  Thread& me = *current_thread;
  Warp& warp = *me.warp;
  NamedCall mine = {id, threads};
  if (!IsLast(Op::kSyncThreads, site, &mine)) return Suspend(me);
  for (int lane = 0; lane < kWarp; lane++) {
    const NamedCall& other = *static_cast<NamedCall*>(warp.operand[lane]);
    if (other.id != id || other.threads != threads)
      Fault("sync_threads: lane %d of its warp brings barrier %d of %d threads, this one barrier %d of %d", lane, other.id, other.threads, id,
            threads);
  }
  const int number = me.index / kWarp;
  NamedBarrier& barrier = named_[id];
  if (barrier.warps && barrier.threads != threads)
    Fault("sync_threads: barrier %d of %d threads, at which warp %d waits as one of %d (%s)", id, threads, __builtin_ctz(barrier.warps),
          barrier.threads, Text(barrier.site).c_str());
  if (races) {
    races->Flush();
    races->Release(number, barrier.arrived);
  }
  barrier.threads = threads;
  barrier.site = site;
  barrier.warps |= 1u << number;
  if (__builtin_popcount(barrier.warps) * kWarp < threads) {
    warp.arrived = 0;
    warp.at_named = id;
    return Suspend(me);
  }
  CheckWarpgroups(barrier.warps);
  Meet(barrier);
}

// Its threads go on; the calling one runs.
void Block::Meet(NamedBarrier& barrier) {
  for (uint32_t left = barrier.warps; left; left &= left - 1) {
    const int number = __builtin_ctz(left);
    if (races) races->Acquire(number, barrier.arrived);
    Wake(number, warps_[number].at_named ? ~0u : warps_[number].arrived);
    warps_[number].at_named = 0;
    warps_[number].arrived = 0;
  }
  barrier = {};
}

std::string Block::StateAtBarrier(const Thread& thread) const {
  const Warp& warp = warps_[thread.index / kWarp];
  if (warp.at_named) {
    const NamedBarrier& barrier = named_[warp.at_named];
    return "waits at sync_threads (" + Text(warp.site) + "), barrier " + std::to_string(warp.at_named) + ", to which " +
           std::to_string(__builtin_popcount(barrier.warps) * kWarp) + " of " + std::to_string(barrier.threads) + " threads have come";
  }
  const SharedBarrier& barrier = shared_barriers_[thread.barrier];
  return "waits at barrier_wait (" + Text(thread.site) + ") for parity " + std::to_string(thread.parity) + ", phase " +
         std::to_string(barrier.phase) + ", of the barrier at byte " + std::to_string(barrier.offset) + ", which lacks " +
         std::to_string(barrier.missing) + " of " + std::to_string(barrier.arrivals) + " arrivals";
}

void CheckRegisters(int registers, const char* what) {
  if (registers % 8 != 0 || registers < 24 || registers > 256)
    current_thread->block->Fault("%s: %d registers; there are 24 to 256, in steps of 8", what, registers);
}

}  // namespace heed::emulation
