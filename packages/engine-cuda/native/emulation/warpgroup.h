// wgmma: asynchronous products of a warpgroup (four warps). Each warp computes its own 16 rows, so that to the emulation they are
// collectives of the warp; that the four warps issue the same ones is checked where the block meets and ends.
//
// A product lands when its group is waited for, and not before. Until then its accumulators hold NaN; its operands are read either when
// it is issued or when it lands, drawn at random, so that one which changes meanwhile shows.
#pragma once
#include <stdint.h>

#include <memory>
#include <vector>

namespace heed::emulation {

class Block;
enum class Half;
struct Site;

/// What all lanes of a warp bring alike: c [64, columns] = (add ? c : 0) + a [64, 16] b [16, columns].
struct WarpgroupProduct {
  Half type;
  bool add, transposed;  // transposed: a in registers, b MN-major; otherwise both in shared memory, K-major
  int columns;
  uint64_t a, b;  // descriptors; a: 0 where transposed

  bool operator==(const WarpgroupProduct& other) const {
    return type == other.type && add == other.add && transposed == other.transposed && columns == other.columns && a == other.a &&
           b == other.b;
  }
};

constexpr int kWarpgroupWarps = 4, kWarpgroupThreads = 128;
constexpr int kMaxColumns = 256;

/// The products of one warp that are under way.
class WarpProducts {
 public:
  /// Before a block runs, and after a fault.
  void Clear();
  void Fence() { fenced_ = true; }
  /// `operands` of the warp's lanes: see WarpgroupMultiply.
  void Issue(Block& block, void** operands);
  /// Closes the group of the products since the last Commit; an empty group counts.
  void Commit();
  /// Lands the oldest groups until at most `left` are under way.
  void Wait(Block& block, uint32_t left);
  /// Products that nobody has waited for, and those of them that are in no group.
  uint32_t UnderWay() const { return static_cast<uint32_t>(under_way_.size()); }
  uint32_t Uncommitted() const { return uncommitted_; }

  // What the warp has done since the block's start, equal in all warps of a warpgroup.
  uint32_t issued = 0, commits = 0;
  uint64_t history = 0;  // a hash of all products and commits, in their order

 private:
  /// The rows of the warp, kept aside while products on them are under way.
  struct Accumulators {
    float* c[32];  // of each lane
    int columns;
    uint32_t products;  // under way
    alignas(32) float sums[kMaxColumns / 8][16][8];
  };
  /// Where a matrix stands in shared memory; all in bytes.
  struct Place {
    uint32_t start, leading, stride;
  };
  struct Product {
    WarpgroupProduct of;
    Place a_place, b_place;
    int row;  // of the 64, the warp's first
    Accumulators* accumulators;
    const uint32_t* registers[32];  // of a
    bool read;                      // a and b hold the operands
    alignas(32) uint32_t a[16][8];  // pairs along k
    // By 8 columns, 16 pieces of 16 bytes: transposed, a row of b each, 8 columns of it; else two to a column, each 8 numbers along k.
    alignas(32) unsigned char b[kMaxColumns / 8][16][16];
  };

  Accumulators& Keep(Block& block, void** operands, const WarpgroupProduct& of);
  void Land(Block& block);
  void Deliver(Block& block, Accumulators& accumulators);
  static Place Decode(Block& block, uint64_t descriptor);
  template <class F> static void ForPieces(Product& product, const F& f);
  static void Read(Block& block, Product& product);
  static void Multiply(const Product& product);

  std::vector<std::unique_ptr<Product>> under_way_, idle_;
  std::vector<std::unique_ptr<Accumulators>> kept_, idle_kept_;
  std::vector<uint32_t> groups_;  // products of each
  uint32_t uncommitted_ = 0;
  bool fenced_ = false;  // since the last wait
};

/// wgmma.mma_async.m64nNk16. c: columns / 2 numbers of the calling lane; a: its 4 registers, or null. Collective, as all of these.
void WarpgroupMultiply(const WarpgroupProduct& of, float* c, const uint32_t* a, Site site);
void WarpgroupFence(Site site);
void WarpgroupCommit(Site site);
void WarpgroupWait(uint32_t left, Site site);
/// fence.proxy.async of the calling thread: followed with Races only.
void PublishShared();

}  // namespace heed::emulation
