// Keys and values of neighbouring tokens on their way into a tile of shared memory, by a whole block.
#pragma once
#include "fragments.cuh"
#include "problem.cuh"

namespace heed {

// Threads lie in rows as the tile does, so that a thread has one place in a row, and an address takes a sum instead of divisions and
// products: of a tile of 48 rows of 128 numbers those were two fifths of all instructions.
template <int kWidth, int kRows, int kThreads>
struct TileCopy {
  static constexpr int kChunks = Tile<kWidth>::kChunks;
  static constexpr int kPowerOfTwo = kChunks & -kChunks;
  static constexpr int kAcross = kPowerOfTwo < kThreads ? kPowerOfTwo : kThreads;  // threads to a row
  static constexpr int kPass = kThreads / kAcross;                                 // rows that are copied at once
  static constexpr int kPasses = (kRows + kPass - 1) / kPass;

  const int thread;
  DEVICE int row() const { return thread / kAcross; }
  DEVICE int chunk() const { return thread % kAcross; }
  // Whether the rows of a pass lie behind one another: all that are copied at once are then in one page.
  DEVICE static bool fits(const Sequence& s) { return !s.pages || (kRows % kPass == 0 && s.page_size % kPass == 0); }

  // One pass, from where this thread's row begins.
  DEVICE void pass(const Tile<kWidth>& tile, int number, const unsigned char* from, int width) const {
    if (kRows % kPass != 0 && row() + number * kPass >= kRows) return;
    UNROLL for (int across = 0; across < kChunks; across += kAcross) {
      const bool valid = (chunk() + across) * 8 < width;
      copy_async_16(tile.at(row(), chunk()) + number * kPass * Tile<kWidth>::kPitch + across * 16,
                    valid ? from + (chunk() + across) * 16 : from, valid);
    }
  }
  // Tokens first .. first + kRows - 1, all there; `first` a multiple of kRows. start, token_bytes, page_bytes: of s, for keys or values.
  DEVICE void copy(const Tile<kWidth>& tile, const Sequence& s, const unsigned char* start, int64_t token_bytes, int64_t page_bytes, int first,
                   int width) const {
    if (!s.pages) {
      const unsigned char* from = start + (first + row()) * token_bytes;
      UNROLL for (int n = 0; n < kPasses; n++, from += kPass * token_bytes) pass(tile, n, from, width);
      return;
    }
    int page = first / s.page_size, at = first - page * s.page_size;
    ROLLED for (int n = 0; n < kPasses; n++) {
      pass(tile, n, start + s.pages[page] * page_bytes + (at + row()) * token_bytes, width);
      at += kPass;
      if (at == s.page_size) page++, at = 0;
    }
  }
};

}  // namespace heed
