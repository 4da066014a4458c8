// Races on dynamic shared memory: two threads touch the same bytes, one of them writes, and nothing orders the two. What orders: a barrier
// of the block all its threads; sync_threads the warps that meet; sync_warp the warp's lanes; an mbarrier what its arrivals come after
// and what waits for their phase come before. The other collectives order nothing, as in CUDA.
//
// A clock for each warp, as in FastTrack (Flanagan, Freund 2009): a warp's time moves on when it meets others or arrives, and it knows up
// to which time of each other warp all is done before what it does now. Per two bytes the last write and, since then, the reads of each
// warp are kept: for all accesses through Shared<T>, load_16, store_16, load_u32, the atomic functions, load_matrix_x4, copies and
// warpgroup products. Elements of one byte are not followed. An access through Shared<T> counts as a write when the value is another
// afterwards, so a write of what was there already counts as a read.
//
// What is reported is a race in the order that the threads ran in. Missed, in some of these orders or in all:
// - A lane arrives and waits for its whole warp: what other lanes did before, in the order they ran, counts as ordered too, as if a
//   sync_warp came before each arrival and behind each wait. Lanes run upwards or downwards, so another seed may show it.
// - Of several lanes of a warp that read the same bytes with an arrival of the warp between, and no sync_warp, only those after it are kept.
// - A wait orders all arrivals of the phases that have completed by then, also of those after the one that was waited for.
//
// Warpgroup products read through the asynchronous proxy: what a thread wrote or copied they see only after its publish_shared, other
// warps' products only where that comes before them. Until they land nothing may write what they read.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace heed::emulation {

class Block;

/// By warp, the time up to which all that it did comes before.
struct Clock {
  uint32_t at[32];
};

class Races {
 public:
  explicit Races(Block& block) : block_(block) {}

  /// Before a block with that much shared memory and so many threads runs.
  void Start(uint32_t bytes, int threads);
  /// All threads have met; the lanes of a warp have met.
  void BlockMet();
  void WarpMet(int warp) {
    lanes_met_[warp] = Time(warp);
    clocks_[warp].at[warp] = ++time_;
  }
  /// What the warp has done comes before what those do that acquire the clock.
  void Release(int warp, Clock& into);
  void Acquire(int warp, const Clock& from);
  /// Before the running thread stops or meets others: settles what it touched.
  void Flush() { Settle(pending_count_); }

  /// The running thread has got a reference to `bytes` at an offset: a read or a write, seen at the next Flush.
  void Touch(uint32_t offset, uint32_t bytes);
  void Read(uint32_t offset, uint32_t bytes);
  void Write(uint32_t offset, uint32_t bytes);
  void Atomic(uint32_t offset, uint32_t bytes);
  /// A barrier stands there: its initialisation must come before.
  void UseBarrier(uint32_t offset, uint32_t bytes);
  /// An asynchronous copy of 16 bytes is under way to the offset: nothing may touch it until it lands.
  void CopyStarts(uint32_t offset);
  void CopyLands(uint32_t offset);
  /// A warpgroup product of the running thread's warp reads the 16 bytes at the offset, from now until it lands.
  void ProductStarts(uint32_t offset);
  void ProductLands(uint32_t offset);
  /// The running thread makes what it has written visible to products.
  void Publish();

 private:
  static constexpr uint32_t kUnit = 2;       // bytes
  static constexpr uint32_t kPending = 16;   // touches, the oldest half of which is settled when there are more
  static constexpr uint32_t kPiece = 16;     // bytes of a touch, larger ones being several, and of what a product reads

  /// A warp's latest: its time, and the lanes at that time.
  struct Access {
    uint32_t time, lanes;
  };
  /// Of one kind, for each unit and warp.
  struct Accesses {
    std::vector<Access> at;
    int warps = 0;  // to a unit
    Access* Of(uint32_t unit) { return &at[static_cast<size_t>(unit) * warps]; }
  };
  struct Unit {
    uint32_t run = 0;                    // which all else here is of
    int writer = -1;                     // the thread that wrote last
    uint32_t write_time = 0;             // of its warp
    uint32_t readers = 0, changers = 0;  // warps that have read, or changed atomically, since then: see reads_, atomics_
    int copier = -1;                     // the thread whose copy is under way
    int changer = -1;                    // the thread that wrote or changed it last, and when
    uint64_t changed = 0;
  };
  // Products read pieces of 16 bytes.
  struct Piece {
    uint32_t run = 0, products = 0;  // products under way
    uint32_t readers = 0;            // warps: see product_reads_
    uint32_t open = 0;  // warps whose products may read what stands there: it is published, and nothing has changed it since
  };
  struct Published {
    uint64_t now;
    uint32_t time;  // of the thread's warp
  };
  struct Pending {
    uint32_t offset, bytes;
    unsigned char before[kPiece];
  };

  static int Lane();
  static int Warp();
  uint32_t Time(int warp) const { return clocks_[warp].at[warp]; }
  bool After(int warp, uint32_t time) const { return time <= clocks_[Warp()].at[warp]; }
  Unit& UnitAt(uint32_t unit);
  Piece& PieceAt(uint32_t offset);
  template <class F> void ForUnits(uint32_t offset, uint32_t bytes, const F& f);
  void Settle(uint32_t count);
  void Add(uint32_t& warps, Accesses& accesses, uint32_t offset);
  void AddWrite(Unit& unit, uint32_t offset);
  void Changed(Unit& unit, uint32_t offset);
  void AgainstWrite(const Unit& unit, uint32_t offset, const char* mine);
  void Against(uint32_t warps, Accesses& accesses, uint32_t offset, const char* mine, const char* theirs);
  void AgainstAtomics(const Unit& unit, uint32_t offset, const char* mine) {
    if (unit.changers) Against(unit.changers, atomics_, offset, mine, "changed atomically");
  }
  void AgainstReads(const Unit& unit, uint32_t offset, const char* mine) {
    if (unit.readers) Against(unit.readers, reads_, offset, mine, "read");
  }
  void NotMultiplied(uint32_t offset, uint32_t bytes, const char* mine);
  void NotCopied(uint32_t offset, uint32_t bytes, const char* mine);
  const Published* PublishedBehind(const Unit& unit) const;
  [[noreturn]] void OtherWarp(int warp, uint32_t offset, const char* mine, const char* theirs);
  [[noreturn]] void OtherLane(int lane, uint32_t offset, const char* mine, const char* theirs);

  Block& block_;
  std::vector<Unit> units_;
  std::vector<Piece> pieces_;
  Accesses reads_, atomics_;
  std::vector<uint32_t> product_reads_;  // by piece and warp: times
  int warps_ = 0;
  uint32_t run_ = 0;
  uint32_t time_ = 0;            // the latest of all warps
  uint32_t met_ = 0;             // the latest time of all warps before the last barrier of the block
  Clock clocks_[32] = {};        // by warp; its own entry is its time
  uint32_t lanes_met_[32] = {};  // by warp, the time up to which what its lanes did comes before what all its lanes do
  uint64_t now_ = 0;             // publications, ever rising
  std::vector<Published> published_[1024];  // by thread, in this run
  Pending pending_[kPending];
  uint32_t pending_count_ = 0;
};

}  // namespace heed::emulation
