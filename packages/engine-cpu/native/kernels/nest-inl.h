// Loops over strided operands. A Nest holds the axes that N operands share, reduced to as few as possible: axes of length 1 are
// dropped, axes that lie behind one another in every operand are merged, and the first operand's smallest stride comes last, so
// that whatever is contiguous in memory is one long inner row.
#pragma once
#include "../abi/heed_cpu.h"
#include "../runtime/parallel.h"
#include "../targets/target.h"

namespace heed::HEED_ISA {
/// Elements of one task. Small enough that two threads share a 1 MiB operand, large enough to hide the cost of a task (100 ns).
constexpr int64_t kTaskElements = 32768;

HEED_INLINE int64_t ElementBytes(int32_t dtype) {
  constexpr uint8_t kBytes[] = {8, 4, 2, 2, 4, 8, 1, 1};
  return kBytes[dtype];
}
HEED_INLINE int64_t Magnitude(int64_t x) { return x < 0 ? -x : x; }

template <int N> struct Nest {
  int rank = 0;
  int64_t size = 1;  // product of shape
  int64_t shape[HEED_MAX_RANK];
  int64_t strides[HEED_MAX_RANK][N];  // bytes
  char* data[N];

  void Append(int64_t length, const int64_t* step) {
    shape[rank] = length;
    for (int k = 0; k < N; k++) strides[rank][k] = step[k];
    rank++;
    size *= length;
  }
  /// Whether axis i (outer) and axis i + 1 are one axis in every operand.
  bool Mergeable(int i) const {
    for (int k = 0; k < N; k++)
      if (strides[i][k] != strides[i + 1][k] * shape[i + 1]) return false;
    return true;
  }
  void Remove(int axis) {
    rank--;
    for (int i = axis; i < rank; i++) {
      shape[i] = shape[i + 1];
      for (int k = 0; k < N; k++) strides[i][k] = strides[i + 1][k];
    }
  }
  void Swap(int i, int j) {
    const int64_t length = shape[i];
    shape[i] = shape[j];
    shape[j] = length;
    for (int k = 0; k < N; k++) {
      const int64_t step = strides[i][k];
      strides[i][k] = strides[j][k];
      strides[j][k] = step;
    }
  }
  /// Whether axis a belongs outside of axis b: by the first operand's stride, then by the next one's.
  bool Outside(int a, int b) const {
    for (int k = 0; k < N; k++) {
      const int64_t s = Magnitude(strides[a][k]), t = Magnitude(strides[b][k]);
      if (s != t) return s > t;
    }
    return false;
  }
  void Simplify() {
    for (int i = rank - 1; i >= 0; i--) {
      if (shape[i] == 1) {
        Remove(i);
      } else if (strides[i][0] < 0) {  // walk it the other way
        for (int k = 0; k < N; k++) data[k] += (shape[i] - 1) * strides[i][k], strides[i][k] = -strides[i][k];
      }
    }
    for (int i = 1; i < rank; i++)
      for (int j = i; j > 0 && Outside(j, j - 1); j--) Swap(j, j - 1);
    for (int i = rank - 2; i >= 0; i--) {
      if (!Mergeable(i)) continue;
      shape[i + 1] *= shape[i];
      Remove(i);
    }
  }
  /// Byte offsets of the operands at a flat index over the axes before `axes`.
  void Seek(int64_t index, int axes, int64_t* offset) const {
    for (int k = 0; k < N; k++) offset[k] = 0;
    for (int i = axes; i-- > 0; index /= shape[i])
      for (int k = 0; k < N; k++) offset[k] += index % shape[i] * strides[i][k];
  }
};

/// The nest of operands that share a shape; `axes` leading axes of them (all by default).
template <int N> HEED_NOINLINE Nest<N> MakeNest(const heed_tensor* const (&operands)[N], int first = 0,
                                                int last = HEED_MAX_RANK) {
  Nest<N> nest;
  for (int k = 0; k < N; k++) nest.data[k] = static_cast<char*>(operands[k]->data);
  for (int axis = first; axis < operands[0]->rank && axis < last; axis++) {
    int64_t step[N];
    for (int k = 0; k < N; k++) step[k] = operands[k]->strides[axis] * ElementBytes(operands[k]->dtype);
    nest.Append(operands[0]->shape[axis], step);
  }
  nest.Simplify();
  return nest;
}

/// Steps through flat indices of the outer `axes` axes of a nest.
template <int N> class Cursor {
 public:
  Cursor(const Nest<N>& nest, int axes, int64_t index) : nest_(nest), axes_(axes) {
    nest.Seek(index, axes, offset);
    for (int i = axes; i-- > 0; index /= nest.shape[i]) at_[i] = index % nest.shape[i];
  }
  void Next() {
    for (int i = axes_; i-- > 0;) {
      for (int k = 0; k < N; k++) offset[k] += nest_.strides[i][k];
      if (++at_[i] < nest_.shape[i]) return;
      for (int k = 0; k < N; k++) offset[k] -= nest_.shape[i] * nest_.strides[i][k];
      at_[i] = 0;
    }
  }
  char* Data(int k) const { return nest_.data[k] + offset[k]; }
  int64_t offset[N];

 private:
  const Nest<N>& nest_;
  int axes_;
  int64_t at_[HEED_MAX_RANK];
};

/// row(context, data, step, n) for every inner row, long ones in pieces, over all threads. Steps are in bytes. Tasks depend on
/// the shape alone.
template <int N>
HEED_NOINLINE void RunRows(const Nest<N>& nest, void (*row)(const void*, char* const*, const int64_t*, int64_t),
                           const void* context) {
  if (nest.size == 0) return;
  static constexpr int64_t kScalarStep[N] = {};
  const int outer = nest.rank > 0 ? nest.rank - 1 : 0;
  const int64_t n = nest.rank > 0 ? nest.shape[outer] : 1;
  const int64_t* step = nest.rank > 0 ? nest.strides[outer] : kScalarStep;
  const int64_t piece = n < kTaskElements ? n : kTaskElements, pieces = (n + piece - 1) / piece;
  ParallelRange(nest.size / n * pieces, (kTaskElements + piece - 1) / piece, [&](int64_t begin, int64_t end, int) {
    Cursor<N> cursor(nest, outer, begin / pieces);
    int64_t part = begin % pieces;
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t start = part * piece, length = n - start < piece ? n - start : piece;
      char* data[N];
      for (int k = 0; k < N; k++) data[k] = cursor.Data(k) + start * step[k];
      row(context, data, step, length);
      if (++part == pieces) part = 0, cursor.Next();
    }
  });
}
/// RunRows for a callable row(char* const* data, const int64_t* step, int64_t n).
template <int N, class F> HEED_INLINE void ForEachRow(const Nest<N>& nest, const F& row) {
  RunRows<N>(
      nest,
      [](const void* f, char* const* data, const int64_t* step, int64_t n) { (*static_cast<const F*>(f))(data, step, n); },
      &row);
}
}  // namespace heed::HEED_ISA
