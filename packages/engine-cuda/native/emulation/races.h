// Races on dynamic shared memory: two threads touch the same bytes, one of them writes, and no barrier lies between. A barrier of the
// block orders all its threads, one of the warp (sync_warp) the warp's; the other collectives order nothing, as in CUDA.
//
// Per two bytes, what was done since the last barrier of the block: exact for all accesses through Shared<T>, load_16, store_16,
// load_u32, the atomic functions, load_matrix_x4 and copies. Elements of one byte are not followed. An access through Shared<T> counts
// as a write when the value is another afterwards, so a write of what was there already counts as a read.
#pragma once
#include <stdint.h>

#include <vector>

namespace heed::emulation {

class Block;

class Races {
 public:
  explicit Races(Block& block) : block_(block) {}

  /// Before a block with that much shared memory runs.
  void Start(uint32_t bytes);
  /// All threads have met; the lanes of a warp have met.
  void BlockMet() { epoch_++; }
  void WarpMet(int warp) { warp_epoch_[warp] = ++warp_epochs_; }
  /// Before the running thread stops or meets others: settles what it touched.
  void Flush() { Settle(pending_count_); }

  /// The running thread has got a reference to `bytes` at an offset: a read or a write, seen at the next Flush.
  void Touch(uint32_t offset, uint32_t bytes);
  void Read(uint32_t offset, uint32_t bytes);
  void Write(uint32_t offset, uint32_t bytes);
  void Atomic(uint32_t offset, uint32_t bytes);
  /// An asynchronous copy of 16 bytes is under way to the offset: nothing may touch it until it lands.
  void CopyStarts(uint32_t offset);
  void CopyLands(uint32_t offset);

 private:
  static constexpr uint32_t kUnit = 2;       // bytes
  static constexpr uint32_t kPending = 16;   // touches, the oldest half of which is settled when there are more
  static constexpr uint32_t kPiece = 16;     // bytes of a touch; larger ones are several

  // Who did one kind of access in block epoch `epoch`: all warps, and the lanes of the latest one in its warp epoch. Enough to find any
  // conflict: with another warp it is in `warps`, and without one the latest warp is the thread's own.
  struct Accesses {
    uint32_t epoch = 0, warps = 0, warp_epoch = 0, lanes = 0;
    int warp = 0;
  };
  struct Unit {
    Accesses reads, writes, atomics;
    uint64_t copy = 0;  // the run and the thread (+ 1) of a copy under way, or 0
  };
  struct Pending {
    uint32_t offset, bytes;
    unsigned char before[kPiece];
  };

  void Settle(uint32_t count);
  void Add(Accesses& accesses);
  void Against(const Accesses& accesses, uint32_t offset, const char* mine, const char* theirs);
  void NotCopied(uint32_t offset, uint32_t bytes, const char* mine);
  template <class F> void ForUnits(uint32_t offset, uint32_t bytes, const F& f);

  Block& block_;
  std::vector<Unit> units_;
  uint32_t epoch_ = 0, warp_epochs_ = 0, run_ = 0;
  uint32_t warp_epoch_[32] = {};
  Pending pending_[kPending];
  uint32_t pending_count_ = 0;
};

}  // namespace heed::emulation
