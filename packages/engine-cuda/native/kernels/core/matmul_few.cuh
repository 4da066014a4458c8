// Products of at most kFewRows rows whose b is dense along the depth: a layer at decode, x [M, K] @ weight[N, K]^T. They are bound by
// reading b once, so a warp takes two columns for all rows, its lanes along the depth, 16 bytes of b each; a comes from the caches.
// One row has a kernel of its own, whose fewer registers let twice the warps wait for memory. The sums of a row are the same whatever
// the number of rows.
#pragma once
#include "matmul.cuh"

namespace heed {
constexpr int kFewRows = 8, kFewColumns = 2;

/// The running sums of one lane for Rows rows and kFewColumns columns from `first` on.
template <typename T, typename B, int Rows> struct FewSums {
  using A = Acc<T>;
  static constexpr int N = vector_width<B>;
  A sums[Rows][kFewColumns] = {};

  /// Adds depth k .. k + count - 1. whole: N of them, in vectors.
  template <bool whole> DEVICE void add_depth(const Product<T, B>& m, const B* const (&columns)[kFewColumns], int64_t k, int count) {
    B raw[kFewColumns][N];
    UNROLL for (int j = 0; j < kFewColumns; j++) {
      if constexpr (whole) load_vector(columns[j] + k, raw[j]);
      else load_elements(columns[j] + k, 1, count, raw[j]);
    }
    UNROLL for (int row = 0; row < Rows; row++) {
      T x[N];
      const T* from = m.a + (row < m.M ? row : 0) * m.a_row + k * m.a_col;
      if constexpr (whole) load_vector(from, x);
      else load_elements(from, m.a_col, count, x);
      UNROLL for (int j = 0; j < kFewColumns; j++)
        UNROLL for (int i = 0; i < N; i++) sums[row][j] += static_cast<A>(widen(x[i])) * static_cast<A>(widen(raw[j][i]));
    }
  }
  DEVICE void run(const Product<T, B>& m, int64_t first) {
    const B* columns[kFewColumns];
    UNROLL for (int j = 0; j < kFewColumns; j++) columns[j] = m.b + (first + j < m.N ? first + j : first) * m.b_col;
    bool whole = Rows == 1 && starts_vectors<N>(m.a, m.a_row, m.M) && m.a_col == 1;  // with more rows it would spill
    UNROLL for (int j = 0; j < kFewColumns; j++) whole = whole && starts_vectors<N>(columns[j], 0, 1);
    int64_t k = static_cast<int64_t>(lane()) * N;
    if (whole)
      KEEP_LOOP for (; k + N <= m.K; k += 32 * N) add_depth<true>(m, columns, k, N);
    for (; k < m.K; k += 32 * N) add_depth<false>(m, columns, k, m.K - k < N ? static_cast<int>(m.K - k) : N);
  }
  DEVICE void store(const heed_matmul& p, const Product<T, B>& m, int64_t first) const {
    const Finish<A> f = finish_of<A>(p);
    UNROLL for (int row = 0; row < Rows; row++) {
      if (row >= m.M) break;
      UNROLL for (int j = 0; j < kFewColumns; j++) {
        A sum = sums[row][j];
        for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
        T* to = m.out + row * m.out_row + (first + j) * m.out_col;
        if (lane() == 0 && first + j < m.N) *to = narrow<T>(finished<T>(p, f, sum, to, first + j));
      }
    }
  }
};
template <typename T, typename B, int Rows> DEVICE void matmul_few(const heed_cuda_matmul& args) {
  const int64_t first = (static_cast<int64_t>(block_x()) * (block_threads() / 32) + warp()) * kFewColumns;
  if (first >= args.problem.out.shape[args.problem.out.rank - 1]) return;
  for (int64_t matrix = block_y(); matrix < args.matrices; matrix += grid_y()) {
    const Product<T, B> m = product_of<T, B>(args.problem, matrix);
    FewSums<T, B, Rows> sums;
    sums.run(m, first);
    sums.store(args.problem, product_of<T, B>(args.problem, matrix), first);  // again: kept, it would cost registers
  }
}
template <int Rows> DEVICE void matmul_few_float32(const heed_cuda_matmul& args) {
  switch (args.problem.b.dtype) {
    case HEED_FLOAT16: return matmul_few<float, f16, Rows>(args);
    case HEED_BFLOAT16: return matmul_few<float, bf16, Rows>(args);
    default: return matmul_few<float, float, Rows>(args);
  }
}
}  // namespace heed
