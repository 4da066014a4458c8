// RMS normalisation (Zhang, Sennrich 2019, arXiv:1910.07467) over the last axis, and its backward:
//   r = 1 / sqrt(mean(x^2) + eps);  out = x r w               w = weight, or 1 + weight, or 1
//   g = d_out w;  d_x = r (g - x r^2 mean(g x));  d_weight = sum over rows of d_out x r
// Gradients are written with `=`. d_weight is summed over pieces of kPieceRows rows, then over pieces in ascending order in
// float64: the same bits for any number of threads.
#include "../runtime/kernel_table.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "rms_norm-inl.h"

namespace heed::HEED_ISA {
namespace {
constexpr int64_t kPieceRows = 64;

/// The factors of a call in shared scratch; null without memory.
template <class A> const A* Gain(const heed_tensor& weight, bool unit_offset, int64_t n) {
  A* gain = static_cast<A*>(SharedScratch(0, Padded<A>(n) * sizeof(A)));
  if (gain != nullptr) FillGain<A>(weight, unit_offset, n, gain);
  return gain;
}
int NoMemory(int64_t n) { return Fail(HEED_OUT_OF_MEMORY, "[rms_norm] no memory for rows of %ld", static_cast<long>(n)); }

template <class T> int Forward(const heed_rms_norm& p) {
  using A = Acc<T>;
  const RowNest<2> rows = MakeRows({&p.out, &p.x});
  const int64_t n = rows.n, padded = Padded<A>(n);
  const A* gain = Gain<A>(p.weight, p.unit_offset != 0, n);
  if (gain == nullptr) return NoMemory(n);
  int32_t failed = 0;
  ForEachOuter(rows, [&](const Cursor<2>& cursor, int64_t) {
    A* scratch = static_cast<A*>(ThreadScratch(2 * padded * sizeof(A)));
    if (scratch == nullptr) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    const A* x = WholeRow<T>(cursor.Data(1), rows.step[1], n, scratch);
    A* out = Target<T>(cursor.Data(0), rows.step[0], n, scratch + padded);
    NormaliseRow<A>(x, gain, n, p.eps, out);
    DeliverRow<T>(cursor.Data(0), rows.step[0], n, out);
  });
  return failed ? NoMemory(n) : HEED_OK;
}

/// One row of the backward pass; d_weight [n] is added to, unless null.
template <class A> void BackwardRow(const A* x, const A* d_out, const A* gain, int64_t n, double eps, A* d_x, A* g,
                                    A* d_weight) {
  const A r = InverseRms(x, n, eps);
  for (int64_t i = 0; i < n; i += Width<A>) Store<A>(g + i, Load(d_out + i) * Load(gain + i));
  const A along = static_cast<A>(Dot(g, x, n) / static_cast<double>(n)) * r * r;
  const Vec<A> scale = Set1(r), pull = Set1(along);
  for (int64_t i = 0; i < n; i += Width<A>) {
    const Vec<A> vx = Load(x + i);
    if (d_weight != nullptr) Store<A>(d_weight + i, Load(d_weight + i) + Load(d_out + i) * vx * scale);
    Store<A>(d_x + i, (Load(g + i) - vx * pull) * scale);
  }
}
/// d_weight = the sum of `pieces` rows of partial sums.
template <class A> void SumPieces(const A* partial, int64_t pieces, int64_t padded, const heed_tensor& d_weight) {
  A* out = static_cast<A*>(d_weight.data);
  ParallelRange(d_weight.shape[0], kBlock, [&](int64_t begin, int64_t end, int) {
    double sum[kBlock] = {};
    for (int64_t piece = 0; piece < pieces; piece++)
      for (int64_t i = begin; i < end; i++) sum[i - begin] += static_cast<double>(partial[piece * padded + i]);
    for (int64_t i = begin; i < end; i++) out[i * d_weight.strides[0]] = static_cast<A>(sum[i - begin]);
  });
}
template <class T> int Backward(const heed_rms_norm_backward& p) {
  using A = Acc<T>;
  const RowNest<3> rows = MakeRows({&p.d_x, &p.x, &p.d_out});
  const int64_t n = rows.n, padded = Padded<A>(n), count = rows.outer.size, pieces = (count + kPieceRows - 1) / kPieceRows;
  const A* gain = Gain<A>(p.weight, p.unit_offset != 0, n);
  A* partial = p.d_weight.data ? static_cast<A*>(SharedScratch(1, (pieces * padded + 1) * sizeof(A))) : nullptr;
  if (gain == nullptr || (p.d_weight.data && partial == nullptr)) return NoMemory(n);
  int32_t failed = 0;
  ParallelFor(n == 0 ? 0 : pieces, [&](int64_t piece, int) {
    A* scratch = static_cast<A*>(ThreadScratch(4 * padded * sizeof(A)));
    if (scratch == nullptr) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    A* d_weight = partial ? partial + piece * padded : nullptr;
    if (d_weight) memset(d_weight, 0, padded * sizeof(A));
    const int64_t begin = piece * kPieceRows, end = begin + kPieceRows < count ? begin + kPieceRows : count;
    Cursor<3> cursor(rows.outer, rows.outer.rank, begin);
    for (int64_t row = begin; row < end; row++, cursor.Next()) {
      const A* x = WholeRow<T>(cursor.Data(1), rows.step[1], n, scratch);
      const A* d_out = WholeRow<T>(cursor.Data(2), rows.step[2], n, scratch + padded);
      A* d_x = Target<T>(cursor.Data(0), rows.step[0], n, scratch + 3 * padded);
      BackwardRow<A>(x, d_out, gain, n, p.eps, d_x, scratch + 2 * padded, d_weight);
      DeliverRow<T>(cursor.Data(0), rows.step[0], n, d_x);
    }
  });
  if (failed) return NoMemory(n);
  if (partial) SumPieces<A>(partial, pieces, padded, p.d_weight);
  return HEED_OK;
}
}  // namespace

int rms_norm(const heed_rms_norm& p) {
  const int status = DispatchFloat(p.x.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) { return Forward<T>(p); });
  return status == HEED_UNSUPPORTED ? Fail(status, "[rms_norm] not defined for dtype %d", p.x.dtype) : status;
}
int rms_norm_backward(const heed_rms_norm_backward& p) {
  const int status = DispatchFloat(p.x.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) { return Backward<T>(p); });
  return status == HEED_UNSUPPORTED ? Fail(status, "[rms_norm_backward] not defined for dtype %d", p.x.dtype) : status;
}
}  // namespace heed::HEED_ISA
