// Products of few rows, as a decode step makes them: B is read once, in place, at the speed of memory. Either B's rows
// are dense (weights [K, N]) and are added up, or its columns are (weights [N, K], transposed) and give dot products.
// Every element has one order of additions, whatever the columns beside it.
#pragma once
#include "matmul-inl.h"

namespace heed::HEED_ISA {
/// Rows up to which reading B in place beats packing it: dense rows of B, and dense columns.
constexpr int64_t kFewRows = 8, kFewRowsOfDots = 16;

/// sums[m][:] = sum_k a[m][k] * b(k, :) for dense rows of b, four rows of b at a time while the sums stay in L1.
template <class S, int M>
HEED_NOINLINE void AddRows(const Acc<S>* a, int64_t a_row, Matrix<const S> b, int64_t depth, int64_t cols,
                           Acc<S>* sums, int64_t sums_row) {
  using T = Acc<S>;
  constexpr int kRows = 4;
  for (int m = 0; m < M; m++) memset(sums + m * sums_row, 0, sizeof(T) * sums_row);
  int64_t k = 0;
  for (; k + kRows <= depth; k += kRows) {
    const S* from = b.data + k * b.row;
    const auto step = [&](int64_t j, const Vec<T>(&x)[kRows]) {
      HEED_UNROLL for (int m = 0; m < M; m++) {
        Vec<T> sum = Load<T>(sums + m * sums_row + j);
        HEED_UNROLL for (int i = 0; i < kRows; i++) sum = Fma(Set1(a[m * a_row + k + i]), x[i], sum);
        Store<T>(sums + m * sums_row + j, sum);
      }
    };
    int64_t j = 0;
    for (; j + Width<T> <= cols; j += Width<T>) {
      Vec<T> x[kRows];
      HEED_UNROLL for (int i = 0; i < kRows; i++) x[i] = LoadAs(from + i * b.row + j);
      step(j, x);
    }
    if (j < cols) {
      Vec<T> x[kRows];
      for (int i = 0; i < kRows; i++) x[i] = LoadFirstAs(from + i * b.row + j, cols - j);
      step(j, x);
    }
  }
  for (; k < depth; k++)
    for (int64_t j = 0; j < cols; j += Width<T>) {
      const Vec<T> x = LoadFirstAs(b.data + k * b.row + j, cols - j);
      for (int m = 0; m < M; m++) {
        T* sum = sums + m * sums_row + j;
        Store<T>(sum, Fma(Set1(a[m * a_row + k]), x, Load<T>(sum)));
      }
    }
}

/// to[i] = the sum of the lanes of x[i].
template <class T, int N> HEED_INLINE void ReduceEach(const Vec<T> (&x)[N], T* to) {
  for (int base = 0; base < N; base += Width<T>) {
    Vec<T> r[Width<T>];
    HEED_UNROLL for (int i = 0; i < Width<T>; i++) r[i] = base + i < N ? x[base + i < N ? base + i : 0] : Vec<T>{};
    Transpose<T>(r);
    HEED_UNROLL for (int half = Width<T> / 2; half > 0; half /= 2)
      HEED_UNROLL for (int i = 0; i < half; i++) r[i] += r[i + half];
    StoreFirst<T>(to + base, r[0], N - base);
  }
}
/// sums[m][j] = the dot product of a's row m and b's column j, for dense columns; a's rows are zero up to a whole vector.
template <class S, int M, int N>
HEED_INLINE void DotBlock(const Acc<S>* a, int64_t a_row, const S* b, int64_t b_col, int64_t depth, Acc<S>* sums,
                          int64_t sums_row) {
  using T = Acc<S>;
  Vec<T> sum[M * N] = {};
  int64_t k = 0;
  const auto step = [&](const Vec<T>(&y)[N]) {
    HEED_UNROLL for (int m = 0; m < M; m++) {
      const Vec<T> x = Load<T>(a + m * a_row + k);
      HEED_UNROLL for (int j = 0; j < N; j++) sum[m * N + j] = Fma(x, y[j], sum[m * N + j]);
    }
  };
  Vec<T> y[N];
  for (; k + Width<T> <= depth; k += Width<T>) {
    HEED_UNROLL for (int j = 0; j < N; j++) y[j] = LoadAs(b + j * b_col + k);
    step(y);
  }
  if (k < depth) {
    for (int j = 0; j < N; j++) y[j] = LoadFirstAs(b + j * b_col + k, depth - k);
    step(y);
  }
  T all[M * N];
  ReduceEach<T, M * N>(sum, all);
  for (int m = 0; m < M; m++)
    for (int j = 0; j < N; j++) sums[m * sums_row + j] = all[m * N + j];
}
/// A block of `cols` columns, at most N, for M rows.
template <class S, int M, int N>
HEED_NOINLINE void DotSome(const Acc<S>* a, int64_t a_row, Matrix<const S> b, int64_t depth, int64_t cols,
                           Acc<S>* sums, int64_t sums_row) {
  if (cols == N) return DotBlock<S, M, N>(a, a_row, b.data, b.col, depth, sums, sums_row);
  for (int64_t j = 0; j < cols; j++) DotBlock<S, M, 1>(a, a_row, b.data + j * b.col, b.col, depth, sums + j, sums_row);
}
/// Dense columns: every block of them meets all rows while it is in cache. 4 x 6 sums (4 x 3 with 16 registers) fill the registers;
/// a single row takes 8 columns, so that memory has enough streams.
template <class S>
HEED_NOINLINE void DotColumns(const Acc<S>* a, int64_t a_row, int64_t rows, Matrix<const S> b, int64_t depth, int64_t cols,
                              Acc<S>* sums, int64_t sums_row) {
  constexpr int kMany = kRegisters == 32 ? 6 : 3;
  const int64_t block = rows == 1 ? 8 : kMany;
  for (int64_t j = 0; j < cols; j += block) {
    const int64_t n = cols - j < block ? cols - j : block;
    if (rows == 1) DotSome<S, 1, 8>(a, a_row, b.At(0, j), depth, n, sums + j, sums_row);
    for (int64_t m = 0; m < rows && rows > 1; m += 4) {
      const auto kernel = rows - m > 2 ? DotSome<S, 4, kMany> : DotSome<S, 2, kMany>;
      kernel(a + m * a_row, a_row, b.At(0, j), depth, n, sums + m * sums_row + j, sums_row);
    }
  }
}
/// Dense rows, at most 8 of them in a.
template <class S>
HEED_NOINLINE void AddSomeRows(const Acc<S>* a, int64_t a_row, int64_t rows, Matrix<const S> b, int64_t depth, int64_t cols,
                               Acc<S>* sums, int64_t sums_row) {
  const auto kernel = rows > 4 ? AddRows<S, 8> : rows > 2 ? AddRows<S, 4> : rows > 1 ? AddRows<S, 2> : AddRows<S, 1>;
  kernel(a, a_row, b, depth, cols, sums, sums_row);
}

template <class S>
using FewKernel = void (*)(const Acc<S>* a, int64_t a_row, int64_t rows, Matrix<const S> b, int64_t depth, int64_t cols,
                           Acc<S>* sums, int64_t sums_row);
/// Rows that a and the sums of a FewKernel have room for.
HEED_INLINE int64_t FewRoom(int64_t rows) { return rows == 1 ? 1 : (rows + 3) / 4 * 4; }
/// The kernel for `rows` rows, or NULL where packing is faster: many rows, or neither stride of b is 1.
template <class S> static FewKernel<S> FewKernelFor(int64_t rows, Matrix<const S> b) {
  if (b.row == 1 && rows <= kFewRowsOfDots) return DotColumns<S>;
  if (b.col == 1 && rows <= kFewRows) return AddSomeRows<S>;
  return nullptr;
}
}  // namespace heed::HEED_ISA
