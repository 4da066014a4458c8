#include "warpgroup.h"

#include <string.h>

#include "block.h"
#include "races.h"
#include "widen.h"

namespace heed::emulation {
namespace {

constexpr uint32_t kPoison = 0xffffffff;  // NaN, in accumulators under way

struct Lane {  // what one brings
  const WarpgroupProduct* of;
  float* c;
  const uint32_t* registers;
};
Lane& LaneOf(void** operands, int lane) { return *static_cast<Lane*>(operands[lane]); }

// 16-byte column c of a 128-byte row r stands at column c ^ (r % 8) (PTX ISA, 9.7.15.5): by the address, whatever the matrix starts at.
uint32_t Swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

uint64_t Mix(uint64_t hash, uint64_t word) { return (hash ^ word) * 0x9e3779b97f4a7c15ull ^ hash >> 29; }

// Each row of x, transposed: three rounds that interleave the first four and the last four.
INLINE void Transpose(EightBits (&x)[8]) {
  for (int round = 0; round < 3; round++) {
    EightBits y[8];
    for (int i = 0; i < 4; i++) {
      y[2 * i] = __builtin_shufflevector(x[i], x[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i++) x[i] = y[i];
  }
}
typedef uint16_t EightHalves __attribute__((vector_size(16)));
template <Half type> INLINE void WidenPiece(const unsigned char (&piece)[16], Eight& wide) {
  const EightBits bits = __builtin_convertvector(*reinterpret_cast<const EightHalves*>(piece), EightBits);
  if (type == Half::kBfloat16)
    wide = reinterpret_cast<Eight>(bits << 16);
  else
    WidenFloat16(bits, wide);
}

// Sums [16, 8] of `columns` / 8, each of which has 16 pieces of b: see WarpProducts::Product.
using Columns = unsigned char[16][16];
using Sums = float[16][8];
template <Half type, bool transposed>
INLINE void MultiplyAll(const uint32_t (&a)[16][8], const Columns* b, int columns, bool add, Sums* sums) {
  Eight low[16], high[16], even[8], odd[8];
  for (int row = 0; row < 16; row++) Widen<type>(*reinterpret_cast<const EightBits*>(a[row]), low[row], high[row]);
  for (int n = 0; n < columns / 8; n++) {
    if (transposed) {
      for (int pair = 0; pair < 8; pair++) {
        WidenPiece<type>(b[n][2 * pair], even[pair]);
        WidenPiece<type>(b[n][2 * pair + 1], odd[pair]);
      }
    } else {
      EightBits pairs[8];
      memcpy(pairs, b[n], sizeof pairs);
      Transpose(pairs);
      for (int pair = 0; pair < 8; pair++) Widen<type>(pairs[pair], even[pair], odd[pair]);
    }
    for (int row = 0; row < 16; row++) {
      Eight sum;
      MultiplyRow(low[row], high[row], even, odd, sum);
      Eight& to = *reinterpret_cast<Eight*>(sums[n][row]);
      to = add ? to + sum : sum;
    }
  }
}

using Multiplier = void (*)(const uint32_t (&a)[16][8], const Columns* b, int columns, bool add, Sums* sums);
template <Half type, bool transposed>
void MultiplyPortable(const uint32_t (&a)[16][8], const Columns* b, int columns, bool add, Sums* sums) {
  MultiplyAll<type, transposed>(a, b, columns, add, sums);
}
#ifdef __x86_64__
template <Half type, bool transposed>
__attribute__((target("avx2"))) void MultiplyAvx2(const uint32_t (&a)[16][8], const Columns* b, int columns, bool add, Sums* sums) {
  MultiplyAll<type, transposed>(a, b, columns, add, sums);
}
#endif
template <Half type, bool transposed> Multiplier Best() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) return MultiplyAvx2<type, transposed>;
#endif
  return MultiplyPortable<type, transposed>;
}

}  // namespace

void WarpProducts::Clear() {
  for (std::unique_ptr<Product>& product : under_way_) idle_.push_back(std::move(product));
  for (std::unique_ptr<Accumulators>& kept : kept_) idle_kept_.push_back(std::move(kept));
  under_way_.clear();
  kept_.clear();
  groups_.clear();
  uncommitted_ = issued = commits = 0;
  history = 0;
  fenced_ = false;
}

void WarpProducts::Commit() {
  groups_.push_back(uncommitted_);
  uncommitted_ = 0;
  commits++;
  history = Mix(history, 1);
}

// The descriptor's fields, which are in units of 16 bytes.
WarpProducts::Place WarpProducts::Decode(Block& block, uint64_t bits) {
  constexpr uint64_t kFields = 0x3fff | 0x3fffull << 16 | 0x3fffull << 32;
  if ((bits & ~kFields) != 1ull << 62)
    block.Fault("matrix descriptor %016llx: only those of the 128-byte swizzle are known, without a base offset",
                static_cast<unsigned long long>(bits));
  const auto field = [bits](int at) { return static_cast<uint32_t>(bits >> at & 0x3fff) << 4; };
  return {field(0), field(16), field(32)};
}

// f(piece, address) for each 16 bytes of the warp's operands in shared memory: where they belong, where they stand.
template <class F> void WarpProducts::ForPieces(Product& product, const F& f) {
  const WarpgroupProduct& of = product.of;
  const Place &a = product.a_place, &b = product.b_place;
  if (of.transposed) {
    for (int n = 0; n < of.columns / 8; n++)
      for (int k = 0; k < 16; k++)
        f(product.b[n][k], Swizzled(b.start + n / 8 * b.leading + k / 8 * b.stride + k % 8 * 128 + n % 8 * 16));
    return;
  }
  for (int i = 0; i < of.columns * 2; i++)
    f(product.b[i / 16][i % 16], Swizzled(b.start + i / 16 * b.stride + i % 16 / 2 * 128 + i % 2 * 16));
  for (int i = 0; i < 32; i++) {
    const int row = product.row + i / 2;
    f(reinterpret_cast<unsigned char*>(product.a[i / 2]) + i % 2 * 16, Swizzled(a.start + row / 8 * a.stride + row % 8 * 128 + i % 2 * 16));
  }
}

void WarpProducts::Read(Block& block, Product& product) {
  ForPieces(product, [&](unsigned char* piece, uint32_t address) {
    memcpy(piece, block.SharedAt(address, 16, 16, "warpgroup_multiply"), 16);
  });
  if (!product.of.transposed) return;
  for (int lane = 0; lane < kWarp; lane++)  // as in matrix.cc
    for (int i = 0; i < 4; i++) product.a[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = product.registers[lane][i];
}

// The accumulators of a product: those of one under way, or kept anew.
WarpProducts::Accumulators& WarpProducts::Keep(Block& block, void** operands, const WarpgroupProduct& of) {
  float* c = LaneOf(operands, 0).c;
  for (std::unique_ptr<Accumulators>& kept : kept_) {
    if (kept->c[0] >= c + of.columns / 2 || c >= kept->c[0] + kept->columns / 2) continue;
    bool same = kept->columns == of.columns;
    for (int lane = 0; lane < kWarp; lane++) same = same && kept->c[lane] == LaneOf(operands, lane).c;
    if (!same) block.Fault("warpgroup_multiply: a product under way has some of its accumulators, but not the same ones");
    return *kept;
  }
  if (idle_kept_.empty()) idle_kept_.emplace_back(new Accumulators);
  kept_.push_back(std::move(idle_kept_.back()));
  idle_kept_.pop_back();
  Accumulators& kept = *kept_.back();
  kept.columns = of.columns;
  kept.products = 0;
  for (int lane = 0; lane < kWarp; lane++) {
    kept.c[lane] = LaneOf(operands, lane).c;
    // Of 8 columns a lane has two next to each other in row lane / 4, and two 8 rows below.
    for (int n = 0; n < of.columns / 8; n++) {
      if (of.add) {
        memcpy(kept.sums[n][0] + 2 * lane, kept.c[lane] + 4 * n, 8);
        memcpy(kept.sums[n][8] + 2 * lane, kept.c[lane] + 4 * n + 2, 8);
      }
    }
    memset(kept.c[lane], kPoison & 0xff, of.columns / 2 * sizeof(float));
  }
  return kept;
}

void WarpProducts::Issue(Block& block, void** operands) {
  const WarpgroupProduct& of = *LaneOf(operands, 0).of;
  for (int lane = 1; lane < kWarp; lane++)
    if (!(*LaneOf(operands, lane).of == of))
      block.Fault("warpgroup_multiply: lane %d of its warp brings another descriptor, size or `add` than lane 0", lane);
  if (block.grid.threads % kWarpgroupThreads != 0)
    block.Fault("warpgroup_multiply: a block of %d threads is not made of warpgroups", block.grid.threads);
  if (!fenced_) block.Fault("warpgroup_multiply: its warp has called no warpgroup_fence since it last waited");
  if (idle_.empty()) idle_.emplace_back(new Product);
  under_way_.push_back(std::move(idle_.back()));
  idle_.pop_back();
  Product& product = *under_way_.back();
  product.of = of;
  product.b_place = Decode(block, of.b);
  if (!of.transposed) product.a_place = Decode(block, of.a);
  product.row = current_thread->index / kWarp % kWarpgroupWarps * 16;
  for (int lane = 0; lane < kWarp; lane++) product.registers[lane] = LaneOf(operands, lane).registers;
  product.accumulators = &Keep(block, operands, of);
  product.accumulators->products++;
  if (block.races) {
    block.races->Flush();
    ForPieces(product, [&](unsigned char*, uint32_t address) {
      block.SharedAt(address, 16, 16, "warpgroup_multiply");
      block.races->ProductStarts(address - kSharedStart);
    });
  }
  product.read = block.random.Next() & 1;
  if (product.read) Read(block, product);
  uncommitted_++;
  issued++;
  for (const uint64_t word : {of.a, of.b, static_cast<uint64_t>(of.columns) << 8 | static_cast<uint64_t>(of.type) << 2 |
                                              static_cast<uint64_t>(of.transposed) << 1 | static_cast<uint64_t>(of.add)})
    history = Mix(history, word);
}

void WarpProducts::Multiply(const Product& product) {
  static const Multiplier multipliers[2][2] = {{Best<Half::kFloat16, false>(), Best<Half::kFloat16, true>()},
                                               {Best<Half::kBfloat16, false>(), Best<Half::kBfloat16, true>()}};
  const WarpgroupProduct& of = product.of;
  multipliers[of.type == Half::kBfloat16][of.transposed](product.a, product.b, of.columns, of.add, product.accumulators->sums);
}

// The sums of the last product on them go where NaN stands.
void WarpProducts::Deliver(Block& block, Accumulators& kept) {
  for (int lane = 0; lane < kWarp; lane++) {
    uint32_t untouched = kPoison;
    for (int i = 0; i < kept.columns / 2; i++) {
      uint32_t word;
      memcpy(&word, kept.c[lane] + i, 4);
      untouched &= word;
    }
    if (untouched != kPoison) block.Fault("lane %d of its warp wrote accumulators while a warpgroup product on them was under way", lane);
    for (int n = 0; n < kept.columns / 8; n++) {
      memcpy(kept.c[lane] + 4 * n, kept.sums[n][0] + 2 * lane, 8);
      memcpy(kept.c[lane] + 4 * n + 2, kept.sums[n][8] + 2 * lane, 8);
    }
  }
  for (std::unique_ptr<Accumulators>& at : kept_) {
    if (at.get() != &kept) continue;
    idle_kept_.push_back(std::move(at));
    at = std::move(kept_.back());
    kept_.pop_back();
    return;
  }
}

void WarpProducts::Land(Block& block) {
  const uint32_t count = groups_.front();
  for (uint32_t i = 0; i < count; i++) {
    Product& product = *under_way_[i];
    if (!product.read) Read(block, product);
    if (block.races)
      ForPieces(product, [&](unsigned char*, uint32_t address) { block.races->ProductLands(address - kSharedStart); });
    Multiply(product);
    if (--product.accumulators->products == 0) Deliver(block, *product.accumulators);
  }
  for (uint32_t i = 0; i < count; i++) idle_.push_back(std::move(under_way_[i]));
  under_way_.erase(under_way_.begin(), under_way_.begin() + count);
  groups_.erase(groups_.begin());
}

void WarpProducts::Wait(Block& block, uint32_t left) {
  if (block.races) block.races->Flush();
  while (groups_.size() > left) Land(block);
  fenced_ = false;
}

void WarpgroupMultiply(const WarpgroupProduct& of, float* c, const uint32_t* a, Site site) {
  Block& block = *current_thread->block;
  Lane mine = {&of, c, a};
  block.Collective(of.transposed ? Op::kWarpgroupMultiplyTransposed : Op::kWarpgroupMultiply, site, &mine,
                   [&block](void** operands) { current_thread->warp->products.Issue(block, operands); });
}
void WarpgroupFence(Site site) {
  current_thread->block->Collective(Op::kWarpgroupFence, site, nullptr, [](void**) { current_thread->warp->products.Fence(); });
}
void WarpgroupCommit(Site site) {
  current_thread->block->Collective(Op::kWarpgroupCommit, site, nullptr, [](void**) { current_thread->warp->products.Commit(); });
}
void WarpgroupWait(uint32_t left, Site site) {
  Block& block = *current_thread->block;
  block.Collective(Op::kWarpgroupWait, site, nullptr,
                   [&block, left](void**) { current_thread->warp->products.Wait(block, left); });
}
void PublishShared() {
  if (Races* races = current_thread->block->races) races->Publish();
}

}  // namespace heed::emulation
