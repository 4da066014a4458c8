// Rows by index: gather copies them, scatter_add sums them. Indices are checked before anything is written.
#include <string.h>

#include "../runtime/kernel_table.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "block-inl.h"
#include "convert-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
namespace {
int64_t IndexAt(const heed_tensor& indices, int64_t i) {
  const char* p = static_cast<const char*>(indices.data) + i * indices.strides[0] * ElementBytes(indices.dtype);
  return indices.dtype == HEED_INT64 ? *Element<int64_t>(p, 0) : *Element<int32_t>(p, 0);
}
int CheckIndices(const char* what, const heed_tensor& indices, int64_t rows) {
  if (indices.dtype != HEED_INT32 && indices.dtype != HEED_INT64)
    return Fail(HEED_UNSUPPORTED, "[%s] indices must be int32 or int64, got dtype %d", what, indices.dtype);
  for (int64_t i = 0; i < indices.shape[0]; i++) {
    const int64_t index = IndexAt(indices, i);
    if (index < 0 || index >= rows)
      return Fail(HEED_INVALID, "[%s] index %ld at position %ld is outside 0..%ld", what, static_cast<long>(index),
                  static_cast<long>(i), static_cast<long>(rows - 1));
  }
  return HEED_OK;
}
int64_t RowStep(const heed_tensor& t) { return t.strides[0] * ElementBytes(t.dtype); }
/// The number of rows in a task, for rows of `size` elements.
int64_t RowGrain(int64_t size) { return (kTaskElements + size - 1) / (size > 0 ? size : 1); }

/// out += the chain of x rows that starts at `first`, with one rounding: blocks in the arithmetic type.
template <class T> void AddChain(char* out, int64_t out_step, const char* x, int64_t x_step, int64_t x_row, const int64_t* next,
                                 int64_t first, int64_t n) {
  using A = Acc<T>;
  Buffer<A> sum_buffer, x_buffer;
  ForEachBlock(n, [&](int64_t start, int64_t length) {
    char* to = out + start * out_step;
    A* sum = Target<T>(to, out_step, length, sum_buffer.at);
    Fetch<T>(to, out_step, length, sum_buffer.at);
    for (int64_t i = first; i >= 0; i = next[i]) {
      const A* add = Fetch<T>(x + i * x_row + start * x_step, x_step, length, x_buffer.at);
      for (int64_t k = 0; k < length; k += Width<A>) Store<A>(sum + k, Load(sum + k) + Load(add + k));
    }
    Deliver<T>(to, out_step, length, sum);
  });
}
}  // namespace

int gather(const heed_gather& p) {
  const int status = CheckIndices("gather", p.indices, p.x.shape[0]);
  if (status != HEED_OK) return status;
  const Nest<2> row = MakeNest({&p.out, &p.x}, 1);
  const int outer = row.rank > 0 ? row.rank - 1 : 0;
  const int64_t n = row.rank > 0 ? row.shape[outer] : 1;
  const int64_t to_step = row.rank > 0 ? row.strides[outer][0] : 0, from_step = row.rank > 0 ? row.strides[outer][1] : 0;
  if (row.size == 0) return HEED_OK;
  const RowConverter copy_row = Converter(p.out.dtype, p.x.dtype);
  ParallelRange(p.indices.shape[0], RowGrain(row.size), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t to = i * RowStep(p.out), from = IndexAt(p.indices, i) * RowStep(p.x);
      Cursor<2> cursor(row, outer, 0);
      for (int64_t part = row.size / n; part-- > 0; cursor.Next())
        copy_row(cursor.Data(0) + to, to_step, cursor.Data(1) + from, from_step, n);
    }
  });
  return HEED_OK;
}

int scatter_add(const heed_scatter_add& p) {
  const int64_t count = p.indices.shape[0], rows = p.out.shape[0];
  const int status = CheckIndices("scatter_add", p.indices, rows);
  if (status != HEED_OK) return status;
  const Nest<2> row = MakeNest({&p.out, &p.x}, 1);
  if (row.size == 0 || count == 0) return HEED_OK;
  // A chain per destination, in ascending i: destinations are then independent, and a row of out is rounded once.
  int64_t* next = static_cast<int64_t*>(SharedScratch(0, (2 * count + 2 * rows) * sizeof(int64_t)));
  if (next == nullptr) return Fail(HEED_OUT_OF_MEMORY, "[scatter_add] no memory for %ld indices", static_cast<long>(count));
  int64_t *firsts = next + count, *head = firsts + count, *tail = head + rows, chains = 0;
  memset(head, 0xff, rows * sizeof(int64_t));
  for (int64_t i = 0; i < count; i++) {
    const int64_t to = IndexAt(p.indices, i);
    next[i] = -1;
    if (head[to] < 0) head[to] = firsts[chains++] = i;
    else next[tail[to]] = i;
    tail[to] = i;
  }
  const int outer = row.rank > 0 ? row.rank - 1 : 0;
  const int64_t n = row.rank > 0 ? row.shape[outer] : 1;
  const int64_t to_step = row.rank > 0 ? row.strides[outer][0] : 0, from_step = row.rank > 0 ? row.strides[outer][1] : 0;
  const int done = DispatchNumber(p.x.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) {
    ParallelRange(chains, RowGrain(row.size), [&](int64_t begin, int64_t end, int) {
      for (int64_t chain = begin; chain < end; chain++) {
        const int64_t first = firsts[chain], to = IndexAt(p.indices, first) * RowStep(p.out);
        Cursor<2> cursor(row, outer, 0);
        for (int64_t part = row.size / n; part-- > 0; cursor.Next())
          AddChain<T>(cursor.Data(0) + to, to_step, cursor.Data(1), from_step, RowStep(p.x), next, first, n);
      }
    });
    return HEED_OK;
  });
  return done == HEED_UNSUPPORTED ? Fail(done, "[scatter_add] not defined for dtype %d", p.x.dtype) : done;
}
}  // namespace heed::HEED_ISA
