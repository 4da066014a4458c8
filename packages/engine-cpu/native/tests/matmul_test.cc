// heed_matmul against a float64 triple loop: dtypes, strides, batches, alpha, beta, bias; and the promise that neither the number of
// threads nor the other columns change a bit.
#include "check.h"

namespace heed::check {
namespace {
struct Case {
  int32_t a, b;
  Dims batch;
  int64_t m, n, k;
  double alpha = 1, beta = 0;
  bool bias = false;
  Layout layouts[3] = {Layout::kContiguous, Layout::kContiguous, Layout::kContiguous};
  int shared = 0;  // 1: b has no batch axes; 2: b's batch axes have stride 0
};
Dims With(Dims batch, int64_t rows, int64_t cols) {
  batch.push_back(rows);
  batch.push_back(cols);
  return batch;
}
void RunCase(const Case& c) {
  Random random{42};
  Array a = Array(c.a, With(c.batch, c.m, c.k), c.layouts[0]).FillUniform(random, -1, 1);
  const Dims b_shape = With(c.shared == 1 ? Dims{} : c.batch, c.k, c.n);
  Array b = Array(c.b, b_shape, c.layouts[1]);
  if (c.shared == 2) {
    Dims strides = RowMajor(b_shape);
    for (size_t i = 0; i + 2 < b_shape.size(); i++) strides[i] = 0;
    b = Array(c.b, b_shape, strides);
  }
  b.FillUniform(random, -1, 1);
  Array out = Array(c.a, With(c.batch, c.m, c.n), c.layouts[2]);
  if (c.beta != 0) out.FillUniform(random, -1, 1);
  Array bias;
  if (c.bias) bias = Array(c.a, {c.n}, {3}).FillUniform(random, -1, 1);
  const std::vector<double> x = a.Values(), y = b.Values(), old = out.Values();
  const std::vector<double> z = c.bias ? bias.Values() : std::vector<double>(c.n, 0.0);
  std::vector<double> want(out.Size());
  for (int64_t i = 0; i < out.Size(); i++) {
    const int64_t row = i / c.n, col = i % c.n, item = row / (c.m > 0 ? c.m : 1);
    double sum = 0;
    for (int64_t k = 0; k < c.k; k++) sum += x[row * c.k + k] * y[((c.shared == 1 ? 0 : item) * c.k + k) * c.n + col];
    want[i] = c.alpha * sum + (c.beta != 0 ? c.beta * old[i] : 0) + z[col];
  }
  heed_matmul p = {sizeof p, 0, c.alpha, c.beta, a.View(), b.View(), out.View(), bias.View()};
  char what[200];
  snprintf(what, sizeof what, "matmul %s x %s batch %zu %ldx%ldx%ld alpha %g beta %g bias %d layouts %d%d%d shared %d", Name(c.a), Name(c.b),
           c.batch.size(), (long)c.m, (long)c.n, (long)c.k, c.alpha, c.beta, c.bias, (int)c.layouts[0], (int)c.layouts[1],
           (int)c.layouts[2], c.shared);
  if (!Ok(heed_matmul_run(&p), what)) return;
  // Sums of k terms below 1, in float32 for 16-bit types, then one rounding.
  const double sums = c.a == HEED_FLOAT64 ? 0x1p-53 : 0x1p-24;
  Compare(out, want, 2 * Roundoff(c.a), sums * (static_cast<double>(c.k) + 4) * (fabs(c.alpha) + 1), what);
  Check(out.Intact(), "%s: wrote outside out", what);
}

void Shapes() {
  for (const int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16}) {
    for (const int64_t m : {1, 2, 3, 5, 8, 9, 16, 17, 50})
      for (const int64_t n : {1, 3, 8, 70, 131})
        for (const int64_t k : {0, 1, 4, 33, 300}) {
          RunCase({dtype, dtype, {}, m, n, k});
          RunCase({dtype, dtype, {}, m, n, k, 1, 0, true, {Layout::kContiguous, Layout::kTransposed, Layout::kContiguous}});
        }
    RunCase({dtype, dtype, {}, 1000, 65, 100});
    for (const int64_t m : {1, 6, 20}) RunCase({dtype, dtype, {}, m, 1100, 40, 1, 0, true});  // several tasks and groups of panels
    RunCase({dtype, dtype, {}, 0, 5, 5});
    RunCase({dtype, dtype, {3, 0}, 4, 5, 5});
  }
  for (const int64_t m : {1, 4, 9, 100}) {
    for (const Layout layout : kLayouts) {
      RunCase({HEED_FLOAT32, HEED_FLOAT16, {}, m, 77, 129, .5, 0, true, {Layout::kContiguous, layout, Layout::kContiguous}});
      RunCase({HEED_FLOAT32, HEED_BFLOAT16, {2}, m, 77, 129, .5, 2, true, {Layout::kContiguous, layout, Layout::kContiguous}});
    }
  }
}
void Strides() {
  for (const int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
    for (const int64_t m : {1, 5, 20})
      for (const Dims& batch : {Dims{}, Dims{2, 3}})
        for (const Layout a : kLayouts)
          for (const Layout b : kLayouts)
            for (const Layout out : kLayouts) RunCase({dtype, dtype, batch, m, 37, 29, -1.5, .5, true, {a, b, out}});
}
void Batches() {
  for (const int shared : {0, 1, 2})
    for (const int64_t m : {1, 3, 9}) {
      for (const Dims& batch : {Dims{1}, Dims{7}, Dims{2, 1, 5}, Dims{40, 2}}) {
        RunCase({HEED_FLOAT32, HEED_FLOAT32, batch, m, 33, 40, 1, 0, true, {}, shared});
        RunCase({HEED_BFLOAT16, HEED_BFLOAT16, batch, m, 33, 40, 2, 1, false, {}, shared});
        for (const int32_t weights : {HEED_FLOAT16, HEED_BFLOAT16})
          for (const Layout b : {Layout::kContiguous, Layout::kPadded})
            RunCase({HEED_FLOAT32, weights, batch, m, 33, 40, 1, 0, true, {Layout::kPadded, b, Layout::kPadded}, shared});
      }
    }
}
/// A product over n columns has the bits of the same columns computed apart, on one thread and on five.
void Invariance() {
  for (const int64_t m : {1, 4, 8, 9, 16, 17, 200})
    for (const Layout layout : {Layout::kContiguous, Layout::kTransposed, Layout::kPadded}) {
      const int64_t n = 150, k = 700;
      Random random{7};
      Array a = Array(HEED_FLOAT32, {m, k}).FillUniform(random, -1, 1), b = Array(HEED_FLOAT32, {k, n}, layout).FillUniform(random, -1, 1);
      Array whole(HEED_FLOAT32, {m, n}), threads(HEED_FLOAT32, {m, n}), parts(HEED_FLOAT32, {m, n});
      heed_matmul p = {sizeof p, 0, 1, 0, a.View(), b.View(), whole.View(), {}};
      Ok(heed_set_threads(1), "set_threads");
      Ok(heed_matmul_run(&p), "whole");
      Ok(heed_set_threads(5), "set_threads");
      p.out = threads.View();
      Ok(heed_matmul_run(&p), "threads");
      for (int64_t from = 0, to = 13; from < n; from = to, to = to + 57 < n ? to + 57 : n) {
        p.b = b.View();
        p.out = parts.View();
        p.b.data = static_cast<float*>(p.b.data) + from * p.b.strides[1];
        p.out.data = static_cast<float*>(p.out.data) + from;
        p.b.shape[1] = p.out.shape[1] = to - from;
        Ok(heed_matmul_run(&p), "part");
      }
      Check(whole.Values() == threads.Values(), "m %ld: the number of threads changed bits", (long)m);
      Check(whole.Values() == parts.Values(), "m %ld layout %d: columns apart have other bits", (long)m, (int)layout);
      Ok(heed_set_threads(0), "set_threads");
    }
}
void Special() {
  // A NaN in a stays in its row, one in b in its column; beta 0 does not read out's NaN.
  Array a = Array(HEED_FLOAT32, {9, 20}).Fill(1), b = Array(HEED_FLOAT32, {20, 30}).Fill(1), out(HEED_FLOAT32, {9, 30});
  a.Set(a.Index({4, 3}), NAN);
  b.Set(b.Index({2, 7}), NAN);
  heed_matmul p = {sizeof p, 0, 1, 0, a.View(), b.View(), out.View(), {}};
  Ok(heed_matmul_run(&p), "nan");
  std::vector<double> want(9 * 30, 20);
  for (int64_t i = 0; i < 9 * 30; i++)
    if (i / 30 == 4 || i % 30 == 7) want[i] = NAN;
  Compare(out, want, 0, 0, "NaN stays in its row and column");
  p.b.dtype = HEED_INT32;
  Check(heed_matmul_run(&p) == HEED_UNSUPPORTED, "a float32 x int32 product is refused");
}
}  // namespace
}  // namespace heed::check

int main() {
  using namespace heed::check;
  ForEachIsa([] {
    Shapes();
    Strides();
    Batches();
    Invariance();
    Special();
  });
  return Finish();
}
