// Sum, max and min over any set of axes. Sums of float32 and of the 16-bit floats run in float64; sums of float64 carry their
// rounding errors along (TwoSum: Knuth, TAOCP 2, 4.2.2), so that all are good to about one rounding. Max and min keep a NaN.
// The work is cut by shape alone: into groups of results and, where there are few results, into pieces of each reduction, whose
// partial states are merged in ascending order. Results therefore do not depend on the number of threads.
#include "../runtime/kernel_table.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "block-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
namespace {
// A reducer folds vectors of Wide into a state of kParts vectors (scalars, where single states are merged).
template <class A> HEED_INLINE Vec<A> LoadWide(const A* p, Tag<A>) { return Load(p); }
HEED_INLINE Vec<double> LoadWide(const float* p, Tag<double>) {
#if defined(__AVX512F__)  // GCC 12 makes two halves of __builtin_convertvector here
  return (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#else
  typedef float Half __attribute__((vector_size(kVecBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
#endif
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
  static constexpr int64_t kMost = sizeof(A) == 4 ? INT32_MAX : INT64_MAX;
  static constexpr A kHighest = kIsFloat<A> ? static_cast<A>(__builtin_inf()) : static_cast<A>(kMost);
  static constexpr A kLowest = kIsFloat<A> ? static_cast<A>(-__builtin_inf()) : static_cast<A>(-kMost - 1);
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

/// The typed steps of a reduction; the loops around them are compiled once. `lanes` states lie part after part: part p of state
/// i is element p * lanes + i.
struct Steps {
  int64_t state_bytes;
  void (*clear)(void* states, int64_t lanes);
  void (*row)(const char* x, int64_t step, int64_t n, void* state);  // folds n elements into one state
  // Folds element i of each of `rows` rows into state i of kLanes.
  void (*columns)(const char* x, int64_t step, int64_t n, int64_t row_step, int64_t rows, void* states);
  void (*merge)(void* into, const void* other, int64_t lanes);
  void (*store)(char* out, int64_t step, int64_t n, const void* states, int64_t lanes);
};
constexpr int64_t kMostStateBytes = 16;
// Results that are folded side by side: rows of 4 KiB of float32 are long enough for the prefetcher, and their states fit L1.
constexpr int64_t kLanes = 2 * kBlock;
constexpr int kRows = 8;

/// T storage type, R reducer of its arithmetic type.
template <class T, class R> struct Fold {
  using A = Acc<T>;
  using Wide = typename R::Wide;
  static constexpr int kParts = R::kParts;
  static constexpr int64_t W = Width<Wide>;
  static constexpr int kChains = 4;  // additions have a latency of 4
  using Vector = Vec<Wide>[kParts];
  using Scalar = Wide[kParts];

  static void Clear(void* states, int64_t lanes) {
    for (int64_t i = 0; i < kParts * lanes; i++)
      static_cast<Wide*>(states)[i] = i < lanes ? static_cast<Wide>(R::kIdentity) : Wide{};
  }
  static void Row(const char* p, int64_t step, int64_t n, void* state) {
    Vector chain[kChains];
    HEED_UNROLL for (int c = 0; c < kChains; c++) {
      for (int part = 0; part < kParts; part++) chain[c][part] = Set1<Wide>(part ? Wide{} : static_cast<Wide>(R::kIdentity));
    }
    Buffer<A> buffer;
    for (int64_t start = 0; start < n; start += kBlock) {  // no lambda: the chains must stay in registers
      const int64_t length = n - start < kBlock ? n - start : kBlock;
      const A* x = Fetch<T>(p + start * step, step, length, buffer.at);
      const A* const end = x + length;
#pragma GCC unroll 1
      for (; x + kChains * W <= end; x += kChains * W) {
        HEED_UNROLL for (int c = 0; c < kChains; c++) R::Add(chain[c], LoadWide(x + c * W, Tag<Wide>{}));
      }
#pragma GCC unroll 1
      for (; x < end; x += W) {
        A rest[2 * W];  // LoadWide may read W elements of A
        for (A& a : rest) a = R::kIdentity;
        memcpy(rest, x, (end - x < W ? end - x : W) * sizeof(A));
        R::Add(chain[0], LoadWide(rest, Tag<Wide>{}));
      }
    }
    HEED_UNROLL for (int c = 1; c < kChains; c++) R::Merge(chain[0], chain[c]);
    Wide lanes[kParts][W];
    for (int part = 0; part < kParts; part++) Store<Wide>(lanes[part], chain[0][part]);
    for (int64_t k = 1; k < W; k++) MergeLane(lanes[0], W, 0, lanes[0], W, k);
    MergeLane(static_cast<Wide*>(state), 1, 0, lanes[0], W, 0);
  }
  /// Rows rows of a block at once, so that its states are loaded and stored once.
  template <int Rows> static HEED_ALWAYS_INLINE void AddRows(const A* x, int64_t row_step, int64_t n, Wide* at) {
#pragma GCC unroll 1
    for (int64_t i = 0; i < n; i += W, at += W) {
      Vector v;
      HEED_UNROLL for (int part = 0; part < kParts; part++) v[part] = Load(at + part * kLanes);
      HEED_UNROLL for (int r = 0; r < Rows; r++) R::Add(v, LoadWide(Element<A>(x, r * row_step) + i, Tag<Wide>{}));
      HEED_UNROLL for (int part = 0; part < kParts; part++) Store<Wide>(at + part * kLanes, v[part]);
    }
  }
  static void Columns(const char* p, int64_t step, int64_t n, int64_t row_step, int64_t rows, void* states) {
    Buffer<A> buffer;
    for (int64_t start = 0; start < n; start += kBlock) {
      const int64_t length = n - start < kBlock ? n - start : kBlock;
      Wide* at = static_cast<Wide*>(states) + start;
      const char* x = p + start * step;
      int64_t row = 0;
      if (InPlace<T>(step, length))
        for (; row + kRows <= rows; row += kRows) AddRows<kRows>(Element<A>(x, row * row_step), row_step, length, at);
      for (; row < rows; row++) AddRows<1>(Fetch<T>(x + row * row_step, step, length, buffer.at), 0, length, at);
    }
  }
  /// State i of `into` takes in state j of `other`.
  static void MergeLane(Wide* into, int64_t lanes, int64_t i, const Wide* other, int64_t other_lanes, int64_t j) {
    Scalar a, b;
    for (int part = 0; part < kParts; part++) a[part] = into[part * lanes + i], b[part] = other[part * other_lanes + j];
    R::Merge(a, b);
    for (int part = 0; part < kParts; part++) into[part * lanes + i] = a[part];
  }
  static void Merge(void* into, const void* other, int64_t lanes) {
    for (int64_t i = 0; i < lanes; i++)
      MergeLane(static_cast<Wide*>(into), lanes, i, static_cast<const Wide*>(other), lanes, i);
  }
  static void Put(char* out, int64_t step, int64_t n, const void* states, int64_t lanes) {
    for (int64_t i = 0; i < n; i++) {
      Scalar state;
      for (int part = 0; part < kParts; part++) state[part] = static_cast<const Wide*>(states)[part * lanes + i];
      *Element<T>(out, i * step) = FromFloat<T>(static_cast<A>(R::Result(state)));
    }
  }
  static constexpr Steps kSteps = {kParts * sizeof(Wide), Clear, Row, Columns, Merge, Put};
};

// Where the contiguous axis goes, a group is one result and a unit a stretch of at most kUnit elements; where it stays, a group
// is up to kLanes neighbouring results and a unit at most kRows rows of them. Groups with this many elements may be cut into
// pieces of units.
constexpr int64_t kUnit = 4096, kSplit = 2 * kTaskElements;
constexpr int64_t kEnough = 64;  // groups, from which on there are tasks enough without pieces

class Reduction {
 public:
  Reduction(const Plan& plan, const Steps& steps)
      : kept_(plan.kept), reduced_(plan.reduced), steps_(steps), rows_(plan.inner_reduced) {
    kept_axes_ = rows_ ? kept_.rank : kept_.rank - 1;
    if (!rows_)
      columns_ = kept_.shape[kept_axes_], step_ = kept_.strides[kept_axes_][0], out_step_ = kept_.strides[kept_axes_][1];
    reduced_axes_ = reduced_.rank > 0 ? reduced_.rank - 1 : 0;
    if (reduced_.rank > 0) length_ = reduced_.shape[reduced_axes_], along_ = reduced_.strides[reduced_axes_][0];
    chunk_ = rows_ ? kUnit : kRows;
    lanes_ = rows_ ? 1 : kLanes;
    blocks_ = (columns_ + kLanes - 1) / kLanes, chunks_ = (length_ + chunk_ - 1) / chunk_;
    groups_ = kept_.size / columns_ * blocks_, units_ = reduced_.size / length_ * chunks_;
  }
  int Run() const {
    const int64_t width = columns_ < kLanes ? columns_ : kLanes, elements = width * reduced_.size;
    const bool whole = groups_ >= kEnough || elements < kSplit || units_ < 2;
    if (whole) {
      ParallelRange(groups_, (kTaskElements + elements - 1) / elements, [&](int64_t begin, int64_t end, int) {
        char states[kLanes * kMostStateBytes] __attribute__((aligned(kVecBytes)));
        for (int64_t group = begin; group < end; group++) {
          FoldUnits(group, 0, units_, states);
          StoreGroup(group, states);
        }
      });
      return HEED_OK;
    }
    const int64_t per_piece = (kTaskElements * units_ + elements - 1) / elements, pieces = (units_ + per_piece - 1) / per_piece;
    const int64_t bytes = lanes_ * steps_.state_bytes;
    char* partial = static_cast<char*>(SharedScratch(0, groups_ * pieces * bytes));
    if (partial == nullptr)
      return Fail(HEED_OUT_OF_MEMORY, "[reduce] no memory for %ld partial results", static_cast<long>(groups_ * pieces));
    ParallelFor(groups_ * pieces, [&](int64_t task, int) {
      const int64_t begin = task % pieces * per_piece, end = begin + per_piece < units_ ? begin + per_piece : units_;
      FoldUnits(task / pieces, begin, end, partial + task * bytes);
    });
    for (int64_t group = 0; group < groups_; group++) {
      char* first = partial + group * pieces * bytes;
      for (int64_t piece = 1; piece < pieces; piece++) steps_.merge(first, first + piece * bytes, lanes_);
      StoreGroup(group, first);
    }
    return HEED_OK;
  }

 private:
  /// Offsets of a group's first element in x and out; returns the number of its results.
  int64_t Locate(int64_t group, int64_t (&offset)[2]) const {
    kept_.Seek(group / blocks_, kept_axes_, offset);
    const int64_t start = group % blocks_ * kLanes;
    if (!rows_) offset[0] += start * step_, offset[1] += start * out_step_;
    return columns_ - start < kLanes ? columns_ - start : kLanes;
  }
  void FoldUnits(int64_t group, int64_t begin, int64_t end, void* states) const {
    int64_t offset[2];
    const int64_t n = Locate(group, offset);
    const char* base = kept_.data[0] + offset[0];
    steps_.clear(states, lanes_);
    Cursor<2> cursor(reduced_, reduced_axes_, begin / chunks_);
    int64_t chunk = begin % chunks_;
    for (int64_t unit = begin; unit < end; unit++) {
      const char* x = base + cursor.offset[0];
      const int64_t start = chunk * chunk_, count = length_ - start < chunk_ ? length_ - start : chunk_;
      if (rows_) steps_.row(x + start * along_, along_, count, states);
      else steps_.columns(x + start * along_, step_, n, along_, count, states);
      if (++chunk == chunks_) chunk = 0, cursor.Next();
    }
  }
  void StoreGroup(int64_t group, const void* states) const {
    int64_t offset[2];
    const int64_t n = Locate(group, offset);
    steps_.store(kept_.data[1] + offset[1], out_step_, n, states, lanes_);
  }

  const Nest<2>&kept_, &reduced_;
  const Steps& steps_;
  bool rows_;
  int kept_axes_, reduced_axes_;  // axes outside of a group, and of a unit
  int64_t columns_ = 1, length_ = 1, step_ = 0, out_step_ = 0, along_ = 0;
  int64_t chunk_, lanes_, blocks_, chunks_, groups_, units_;
};

/// The sum of nothing.
template <class T> int StoreZeros(const Plan& plan) {
  Cursor<2> cursor(plan.kept, plan.kept.rank, 0);
  for (int64_t i = 0; i < plan.kept.size; i++, cursor.Next()) *Element<T>(cursor.Data(1), 0) = FromFloat<T>(Acc<T>{});
  return HEED_OK;
}
template <template <class> class Reducer> int Dispatch(const heed_reduce& p) {
  const Plan plan = MakePlan(p);
  if (plan.kept.size == 0) return HEED_OK;
  if (plan.reduced.size == 0 && p.op != HEED_REDUCE_SUM)
    return Fail(HEED_INVALID, "[reduce] the max or min of nothing is not defined");
  const int status = DispatchNumber(p.x.dtype, HEED_UNSUPPORTED, [&]<class T>(Tag<T>) {
    return plan.reduced.size == 0 ? StoreZeros<T>(plan) : Reduction(plan, Fold<T, Reducer<Acc<T>>>::kSteps).Run();
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
