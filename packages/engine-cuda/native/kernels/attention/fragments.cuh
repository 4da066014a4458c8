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
  static constexpr int kRepeat = 1;              // rows after which columns stand in the same places
  uint32_t start;
  DEVICE uint32_t at(int row, int chunk) const { return start + row * kPitch + chunk * 16; }
};

// Where this lane's row of 16 bytes begins in the fragments at row 0 and number 0 of a tile; they are the same everywhere else, by `step`.
// An operand [16, 16]; two operands [16, 8] stored as b^T, whose columns are rows of the tile; two stored as b.
template <int Width>
DEVICE uint32_t lane_of_a(const Tile<Width>& tile, int lane) { return tile.at(lane & 15, lane >> 4); }
template <int Width>
DEVICE uint32_t lane_of_b_rows(const Tile<Width>& tile, int lane) { return tile.at((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1); }
template <int Width>
DEVICE uint32_t lane_of_b_columns(const Tile<Width>& tile, int lane) { return lane_of_a(tile, lane); }
// Bytes to the fragment at a row and 16 k numbers behind.
template <int Width>
DEVICE constexpr int step(int row, int k) { return row * Tile<Width>::kPitch + 32 * k; }

// A [16, 16] operand from rows `row` .. and numbers 16 k ..
template <int Width>
DEVICE void load_a(uint32_t (&a)[4], const Tile<Width>& tile, int row, int k) {
  load_matrix_x4(a, lane_of_a(tile, lane()) + step<Width>(row, k));
}
// Two [16, 8] operands, b^T stored: rows `row` .. + 15 are their columns.
template <int Width>
DEVICE void load_b_rows(uint32_t (&b)[4], const Tile<Width>& tile, int row, int k) {
  load_matrix_x4(b, lane_of_b_rows(tile, lane()) + step<Width>(row, k));
}
// Two [16, 8] operands, b stored: rows `row` .. + 15 are its rows, numbers 16 n .. + 15 the columns of both.
template <int Width>
DEVICE void load_b_columns(uint32_t (&b)[4], const Tile<Width>& tile, int row, int n) {
  load_matrix_x4_transposed(b, lane_of_b_columns(tile, lane()) + step<Width>(row, n));
}
// Exponents of both numbers of a word, and what carries a full one into the sign bits.
template <class T> struct FullExponent;
template <> struct FullExponent<bf16> { static constexpr uint32_t kMask = 0x7f807f80u, kCarry = 0x00800080u; };
template <> struct FullExponent<f16> { static constexpr uint32_t kMask = 0x7c007c00u, kCarry = 0x04000400u; };
// A sign bit for each number of the pair that is not finite.
template <class T>
DEVICE uint32_t not_finite(uint32_t pair) { return (pair & FullExponent<T>::kMask) + FullExponent<T>::kCarry & 0x80008000u; }

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
