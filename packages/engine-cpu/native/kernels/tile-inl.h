// The register tile that all products are built from: kTileRows x (kTileVecs vectors), 24 accumulators of 32 registers with
// AVX-512, 12 of 16 below. Six rows keep both FMA units busy (latency 4, two a cycle: 8 accumulators at least) and leave
// registers for the row of B and one broadcast.
#pragma once
#include "../simd/vec.h"

namespace heed::HEED_ISA {
constexpr int kTileRows = 6;
constexpr int kTileVecs = kRegisters == 32 ? 4 : 2;
/// Columns of a full tile.
template <class T> constexpr int kTileCols = kTileVecs * Width<T>;

template <class T, int Rows, int Vecs> struct Tile {
  Vec<T> at[Rows][Vecs];
};
template <class T, int Rows, int Vecs> HEED_INLINE void Clear(Tile<T, Rows, Vecs>& c) {
  HEED_UNROLL for (int i = 0; i < Rows; i++)
    HEED_UNROLL for (int j = 0; j < Vecs; j++) c.at[i][j] = Vec<T>{};
}
/// c[i][:] += sum_k a[i * a_row + k * a_step] * b[k * b_step + :]; b's rows are Vecs vectors wide, any alignment.
template <class T, int Rows, int Vecs>
HEED_INLINE void MultiplyAdd(Tile<T, Rows, Vecs>& c, const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step,
                             int64_t depth) {
  for (int64_t k = 0; k < depth; k++) {
    Vec<T> row[Vecs];
    HEED_UNROLL for (int j = 0; j < Vecs; j++) row[j] = Load(b + k * b_step + j * Width<T>);
    HEED_UNROLL for (int i = 0; i < Rows; i++) {
      const Vec<T> x = Set1(a[i * a_row + k * a_step]);
      HEED_UNROLL for (int j = 0; j < Vecs; j++) c.at[i][j] = Fma(x, row[j], c.at[i][j]);
    }
  }
}
}  // namespace heed::HEED_ISA
