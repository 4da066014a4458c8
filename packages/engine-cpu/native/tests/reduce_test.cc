// Reductions against a compensated long double loop, over axes, layouts, dtypes, thread counts and levels.
#include "check.h"

using namespace heed::check;
namespace {
constexpr int32_t kDTypes[] = {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16, HEED_INT32, HEED_INT64};

Array Reduce(int op, const Array& x, unsigned axes, Layout layout) {
  Dims kept = x.Shape();
  for (size_t i = 0; i < kept.size(); i++)
    if (axes >> i & 1) kept[i] = 1;
  Array out(x.DType(), kept, layout);
  heed_reduce p = {sizeof p, op, x.View(), out.View()};
  Ok(heed_reduce_run(&p), "reduce");
  Check(out.Intact(), "reduce wrote outside its output");
  return out;
}
std::vector<double> Straight(int op, const Array& x, const Array& out) {
  std::vector<long double> state(out.Size(), op == HEED_REDUCE_SUM ? 0.0L : op == HEED_REDUCE_MAX ? -INFINITY : INFINITY);
  const Dims &shape = x.Shape(), &kept = out.Shape();
  for (int64_t i = 0; i < x.Size(); i++) {
    int64_t to = 0, rest = i, scale = 1;
    for (size_t axis = shape.size(); axis-- > 0; rest /= shape[axis]) {
      to += kept[axis] == 1 ? 0 : rest % shape[axis] * scale;
      scale *= kept[axis];
    }
    const long double v = x[i];
    if (op == HEED_REDUCE_SUM) state[to] += v;
    else if (isnan(v) || (op == HEED_REDUCE_MAX ? v > state[to] : v < state[to])) state[to] = isnan(state[to]) ? state[to] : v;
  }
  std::vector<double> want(state.begin(), state.end());
  for (double& v : want)
    if (x.DType() == HEED_FLOAT16 && fabs(v) >= 65520) v = copysign(INFINITY, v);
  return want;
}
void Case(int op, int32_t dtype, const Dims& shape, unsigned axes, Layout x_layout, Layout out_layout, double low) {
  Random random{static_cast<uint64_t>(op * 100 + axes)};
  Array x(dtype, shape, x_layout);
  for (int64_t i = 0; i < x.Size(); i++)
    x.Set(i, dtype >= HEED_INT32 ? static_cast<double>(random.Below(200) - 100) : random.Uniform(low, 1));
  const Array out = Reduce(op, x, axes, out_layout);
  // Cancellation: the error is relative to the sum of magnitudes, and far below one rounding of it.
  const double spread = dtype >= HEED_INT32 ? 0 : static_cast<double>(x.Size()) * (dtype == HEED_FLOAT64 ? 0x1p-100 : 0x1p-50);
  Compare(out, Straight(op, x, out), op == HEED_REDUCE_SUM ? (dtype == HEED_FLOAT64 ? 2.001 : 1.001) * Roundoff(dtype) : 0,
          op == HEED_REDUCE_SUM ? spread : 0, "reduce");
}
void Cases() {
  for (int op : {HEED_REDUCE_SUM, HEED_REDUCE_MAX, HEED_REDUCE_MIN})
    for (int32_t dtype : kDTypes) {
      for (unsigned axes = 0; axes < 8; axes++)
        for (Layout layout : kLayouts) Case(op, dtype, {5, 3, 37}, axes, layout, layout, -1);
      for (unsigned axes = 1; axes < 4; axes++) {  // large enough to be cut into pieces, both ways
        Case(op, dtype, {3, 50000}, axes, Layout::kContiguous, Layout::kContiguous, -0.5);
        Case(op, dtype, {50001, 3}, axes, Layout::kContiguous, Layout::kContiguous, -0.5);
        Case(op, dtype, {700, 300}, axes, Layout::kTransposed, Layout::kContiguous, 0);
      }
      Case(op, dtype, {}, 0, Layout::kContiguous, Layout::kContiguous, 0);
    }
}
/// A value far beyond the others must not swallow them in float64.
void Compensation() {
  Array x(HEED_FLOAT64, {4001});
  x.Fill(1);
  x.Set(0, 1e16), x.Set(4000, -1e16);
  Check(Reduce(HEED_REDUCE_SUM, x, 1, Layout::kContiguous)[0] == 3999, "1e16 + 3999 ones - 1e16 is 3999");
}
void NonFinite() {
  for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
    for (unsigned axes : {1u, 2u})
      for (int64_t at = 0; at < 60; at += 7) {
        Array x(dtype, {60, 60});
        x.Fill(1);
        x.Set(at * 60 + at, NAN);
        x.Set((59 - at) * 60 + 59 - at, INFINITY);
        for (int op : {HEED_REDUCE_SUM, HEED_REDUCE_MAX, HEED_REDUCE_MIN}) {
          const Array out = Reduce(op, x, axes, Layout::kContiguous);
          Check(isnan(out[at]), "%s: NaN must come through operation %d", Name(dtype), op);
          Check(out[59 - at] == (op == HEED_REDUCE_MIN ? 1 : INFINITY), "%s: infinity in operation %d gave %g", Name(dtype), op,
                out[59 - at]);
        }
      }
}
/// The same bits whatever the number of threads.
void Threads() {
  Random random{17};
  for (const Dims& shape : {Dims{300000}, Dims{100000, 3}, Dims{3, 100000}}) {
    Array x(HEED_FLOAT32, shape);
    x.FillUniform(random, -1, 1);
    for (unsigned axes = 1; axes < (1u << shape.size()); axes++) {
      heed_set_threads(1);
      const std::vector<double> one = Reduce(HEED_REDUCE_SUM, x, axes, Layout::kContiguous).Values();
      for (int threads : {2, 3, 7}) {
        heed_set_threads(threads);
        Check(Reduce(HEED_REDUCE_SUM, x, axes, Layout::kContiguous).Values() == one, "%d threads give other bits", threads);
      }
      heed_set_threads(0);
    }
  }
}
void Empty() {
  Array x(HEED_FLOAT32, {3, 0}), out(HEED_FLOAT32, {3, 1});
  heed_reduce p = {sizeof p, HEED_REDUCE_SUM, x.View(), out.View()};
  Ok(heed_reduce_run(&p), "the sum of nothing");
  Compare(out, {0, 0, 0}, 0, 0, "the sum of nothing");
  p.op = HEED_REDUCE_MAX;
  Check(heed_reduce_run(&p) == HEED_INVALID, "the max of nothing must be refused");
}
}  // namespace

int main() {
  ForEachIsa([] {
    Cases();
    Compensation();
    NonFinite();
    Threads();
    Empty();
  });
  return Finish();
}
