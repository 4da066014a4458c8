// RMS normalisation of one row: out = x r w with r = 1 / sqrt(mean(x^2) + eps). Every kernel that normalises does it by these
// functions, so that all give the same bits.
#pragma once
#include "../simd/shuffle.h"
#include "rows-inl.h"

namespace heed::HEED_ISA {
/// sum of a[i] b[i]; vector sums of a block go into float64. Both have room for whole vectors, zero beyond n.
template <class A> HEED_NOINLINE double Dot(const A* a, const A* b, int64_t n) {
  double total = 0;
  ForEachBlock(n, [&](int64_t start, int64_t length) {
    Vec<A> sum[2] = {};
    for (int64_t i = start; i < start + length; i += 2 * Width<A>) {
      sum[0] = Fma(Load(a + i), Load(b + i), sum[0]);
      if (i + Width<A> < start + length) sum[1] = Fma(Load(a + i + Width<A>), Load(b + i + Width<A>), sum[1]);
    }
    total += static_cast<double>(HorizontalSum<A>(sum[0] + sum[1]));
  });
  return total;
}
template <class A> HEED_INLINE A InverseRms(const A* x, int64_t n, double eps) {
  const double mean = Dot(x, x, n) / static_cast<double>(n);
  return static_cast<A>(1 / __builtin_sqrt(mean + eps));
}
/// A row in the arithmetic type, whole vectors, zero beyond n: in place where that is so already, else in `scratch`.
template <class T> HEED_INLINE const Acc<T>* WholeRow(const void* p, int64_t step, int64_t n, Acc<T>* scratch) {
  using A = Acc<T>;
  if (InPlace<T>(step, n)) return static_cast<const A*>(p);
  FetchRow<T>(p, step, n, scratch);
  for (int64_t i = n; i < Padded<A>(n); i++) scratch[i] = 0;
  return scratch;
}
/// The factors [n] as whole vectors, into memory for Padded(n) of them.
template <class A> HEED_NOINLINE void FillGain(const heed_tensor& weight, bool unit_offset, int64_t n, A* gain) {
  if (weight.data != nullptr) FetchRow<A>(weight.data, weight.strides[0] * static_cast<int64_t>(sizeof(A)), n, gain);
  for (int64_t i = 0; i < Padded<A>(n); i++) {
    if (i >= n || weight.data == nullptr) gain[i] = 1;
    else if (unit_offset) gain[i] += 1;
  }
}
/// out = x r gain; all have room for whole vectors, and x is zero beyond n.
template <class A> HEED_INLINE void NormaliseRow(const A* x, const A* gain, int64_t n, double eps, A* out) {
  const Vec<A> r = Set1(InverseRms(x, n, eps));
  for (int64_t i = 0; i < n; i += Width<A>) Store<A>(out + i, Load(x + i) * r * Load(gain + i));
}
}  // namespace heed::HEED_ISA
