// Products of at most kFewRows rows, as a decode step makes them: B is read once, in place, at the speed of memory. Either B's rows
// are dense (weights [K, N]) and are added up, or its columns are (weights [N, K], transposed) and give dot products.
// Every element has one order of additions, whatever the columns beside it.
#pragma once
#include "matmul-inl.h"

namespace heed::HEED_ISA {
constexpr int64_t kFewRows = 8;

/// sums[m][:] = sum_k a[m][k] * b(k, :) for dense rows of b, four rows of b at a time while the sums stay in L1.
template <class S, int M>
HEED_NOINLINE void AddRows(const Acc<S>* a, int64_t a_row, Matrix<const S> b, int64_t depth, int64_t cols, Acc<S>* sums, int64_t sums_row) {
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
HEED_INLINE void DotBlock(const Acc<S>* a, int64_t a_row, const S* b, int64_t b_col, int64_t depth, Acc<S>* sums, int64_t sums_row) {
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
/// As AddRows for dense columns, any number of rows: blocks of up to 4 rows by kDotColumns columns, whose sums fill the registers.
template <class S, int M> HEED_INLINE constexpr int DotBlockColumns() { return M == 1 ? 8 : kRegisters == 32 ? (M == 2 ? 8 : 6) : 3; }
template <class S, int M>
HEED_NOINLINE void DotRows(const Acc<S>* a, int64_t a_row, Matrix<const S> b, int64_t depth, int64_t cols, Acc<S>* sums, int64_t sums_row) {
  constexpr int kBlock = DotBlockColumns<S, M>();
  if (cols == kBlock) return DotBlock<S, M, kBlock>(a, a_row, b.data, b.col, depth, sums, sums_row);
  for (int64_t j = 0; j < cols; j++) DotBlock<S, M, 1>(a, a_row, b.data + j * b.col, b.col, depth, sums + j, sums_row);
}
template <class S>
using FewKernel = void (*)(const Acc<S>* a, int64_t a_row, Matrix<const S> b, int64_t depth, int64_t cols, Acc<S>* sums, int64_t sums_row);
/// The kernel for `rows` rows (rounded up to 1, 2, 4 or 8, which a must have); NULL when neither stride of b is 1.
template <class S> static FewKernel<S> FewKernelFor(int64_t rows, Matrix<const S> b) {
  if (b.row == 1)
    return rows > 4 ? DotColumns<S, 8> : rows > 2 ? DotColumns<S, 4> : rows > 1 ? DotColumns<S, 2> : DotColumns<S, 1>;
  if (b.col == 1) return rows > 4 ? AddRows<S, 8> : rows > 2 ? AddRows<S, 4> : rows > 1 ? AddRows<S, 2> : AddRows<S, 1>;
  return nullptr;
}
}  // namespace heed::HEED_ISA
