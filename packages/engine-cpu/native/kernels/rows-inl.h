// Kernels over whole rows (softmax, RMS norm): the last axis is the row, the axes before it are rows of one nest.
#pragma once
#include "block-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
/// Rows of N operands of one shape: data(k) at the cursor is the start of a row of n elements `step[k]` bytes apart.
template <int N> struct RowNest {
  Nest<N> outer;
  int64_t n;
  int64_t step[N];
};
template <int N> HEED_NOINLINE RowNest<N> MakeRows(const heed_tensor* const (&operands)[N]) {
  RowNest<N> rows;
  const int last = operands[0]->rank - 1;
  rows.outer = MakeNest<N>(operands, 0, last);
  rows.n = operands[0]->shape[last];
  for (int k = 0; k < N; k++) rows.step[k] = operands[k]->strides[last] * ElementBytes(operands[k]->dtype);
  return rows;
}
/// f(Cursor&, row, worker) for every row, over all threads; tasks of whole rows.
template <int N, class F> HEED_INLINE void ForEachOuter(const RowNest<N>& rows, const F& f) {
  if (rows.outer.size == 0 || rows.n == 0) return;
  ParallelRange(rows.outer.size, (kTaskElements + rows.n - 1) / rows.n, [&](int64_t begin, int64_t end, int) {
    Cursor<N> cursor(rows.outer, rows.outer.rank, begin);
    for (int64_t row = begin; row < end; row++, cursor.Next()) f(cursor, row);
  });
}
/// n rounded up to whole vectors: the size of a buffer that vector loops may run over.
template <class A> HEED_INLINE int64_t Padded(int64_t n) { return (n + Width<A> - 1) / Width<A> * Width<A>; }

/// n elements converted into `to`, which has room for Padded(n); unlike Fetch, for rows of any length and never in place.
template <class T> HEED_INLINE void FetchRow(const void* p, int64_t step, int64_t n, Acc<T>* to) {
  ForEachBlock(n, [&](int64_t start, int64_t length) {
    const Acc<T>* x = Fetch<T>(Element<char>(p, start * step), step, length, to + start);
    if (x != to + start) memcpy(to + start, x, length * sizeof(Acc<T>));
  });
}
/// Stores n results; the counterpart of FetchRow.
template <class T> HEED_INLINE void DeliverRow(void* p, int64_t step, int64_t n, const Acc<T>* x) { Deliver<T>(p, step, n, x); }
}  // namespace heed::HEED_ISA
