// Tiles in shared memory and the fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane l holds, of rows
// l / 4 and l / 4 + 8 of C, columns 2 (l % 4) and the next.
#pragma once
#include "../../device/device.h"

namespace heed {

// Rows of `Width` 16-bit numbers, 16 bytes apart: an odd number of 16-byte columns, so that 8 rows lie in different banks.
template <int Width>
struct Tile {
  static_assert(Width % 16 == 0, "fragments are 16 wide");
  static constexpr int kPitch = 2 * Width + 16;  // bytes
  static constexpr int kChunks = Width / 8;      // of 16 bytes to a row
  uint32_t start;
  DEVICE uint32_t at(int row, int chunk) const { return start + row * kPitch + chunk * 16; }
};

// A [16, 16] operand from rows `row` .. and numbers 16 k ..
template <int Width>
DEVICE void load_a(uint32_t (&a)[4], const Tile<Width>& tile, int row, int k) {
  load_matrix_x4(a, tile.at(row + (lane() & 15), 2 * k + (lane() >> 4)));
}
// Two [16, 8] operands, b^T stored: rows `row` .. + 15 are their columns.
template <int Width>
DEVICE void load_b_rows(uint32_t (&b)[4], const Tile<Width>& tile, int row, int k) {
  load_matrix_x4(b, tile.at(row + (lane() & 7) + (lane() >> 4) * 8, 2 * k + (lane() >> 3 & 1)));
}
// Two [16, 8] operands, b stored: rows `row` .. + 15 are its rows, numbers 16 n .. + 15 the columns of both.
template <int Width>
DEVICE void load_b_columns(uint32_t (&b)[4], const Tile<Width>& tile, int row, int n) {
  load_matrix_x4_transposed(b, tile.at(row + (lane() & 15), 2 * n + (lane() >> 4)));
}
// Over the four lanes that hold a row.
DEVICE float row_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}
DEVICE float row_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

}  // namespace heed
