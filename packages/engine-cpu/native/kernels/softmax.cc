// Softmax over the last axis: exp(x - max) / sum. Three passes over a row in the arithmetic type: max, exponentials with their
// sum, division. A row of -inf gives zeros (its sum is zero); a NaN, or +inf, makes its row NaN.
#include "../runtime/kernel_table.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "../simd/shuffle.h"
#include "exp-inl.h"
#include "rows-inl.h"

namespace heed::HEED_ISA {
namespace {
/// The largest element, or NaN where there is one. Lanes beyond n are ignored.
template <class A> A RowMax(const A* x, int64_t n) {
  const Vec<A> low = Set1(static_cast<A>(-__builtin_inf()));
  Vec<A> top = low;
  const auto fold = [&](Vec<A> v) { top = (top > v) | (top != top) ? top : v; };
  int64_t i = 0;
  for (; i + Width<A> <= n; i += Width<A>) fold(Load(x + i));
  if (i < n) fold(Select<A>(FirstLanes<A>(n - i), LoadFirst(x + i, n - i), low));
  A m = top[0];
  for (int k = 1; k < Width<A>; k++) m = m > top[k] || m != m ? m : top[k];
  return m;
}
/// y = exp(x - top); returns the sum. Vector sums of a block go into float64, so that the length of a row costs no accuracy.
template <class A> double RowExp(const A* x, A top, int64_t n, A* y) {
  const Vec<A> shift = Set1(top);
  double total = 0;
  ForEachBlock(n, [&](int64_t start, int64_t length) {
    Vec<A> sum = {};
    int64_t i = start;
    for (const int64_t end = start + length; i < end; i += Width<A>) {
      const Vec<A> e = Select<A>(FirstLanes<A>(end - i), Exp<A>(LoadFirst(x + i, end - i) - shift), Vec<A>{});
      sum += e;
      StoreFirst(y + i, e, end - i);
    }
    total += static_cast<double>(HorizontalSum<A>(sum));
  });
  return total;
}
template <class T> void SoftmaxRow(const void* x, int64_t x_step, void* out, int64_t out_step, int64_t n, Acc<T>* scratch) {
  using A = Acc<T>;
  const bool x_direct = kSame<T, A> && x_step == sizeof(T), out_direct = kSame<T, A> && out_step == sizeof(T);
  const A* from = x_direct ? static_cast<const A*>(x) : scratch;
  if (!x_direct) FetchRow<T>(x, x_step, n, scratch);
  A* to = out_direct ? static_cast<A*>(out) : scratch;
  const A top = RowMax(from, n);
  A factor = 0;
  if (top == static_cast<A>(-__builtin_inf())) {
    for (int64_t i = 0; i < n; i++) to[i] = 0;
  } else {
    factor = static_cast<A>(1 / RowExp(from, top, n, to));
  }
  const Vec<A> scale = Set1(factor);
  for (int64_t i = 0; i < n; i += Width<A>) StoreFirst(to + i, LoadFirst(to + i, n - i) * scale, n - i);
  if (!out_direct) DeliverRow<T>(out, out_step, n, to);
}
}  // namespace

int softmax(const heed_softmax& p) {
  const RowNest<2> rows = MakeRows({&p.out, &p.x});
  const int status = DispatchFloat(p.x.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) {
    int32_t failed = 0;
    ForEachOuter(rows, [&](const Cursor<2>& cursor, int64_t) {
      void* scratch = ThreadScratch(Padded<Acc<T>>(rows.n) * sizeof(Acc<T>));
      if (scratch == nullptr) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      else SoftmaxRow<T>(cursor.Data(1), rows.step[1], cursor.Data(0), rows.step[0], rows.n, static_cast<Acc<T>*>(scratch));
    });
    return failed ? Fail(HEED_OUT_OF_MEMORY, "[softmax] no memory for a row of %ld", static_cast<long>(rows.n)) : HEED_OK;
  });
  return status == HEED_UNSUPPORTED ? Fail(status, "[softmax] not defined for dtype %d", p.x.dtype) : status;
}
}  // namespace heed::HEED_ISA
