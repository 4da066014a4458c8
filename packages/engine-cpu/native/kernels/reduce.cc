// Sum, max and min over any set of axes. Sums of float32 and of the 16-bit floats run in float64; sums of float64 carry their
// rounding errors along (TwoSum: Knuth, TAOCP 2, 4.2.2), so that all are good to about one rounding. Max and min carry a NaN through.
//   The work is cut by shape alone: into groups of results and, where there are few results, into pieces of each reduction whose
// partial states are merged in ascending order. Results therefore do not depend on the number of threads.
#include "../runtime/kernel_table.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "block-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
namespace {
// A reducer folds vectors of Wide into a State. A State is `Parts` vectors, or as many scalars when it is stored.
template <class A> HEED_INLINE Vec<A> LoadWide(const A* p, Tag<A>) { return Load(p); }
HEED_INLINE Vec<double> LoadWide(const float* p, Tag<double>) {
  typedef float Half __attribute__((vector_size(kVecBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
}
HEED_INLINE Vec<int64_t> LoadWide(const int32_t* p, Tag<int64_t>) {
  typedef int32_t Half __attribute__((vector_size(kVecBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<int64_t>);
}

template <class A, class W> struct PlainSum {
  using Wide = W;
  static constexpr int kParts = 1;
  static constexpr A kIdentity = 0;
  template <class V> static HEED_ALWAYS_INLINE void Add(V (&state)[1], V x) { state[0] += x; }
  template <class V> static HEED_ALWAYS_INLINE void Merge(V (&state)[1], const V (&other)[1]) { state[0] += other[0]; }
  static HEED_ALWAYS_INLINE W Result(const W (&state)[1]) { return state[0]; }
};
template <class A> struct Sum;
template <> struct Sum<float> : PlainSum<float, double> {};
template <> struct Sum<int32_t> : PlainSum<int32_t, int64_t> {};
template <> struct Sum<int64_t> : PlainSum<int64_t, int64_t> {};
template <> struct Sum<double> {
  using Wide = double;
  static constexpr int kParts = 2;  // the running sum, and the sum of its rounding errors
  static constexpr double kIdentity = 0;
  template <class V> static HEED_ALWAYS_INLINE void Add(V (&state)[2], V x) {
    const V sum = state[0] + x, shadow = sum - state[0];
    state[1] += (state[0] - (sum - shadow)) + (x - shadow);
    state[0] = sum;
  }
  template <class V> static HEED_ALWAYS_INLINE void Merge(V (&state)[2], const V (&other)[2]) {
    Add(state, other[0]);
    state[1] += other[1];
  }
  static HEED_ALWAYS_INLINE double Result(const double (&state)[2]) {
    return state[1] - state[1] == 0 ? state[0] + state[1] : state[0];  // an infinite sum has NaN errors
  }
};
template <class A, bool kLargest> struct Extreme {
  using Wide = A;
  static constexpr int kParts = 1;
  static constexpr A kLowest = kIsFloat<A> ? static_cast<A>(-__builtin_inf()) : kSame<A, int32_t> ? static_cast<A>(INT32_MIN) : static_cast<A>(INT64_MIN);
  static constexpr A kHighest = kIsFloat<A> ? static_cast<A>(__builtin_inf()) : kSame<A, int32_t> ? static_cast<A>(INT32_MAX) : static_cast<A>(INT64_MAX);
  static constexpr A kIdentity = kLargest ? kLowest : kHighest;
  template <class V> static HEED_ALWAYS_INLINE void Add(V (&state)[1], V x) {
    if constexpr (kLargest) state[0] = (state[0] > x) | (state[0] != state[0]) ? state[0] : x;
    else state[0] = (state[0] < x) | (state[0] != state[0]) ? state[0] : x;
  }
  template <class V> static HEED_ALWAYS_INLINE void Merge(V (&state)[1], const V (&other)[1]) { Add(state, other[0]); }
  static HEED_ALWAYS_INLINE A Result(const A (&state)[1]) { return state[0]; }
};
template <class A> struct Largest : Extreme<A, true> {};
template <class A> struct Smallest : Extreme<A, false> {};

/// The axes of a reduction: those that stay, those that go, by x's stride. Operand 0 is x, operand 1 out.
struct Plan {
  Nest<2> kept, reduced;
  bool inner_reduced;  // the axis with x's smallest stride goes
};
Plan MakePlan(const heed_reduce& p) {
  Plan plan;
  const int64_t x_bytes = ElementBytes(p.x.dtype), out_bytes = ElementBytes(p.out.dtype);
  plan.kept.data[0] = plan.reduced.data[0] = static_cast<char*>(p.x.data);
  plan.kept.data[1] = plan.reduced.data[1] = static_cast<char*>(p.out.data);
  for (int axis = 0; axis < p.x.rank; axis++) {
    const bool goes = p.out.shape[axis] == 1 && p.x.shape[axis] != 1;
    const int64_t step[2] = {p.x.strides[axis] * x_bytes, goes ? 0 : p.out.strides[axis] * out_bytes};
    (goes ? plan.reduced : plan.kept).Append(p.x.shape[axis], step);
  }
  plan.kept.Simplify();
  plan.reduced.Simplify();
  // Both start at element 0 of x; where an axis is walked the other way, the start moved.
  const int64_t moved = plan.reduced.data[0] - static_cast<char*>(p.x.data);
  plan.reduced.data[0] = nullptr;
  plan.kept.data[0] += moved;
  const auto inner = [](const Nest<2>& nest) { return nest.rank ? Magnitude(nest.strides[nest.rank - 1][0]) : INT64_MAX; };
  plan.inner_reduced = plan.kept.rank == 0 || inner(plan.reduced) <= inner(plan.kept);
  return plan;
}

/// What the template parameters have in common: T storage type, R reducer.
template <class T, template <class> class Reducer> struct Fold {
  using A = Acc<T>;
  using R = Reducer<A>;
  using Wide = typename R::Wide;
  static constexpr int kParts = R::kParts;
  static constexpr int64_t W = Width<Wide>;
  static constexpr int kChains = 4;  // additions have a latency of 4
  using State = Vec<Wide>[kParts];
  struct Scalar { Wide at[kParts]; };

  static HEED_ALWAYS_INLINE void Clear(State& state) {
    for (int part = 0; part < kParts; part++) state[part] = Set1<Wide>(part == 0 ? static_cast<Wide>(R::kIdentity) : Wide{});
  }
  static HEED_ALWAYS_INLINE Scalar Identity() {
    Scalar s = {};
    s.at[0] = static_cast<Wide>(R::kIdentity);
    return s;
  }
  static HEED_ALWAYS_INLINE A Result(const Scalar& s) { return static_cast<A>(R::Result(s.at)); }

  /// Folds n elements, `step` bytes apart, into one state.
  static __attribute__((noinline)) void Row(const char* p, int64_t step, int64_t n, Scalar& into) {
    State chain[kChains];
    HEED_UNROLL for (int c = 0; c < kChains; c++) Clear(chain[c]);
    Buffer<A> buffer;
    ForEachBlock(n, [&](int64_t start, int64_t length) {
      const A* x = Fetch<T>(p + start * step, step, length, buffer.at);
      int64_t i = 0;
      for (; i + kChains * W <= length; i += kChains * W)
        HEED_UNROLL for (int c = 0; c < kChains; c++) R::Add(chain[c], LoadWide(x + i + c * W, Tag<Wide>{}));
      for (; i < length; i += W) {
        A rest[2 * W];  // LoadWide may read W elements of A
        for (int64_t k = 0; k < W; k++) rest[k] = i + k < length ? x[i + k] : R::kIdentity;
        R::Add(chain[0], LoadWide(rest, Tag<Wide>{}));
      }
    });
    for (int c = 1; c < kChains; c++) R::Merge(chain[0], chain[c]);
    Scalar lanes[W];
    for (int64_t k = 0; k < W; k++)
      for (int part = 0; part < kParts; part++) lanes[k].at[part] = chain[0][part][k];
    for (int64_t half = W / 2; half; half /= 2)
      for (int64_t k = 0; k < half; k++) R::Merge(lanes[k].at, lanes[k + half].at);
    R::Merge(into.at, lanes[0].at);
  }
  /// Adds n <= kBlock elements to n states, stored part after part.
  static __attribute__((noinline)) void Column(const char* p, int64_t step, int64_t n, Wide* states) {
    Buffer<A> buffer;
    const A* x = Fetch<T>(p, step, n, buffer.at);
    for (int64_t i = 0; i < n; i += W) {
      State state;
      for (int part = 0; part < kParts; part++) state[part] = Load(states + part * kBlock + i);
      R::Add(state, LoadWide(x + i, Tag<Wide>{}));
      for (int part = 0; part < kParts; part++) Store<Wide>(states + part * kBlock + i, state[part]);
    }
  }
};

/// Reductions of this many elements and more may be cut into pieces of half of it.
constexpr int64_t kSplit = 2 * kTaskElements;
constexpr int64_t kEnough = 64;  // results, from which on there are enough tasks without pieces

/// The contiguous axis goes: a result is a fold over rows. Long rows are cut into units of at most kUnit elements.
template <class T, template <class> class Reducer> int FoldRows(const Plan& plan) {
  using F = Fold<T, Reducer>;
  using Scalar = typename F::Scalar;
  constexpr int64_t kUnit = 4096;
  const Nest<2>&kept = plan.kept, &reduced = plan.reduced;
  const int outer = reduced.rank > 0 ? reduced.rank - 1 : 0;
  const int64_t n = reduced.rank > 0 ? reduced.shape[outer] : 1, step = reduced.rank > 0 ? reduced.strides[outer][0] : 0;
  const int64_t per_row = (n + kUnit - 1) / kUnit, units = reduced.size / n * per_row;
  const auto fold = [&](const char* base, int64_t begin, int64_t end, Scalar& into) {
    Cursor<2> cursor(reduced, outer, begin / per_row);
    int64_t part = begin % per_row;
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t start = part * kUnit, length = n - start < kUnit ? n - start : kUnit;
      F::Row(base + cursor.offset[0] + start * step, step, length, into);
      if (++part == per_row) part = 0, cursor.Next();
    }
  };
  const auto store = [&](char* out, const Scalar& state) { *reinterpret_cast<T*>(out) = FromFloat<T>(F::Result(state)); };
  if (kept.size >= kEnough || reduced.size < kSplit || units < 2) {
    const int64_t grain = (kTaskElements + reduced.size - 1) / reduced.size;
    ParallelRange(kept.size, grain, [&](int64_t begin, int64_t end, int) {
      Cursor<2> cursor(kept, kept.rank, begin);
      for (int64_t i = begin; i < end; i++, cursor.Next()) {
        Scalar state = F::Identity();
        fold(cursor.Data(0), 0, units, state);
        store(cursor.Data(1), state);
      }
    });
    return HEED_OK;
  }
  const int64_t unit_elements = reduced.size / units + 1, per_piece = (kTaskElements + unit_elements - 1) / unit_elements;
  const int64_t pieces = (units + per_piece - 1) / per_piece;
  Scalar* partial = static_cast<Scalar*>(SharedScratch(0, kept.size * pieces * sizeof(Scalar)));
  if (partial == nullptr) return Fail(HEED_OUT_OF_MEMORY, "[reduce] no memory for %ld partial results", static_cast<long>(kept.size * pieces));
  ParallelFor(kept.size * pieces, [&](int64_t task, int) {
    const int64_t piece = task % pieces, begin = piece * per_piece, end = begin + per_piece < units ? begin + per_piece : units;
    int64_t offset[2];
    kept.Seek(task / pieces, kept.rank, offset);
    Scalar state = F::Identity();
    fold(kept.data[0] + offset[0], begin, end, state);
    partial[task] = state;
  });
  for (int64_t i = 0; i < kept.size; i++) {
    for (int64_t piece = 1; piece < pieces; piece++) F::R::Merge(partial[i * pieces].at, partial[i * pieces + piece].at);
    int64_t offset[2];
    kept.Seek(i, kept.rank, offset);
    store(kept.data[1] + offset[1], partial[i * pieces]);
  }
  return HEED_OK;
}

/// The contiguous axis stays: results are folded side by side, kBlock columns at a time.
template <class T, template <class> class Reducer> int FoldColumns(const Plan& plan) {
  using F = Fold<T, Reducer>;
  using Wide = typename F::Wide;
  using Scalar = typename F::Scalar;
  constexpr int64_t kStates = F::kParts * kBlock;
  const Nest<2>&kept = plan.kept, &reduced = plan.reduced;
  const int outer = kept.rank - 1;
  const int64_t n = kept.shape[outer], step = kept.strides[outer][0], out_step = kept.strides[outer][1];
  const int64_t blocks = (n + kBlock - 1) / kBlock, groups = kept.size / n * blocks;
  const int64_t width = n < kBlock ? n : kBlock;
  const auto at = [&](int64_t group, int64_t (&offset)[2], int64_t& length) {
    kept.Seek(group / blocks, outer, offset);
    const int64_t start = group % blocks * kBlock;
    offset[0] += start * step, offset[1] += start * out_step;
    length = n - start < kBlock ? n - start : kBlock;
  };
  const auto fold = [&](int64_t group, int64_t begin, int64_t end, Wide* states) {
    int64_t offset[2], length;
    at(group, offset, length);
    for (int64_t i = 0; i < kStates; i++) states[i] = i < kBlock ? static_cast<Wide>(F::R::kIdentity) : Wide{};
    Cursor<2> cursor(reduced, reduced.rank, begin);
    for (int64_t row = begin; row < end; row++, cursor.Next())
      F::Column(kept.data[0] + offset[0] + cursor.offset[0], step, length, states);
  };
  const auto store = [&](int64_t group, const Wide* states) {
    int64_t offset[2], length;
    at(group, offset, length);
    for (int64_t i = 0; i < length; i++) {
      Scalar state;
      for (int part = 0; part < F::kParts; part++) state.at[part] = states[part * kBlock + i];
      *reinterpret_cast<T*>(kept.data[1] + offset[1] + i * out_step) = FromFloat<T>(F::Result(state));
    }
  };
  const int64_t group_elements = width * reduced.size;
  if (groups >= kEnough || group_elements < kSplit || reduced.size < 2) {
    ParallelRange(groups, (kTaskElements + group_elements - 1) / group_elements, [&](int64_t begin, int64_t end, int) {
      Wide states[kStates] __attribute__((aligned(kVecBytes)));
      for (int64_t group = begin; group < end; group++) {
        fold(group, 0, reduced.size, states);
        store(group, states);
      }
    });
    return HEED_OK;
  }
  const int64_t per_piece = (kTaskElements + width - 1) / width, pieces = (reduced.size + per_piece - 1) / per_piece;
  Wide* partial = static_cast<Wide*>(SharedScratch(0, groups * pieces * kStates * sizeof(Wide)));
  if (partial == nullptr) return Fail(HEED_OUT_OF_MEMORY, "[reduce] no memory for %ld partial results", static_cast<long>(groups * pieces));
  ParallelFor(groups * pieces, [&](int64_t task, int) {
    const int64_t begin = task % pieces * per_piece, end = begin + per_piece < reduced.size ? begin + per_piece : reduced.size;
    fold(task / pieces, begin, end, partial + task * kStates);
  });
  for (int64_t group = 0; group < groups; group++) {
    Wide* first = partial + group * pieces * kStates;
    for (int64_t piece = 1; piece < pieces; piece++) {
      for (int64_t i = 0; i < width; i++) {
        Scalar a, b;
        for (int part = 0; part < F::kParts; part++)
          a.at[part] = first[part * kBlock + i], b.at[part] = first[piece * kStates + part * kBlock + i];
        F::R::Merge(a.at, b.at);
        for (int part = 0; part < F::kParts; part++) first[part * kBlock + i] = a.at[part];
      }
    }
    store(group, first);
  }
  return HEED_OK;
}
/// The sum of nothing.
template <class T> int FoldNothing(const Plan& plan) {
  Cursor<2> cursor(plan.kept, plan.kept.rank, 0);
  for (int64_t i = 0; i < plan.kept.size; i++, cursor.Next()) *reinterpret_cast<T*>(cursor.Data(1)) = FromFloat<T>(Acc<T>{});
  return HEED_OK;
}
template <template <class> class Reducer> int Dispatch(const heed_reduce& p) {
  const Plan plan = MakePlan(p);
  if (plan.kept.size == 0) return HEED_OK;
  if (plan.reduced.size == 0 && p.op != HEED_REDUCE_SUM) return Fail(HEED_INVALID, "[reduce] the max or min of nothing is not defined");
  const int status = DispatchNumber(p.x.dtype, HEED_UNSUPPORTED, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (plan.reduced.size == 0) return FoldNothing<T>(plan);
    return plan.inner_reduced ? FoldRows<T, Reducer>(plan) : FoldColumns<T, Reducer>(plan);
  });
  return status == HEED_UNSUPPORTED ? Fail(status, "[reduce] not defined for dtype %d", p.x.dtype) : status;
}
}  // namespace

int reduce(const heed_reduce& p) {
  switch (p.op) {
    case HEED_REDUCE_SUM: return Dispatch<Sum>(p);
    case HEED_REDUCE_MAX: return Dispatch<Largest>(p);
    case HEED_REDUCE_MIN: return Dispatch<Smallest>(p);
  }
  return Fail(HEED_UNSUPPORTED, "[reduce] unknown operation %d", p.op);
}
}  // namespace heed::HEED_ISA
