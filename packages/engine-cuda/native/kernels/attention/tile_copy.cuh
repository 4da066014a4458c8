// Keys and values of neighbouring tokens on their way into a tile of shared memory, by a whole block.
#pragma once
#include "fragments.cuh"
#include "problem.cuh"

namespace heed {

// Threads lie in rows as the tile does, so that a thread has one place in a row, and an address takes a sum instead of divisions and
// products: of a tile of 48 rows of 128 numbers those were two fifths of all instructions.
template <class TileOf, int kRows, int kThreads>
struct TileCopy {
  static constexpr int kChunks = TileOf::kChunks;
  static constexpr int kPowerOfTwo = kChunks & -kChunks;
  static constexpr int kMost = kThreads / TileOf::kRepeat;  // a thread's columns then stand in the same places in every pass
  static constexpr int kAcross = kPowerOfTwo < kMost ? kPowerOfTwo : kMost;        // threads to a row
  static constexpr int kPass = kThreads / kAcross;                                 // rows that are copied at once
  static constexpr int kPasses = (kRows + kPass - 1) / kPass;
  static constexpr int kParts = kChunks / kAcross;

  const int thread;
  DEVICE int row() const { return thread / kAcross; }
  DEVICE int chunk() const { return thread % kAcross; }
  // Whether the rows of a pass lie behind one another: all that are copied at once are then in one page.
  DEVICE static bool fits(const Sequence& s) { return !s.pages || (kRows % kPass == 0 && s.page_size % kPass == 0); }

  // One pass, from this thread's first bytes of its row. `valid`: of these and of those kAcross columns further, and so on.
  DEVICE void pass(const TileOf& tile, int number, const unsigned char* from, const bool (&valid)[kParts]) const {
    if (kRows % kPass != 0 && row() + number * kPass >= kRows) return;
    UNROLL for (int part = 0; part < kParts; part++)
      copy_async_16(tile.at(row(), chunk() + part * kAcross) + number * kPass * TileOf::kPitch, from + (valid[part] ? part * kAcross * 16 : 0), valid[part]);
  }
  // Tokens first .. first + kRows - 1, all there; `first` a multiple of kRows. start, token_bytes, page_bytes: of s, for keys or values.
  DEVICE void copy(const TileOf& tile, const Sequence& s, const unsigned char* start, int64_t token_bytes, int64_t page_bytes, int first,
                   int width) const {
    bool valid[kParts];
    UNROLL for (int part = 0; part < kParts; part++) valid[part] = (chunk() + part * kAcross) * 8 < width;
    start += row() * token_bytes + (valid[0] ? chunk() * 16 : 0);
    if (!s.pages) {
      const unsigned char* from = start + first * token_bytes;
      UNROLL for (int n = 0; n < kPasses; n++, from += kPass * token_bytes) pass(tile, n, from, valid);
      return;
    }
    int page = first / s.page_size, at = first - page * s.page_size;
    const unsigned char* from = start + s.pages[page] * page_bytes + at * token_bytes;
    ROLLED for (int n = 0;;) {
      pass(tile, n, from, valid);
      if (++n == kPasses) return;
      from += kPass * token_bytes;
      at += kPass;
      if (at < s.page_size) continue;
      at = 0;
      from = start + s.pages[++page] * page_bytes;
    }
  }
};

}  // namespace heed
