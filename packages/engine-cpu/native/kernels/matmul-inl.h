// Packing and blocking of matrix products. A task multiplies all rows of a row block by one panel of kTileCols columns: a block
// of B (kBlockDepth x kTileCols) is packed into L1, the packed rows of A stream past it, sums wait in the accumulator type until
// the whole depth is done, and are rounded once. Every element adds its terms in ascending k, in blocks of kBlockDepth, whatever
// the partition: results depend neither on the number of threads nor on the other rows and columns of the product.
// Blocking: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34 (2008).
#pragma once
#include "../simd/shuffle.h"
#include "../simd/storage.h"
#include "tile-inl.h"

namespace heed::HEED_ISA {
/// Depth of a packed block: 64 KiB of B for the widest tile, so that loading and storing the tile costs under 2 %.
constexpr int64_t kBlockDepth = 256;

/// A strided matrix: element (i, j) stands at data[i * row + j * col].
template <class T> struct Matrix {
  T* data;
  int64_t row, col;
  Matrix At(int64_t i, int64_t j) const { return {data + i * row + j * col, row, col}; }
};

/// One block of at most Width x Width of Pack, for dense columns.
template <class S> HEED_INLINE void PackColumns(Matrix<const S> source, int64_t rows, int64_t cols, Acc<S>* out, int64_t out_row) {
  using T = Acc<S>;
  constexpr int64_t w = Width<T>;
  Vec<T> r[w];
  if (rows == w && cols == w) {
    HEED_UNROLL for (int x = 0; x < w; x++) r[x] = LoadAs(source.data + x * source.col);
  } else {
    for (int x = 0; x < w; x++) r[x] = x < cols ? LoadFirstAs(source.data + x * source.col, rows) : Vec<T>{};
  }
  Transpose<T>(r);
  if (rows == w) {
    HEED_UNROLL for (int y = 0; y < w; y++) Store<T>(out + y * out_row, r[y]);
  } else {
    for (int y = 0; y < rows; y++) Store<T>(out + y * out_row, r[y]);
  }
}
/// out[i * out_row + j] = source(i, j) for i < rows, j < cols in the accumulator type; columns from cols to the next multiple of
/// the vector width are zeroed (out_row has room for them). Vector loads when either stride is 1.
template <class S>
HEED_NOINLINE void Pack(Matrix<const S> source, int64_t rows, int64_t cols, Acc<S>* out, int64_t out_row) {
  using T = Acc<S>;
  constexpr int64_t w = Width<T>;
  if (source.col == 1) {
    for (int64_t i = 0; i < rows; i++) {
      const S* from = source.data + i * source.row;
      int64_t j = 0;
      for (; j + w <= cols; j += w) Store<T>(out + i * out_row + j, LoadAs(from + j));
      if (j < cols) Store<T>(out + i * out_row + j, LoadFirstAs(from + j, cols - j));
    }
    return;
  }
  // Blocks of w x w, down the columns first: a dense column is then read as a stream.
  const bool columns = source.row == 1;
  for (int64_t j = 0; j < cols; j += w)
    for (int64_t i = 0; i < rows; i += w) {
      const int64_t high = rows - i < w ? rows - i : w, wide = cols - j < w ? cols - j : w;
      if (columns) PackColumns<S>(source.At(i, j), high, wide, out + i * out_row + j, out_row);
      else
        for (int64_t y = i; y < i + high; y++)
          for (int64_t x = j; x < j + w; x++)
            out[y * out_row + x] = x < cols ? T(ToFloat(source.data[y * source.row + x * source.col])) : T(0);
    }
}

/// What a product does with a finished sum: out = alpha * sum + beta * out + bias. beta 0 never reads out.
template <class T> struct Finish {
  T alpha, beta;
};
/// Stores rows x cols sums (row stride sums_row); bias holds cols values, or is null.
template <class S>
HEED_NOINLINE void StoreSums(const Acc<S>* sums, int64_t sums_row, int64_t rows, int64_t cols, Finish<Acc<S>> f,
                             const Acc<S>* bias, Matrix<S> out) {
  using T = Acc<S>;
  constexpr int64_t w = Width<T>;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j += w) {
      S* to = out.data + i * out.row + j * out.col;
      const int64_t n = cols - j < w ? cols - j : w;
      Vec<T> x = Load<T>(sums + i * sums_row + j) * Set1(f.alpha);
      if (out.col == 1) {
        if (f.beta != 0) x = Fma(LoadFirstAs(to, n), Set1(f.beta), x);
        if (bias != nullptr) x += LoadFirst<T>(bias + j, n);
        StoreFirstAs(to, x, n);
        continue;
      }
      for (int64_t y = 0; y < n; y++) {
        T value = x[y];
        if (f.beta != 0) value = T(ToFloat(to[y * out.col])) * f.beta + value;
        if (bias != nullptr) value += bias[j + y];
        to[y * out.col] = FromFloat<S>(value);
      }
    }
}

/// c[i][:] (= or +=) sum_k a(i, k) * b[k * b_step + :], the sums in registers for the whole depth.
template <class T> struct TileProduct {
  const T* a;
  int64_t a_stride;  // of rows (kAcross) or of steps (kDown); the other stride is 1
  const T* b;
  int64_t b_step, depth;
  T* c;
  int64_t c_row;
};
enum class Walk { kAcross, kDown };  // a is read along its rows, or down its columns (a transposed operand)
template <class T, Walk walk, bool add, int Rows, int Vecs> HEED_NOINLINE void RunTile(const TileProduct<T>& p) {
  Tile<T, Rows, Vecs> c;
  if constexpr (add) {
    HEED_UNROLL for (int i = 0; i < Rows; i++)
      HEED_UNROLL for (int j = 0; j < Vecs; j++) c.at[i][j] = Load(p.c + i * p.c_row + j * Width<T>);
  } else {
    Clear(c);
  }
  if constexpr (walk == Walk::kAcross) MultiplyAdd(c, p.a, p.a_stride, 1, p.b, p.b_step, p.depth);
  else MultiplyAdd(c, p.a, 1, p.a_stride, p.b, p.b_step, p.depth);
  HEED_UNROLL for (int i = 0; i < Rows; i++)
    HEED_UNROLL for (int j = 0; j < Vecs; j++) Store<T>(p.c + i * p.c_row + j * Width<T>, c.at[i][j]);
}
template <class T, Walk walk, bool add, int Rows> HEED_INLINE void RunTileOf(const TileProduct<T>& p, int64_t vecs) {
  if constexpr (kTileVecs == 4) {
    if (vecs == 4) return RunTile<T, walk, add, Rows, 4>(p);
    if (vecs == 3) return RunTile<T, walk, add, Rows, 3>(p);
  }
  if (vecs == 2) return RunTile<T, walk, add, Rows, 2>(p);
  RunTile<T, walk, add, Rows, 1>(p);
}
/// A tile of up to kTileRows rows, computed with 2, 4 or 6: an odd one works on one row of room beyond its last.
template <class T, Walk walk, bool add> HEED_INLINE void RunTile(const TileProduct<T>& p, int64_t rows, int64_t vecs) {
  if (rows > 4) RunTileOf<T, walk, add, 6>(p, vecs);
  else if (rows > 2) RunTileOf<T, walk, add, 4>(p, vecs);
  else RunTileOf<T, walk, add, 2>(p, vecs);
}

}  // namespace heed::HEED_ISA
