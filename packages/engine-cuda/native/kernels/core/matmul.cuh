// What the products share: matrices of a batch, the walk over tiles, the store.
//   out[..., M, N] = alpha * a[..., M, K] @ b[..., K, N] + beta * out + bias[N];  beta == 0 never reads out.
#pragma once
#include "numbers.cuh"
#include "walk.cuh"

namespace heed {
/// One product of the batch: element (i, j) of a stands at a[i * a_row + j * a_col], and so on.
template <typename T, typename B> struct Product {
  const T* a;
  const B* b;
  T* out;
  int64_t M, N, K, a_row, a_col, b_row, b_col, out_row, out_col;
};
template <typename T, typename B> DEVICE Product<T, B> product_of(const heed_matmul& p, int64_t matrix) {
  const int row = p.out.rank - 2, col = p.out.rank - 1;
  const Offsets<3> at = seek(matrix, 0, row, p.out, p.a, p.b);
  return {elements<T>(p.a) + at.at[1], elements<B>(p.b) + at.at[2], elements<T>(p.out) + at.at[0],
          p.out.shape[row], p.out.shape[col], p.a.shape[col],
          p.a.strides[row], p.a.strides[col], p.b.strides[row], p.b.strides[col], p.out.strides[row], p.out.strides[col]};
}

/// Tile (down, across) of the tile number `index` of M x N in tiles of `height` x `width`. Blocks run in this order: kGroup tiles down,
/// then the next ones across, so that the blocks of a moment share rows of a and columns of b in the second-level cache.
struct TilePlace { int64_t row, col; };
constexpr int kGroup = 8;
DEVICE TilePlace tile_place(int64_t index, int64_t M, int64_t N, int height, int width) {
  const int64_t down = divide(M + height - 1, height), across = divide(N + width - 1, width);
  const int64_t group = divide(index, kGroup * across), first = group * kGroup, within = index - group * kGroup * across;
  const int64_t rows = down - first < kGroup ? down - first : kGroup, column = divide(within, rows);
  return {(first + within - column * rows) * height, column * width};
}

/// What becomes of a finished sum.
template <typename A> struct Finish {
  A alpha, beta;
  bool has_bias;
};
template <typename A> DEVICE Finish<A> finish_of(const heed_matmul& p) {
  return {static_cast<A>(p.alpha), static_cast<A>(p.beta), p.bias.data != nullptr};
}
template <typename T> DEVICE Acc<T> finished(const heed_matmul& p, const Finish<Acc<T>>& f, Acc<T> sum, const T* out, int64_t col) {
  Acc<T> value = f.alpha * sum;
  if (f.beta != 0) value += f.beta * widen(*out);
  if (f.has_bias) value += widen(elements<T>(p.bias)[col * p.bias.strides[p.bias.rank - 1]]);
  return value;
}
}  // namespace heed
