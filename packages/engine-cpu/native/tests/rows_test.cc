// Softmax, RMS norm and its backward against straight double loops.
#include "check.h"

using namespace heed::check;
namespace {
constexpr int32_t kFloats[] = {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16};
int32_t Accumulator(int32_t dtype) { return dtype == HEED_FLOAT64 ? HEED_FLOAT64 : HEED_FLOAT32; }
/// Errors of the arithmetic plus the one rounding at the store.
double Relative(int32_t dtype, double roundoffs) { return Roundoff(dtype) * 1.001 + roundoffs * Roundoff(Accumulator(dtype)); }

std::vector<double> StraightSoftmax(const Array& x) {
  const int64_t n = x.Shape().back();
  std::vector<double> y(x.Size());
  for (int64_t row = 0; row < x.Size() / n; row++) {
    double top = -INFINITY;
    long double sum = 0;
    bool nan = false;
    for (int64_t i = 0; i < n; i++) nan |= isnan(x[row * n + i]), top = fmax(top, x[row * n + i]);
    for (int64_t i = 0; i < n; i++) sum += expl(x[row * n + i] - top);
    for (int64_t i = 0; i < n; i++)
      y[row * n + i] = nan ? NAN : top == -INFINITY ? 0 : static_cast<double>(expl(x[row * n + i] - top) / sum);
  }
  return y;
}
void Softmax(int32_t dtype, const Dims& shape, Layout x_layout, Layout out_layout) {
  Random random{static_cast<uint64_t>(shape.back())};
  Array x(dtype, shape, x_layout), out(dtype, shape, out_layout);
  x.FillUniform(random, -9, 9);
  const int64_t n = shape.back(), rows = x.Size() / n;
  for (int64_t row = 0; row < rows; row++) {
    if (row % 5 == 1) x.Set(row * n + row % n, -INFINITY);
    if (row % 5 == 2)
      for (int64_t i = 0; i < n; i++) x.Set(row * n + i, -INFINITY);
    if (row % 5 == 3) x.Set(row * n + (n - 1), NAN);
    if (row % 25 == 3)
      for (int64_t i = 0; i < n - 1; i++) x.Set(row * n + i, -INFINITY);
  }
  heed_softmax p = {sizeof p, 0, x.View(), out.View()};
  Ok(heed_softmax_run(&p), "softmax");
  Check(out.Intact(), "softmax wrote outside its output");
  // x - max is rounded at a magnitude of up to 18, which is a relative error of 18 roundoffs in its exponential.
  Compare(out, StraightSoftmax(x), Relative(dtype, 26), dtype == HEED_FLOAT16 ? 0x1p-25 : 1e-40, "softmax");
}
void SoftmaxCases() {
  for (int32_t dtype : kFloats) {
    for (int64_t n : {1, 2, 15, 16, 17, 513, 1100})
      for (Layout x : kLayouts)
        for (Layout out : {Layout::kContiguous, x}) Softmax(dtype, {3, 2, n}, x, out);
    Softmax(dtype, {40, 2048}, Layout::kContiguous, Layout::kContiguous);
    Softmax(dtype, {2, 100000}, Layout::kContiguous, Layout::kContiguous);
  }
}

struct NormCase {
  int32_t dtype;
  Dims shape;
  Layout layout;
  bool weighted, unit_offset;
};
Array Weight(const NormCase& c, Random& random) {
  if (!c.weighted) return Array();
  Array weight(Accumulator(c.dtype), {c.shape[3]}, c.layout);
  return weight.FillUniform(random, 0.5, 1.5);
}
double Gain(const NormCase& c, const Array& weight, int64_t i) { return !c.weighted ? 1 : weight[i] + (c.unit_offset ? 1 : 0); }
double InverseRms(const Array& x, int64_t row, int64_t n, double eps) {
  double squares = 0;
  for (int64_t i = 0; i < n; i++) squares += x[row * n + i] * x[row * n + i];
  return 1 / sqrt(squares / static_cast<double>(n) + eps);
}
void Norm(const NormCase& c) {
  Random random{23};
  const int64_t n = c.shape[3];
  Array x(c.dtype, c.shape, c.layout), out(c.dtype, c.shape, c.layout), weight = Weight(c, random);
  x.FillUniform(random, -2, 2);
  heed_rms_norm p = {sizeof p, c.unit_offset, 1e-5, x.View(), weight.View(), out.View()};
  Ok(heed_rms_norm_run(&p), "rms_norm");
  Check(out.Intact(), "rms_norm wrote outside its output");
  std::vector<double> want(x.Size());
  for (int64_t row = 0; row < x.Size() / n; row++) {
    const double r = InverseRms(x, row, n, 1e-5);
    for (int64_t i = row * n; i < (row + 1) * n; i++) want[i] = x[i] * r * Gain(c, weight, i % n);
  }
  Compare(out, want, Relative(c.dtype, 8), 0x1p-25, "rms_norm");
}
void NormBackward(const NormCase& c) {
  Random random{29};
  const int64_t n = c.shape[3];
  Array x(c.dtype, c.shape, c.layout), d_out(c.dtype, c.shape, c.layout), d_x(c.dtype, c.shape, c.layout),
      weight = Weight(c, random);
  Array d_weight = c.weighted ? Array(Accumulator(c.dtype), {n}, c.layout) : Array();
  x.FillUniform(random, -2, 2), d_out.FillUniform(random, -1, 1);
  heed_rms_norm_backward p = {sizeof p,      c.unit_offset, 1e-5,       x.View(),
                              weight.View(), d_out.View(),  d_x.View(), d_weight.View()};
  Ok(heed_rms_norm_backward_run(&p), "rms_norm_backward");
  Check(d_x.Intact() && (!c.weighted || d_weight.Intact()), "rms_norm_backward wrote outside its outputs");
  std::vector<double> want_x(x.Size()), want_weight(n), magnitude(n);
  for (int64_t row = 0; row < x.Size() / n; row++) {
    const double r = InverseRms(x, row, n, 1e-5);
    double along = 0;
    for (int64_t i = 0; i < n; i++) along += d_out[row * n + i] * Gain(c, weight, i) * x[row * n + i];
    for (int64_t i = 0; i < n; i++) {
      want_x[row * n + i] =
          r * (d_out[row * n + i] * Gain(c, weight, i) - x[row * n + i] * r * r * along / static_cast<double>(n));
      want_weight[i] += d_out[row * n + i] * x[row * n + i] * r;
      magnitude[i] += fabs(d_out[row * n + i] * x[row * n + i] * r);
    }
  }
  // Gradients are of size 1 here; d_x is a difference of two such terms.
  Compare(d_x, want_x, Relative(c.dtype, 8), 16 * Roundoff(Accumulator(c.dtype)) + 0x1p-25, "d_x");
  if (c.weighted) Compare(d_weight, want_weight, 0, 16 * Roundoff(Accumulator(c.dtype)) * magnitude[0], "d_weight");
}
void NormCases() {
  for (int32_t dtype : kFloats)
    for (const Dims& shape :
         {Dims{1, 1, 1, 1}, Dims{2, 3, 2, 17}, Dims{1, 1, 5, 700}, Dims{2, 50, 3, 64}, Dims{0, 1, 1, 8}, Dims{1, 1, 300, 1030}})
      for (Layout layout : kLayouts)
        for (int mode = 0; mode < 3; mode++) {
          if (shape[2] == 300 && (mode || layout != Layout::kContiguous)) continue;
          const NormCase c = {dtype, shape, layout, mode > 0, mode == 2};
          Norm(c);
          NormBackward(c);
        }
}
/// In place, and the same bits whatever the number of threads.
void InPlaceAndThreads() {
  Random random{31};
  Array x(HEED_FLOAT32, {1, 1, 1000, 130}), d_out(HEED_FLOAT32, x.Shape()), weight(HEED_FLOAT32, {130});
  x.FillUniform(random, -2, 2), d_out.FillUniform(random, -1, 1), weight.FillUniform(random, 0.5, 1.5);
  std::vector<double> first;
  for (int threads : {1, 2, 3, 5}) {
    heed_set_threads(threads);
    Array d_x(HEED_FLOAT32, x.Shape()), d_weight(HEED_FLOAT32, {130}), y(HEED_FLOAT32, x.Shape());
    heed_rms_norm_backward p = {sizeof p, 0, 1e-6, x.View(), weight.View(), d_out.View(), d_x.View(), d_weight.View()};
    Ok(heed_rms_norm_backward_run(&p), "rms_norm_backward");
    for (int64_t i = 0; i < x.Size(); i++) y.Set(i, x[i]);
    heed_softmax q = {sizeof q, 0, y.View(), y.View()};
    Ok(heed_softmax_run(&q), "softmax in place");
    Compare(y, StraightSoftmax(x), Relative(HEED_FLOAT32, 12), 0, "softmax in place");
    std::vector<double> all = d_x.Values();
    for (const Array* t : {&d_weight, &y})
      for (double v : t->Values()) all.push_back(v);
    if (first.empty()) first = all;
    Check(first == all, "%d threads give other bits", threads);
  }
  heed_set_threads(0);
}
}  // namespace

int main() {
  ForEachIsa([] {
    SoftmaxCases();
    NormCases();
    InPlaceAndThreads();
  });
  return Finish();
}
