// Elementwise operations against libm in float64 and long double, over layouts, dtypes, special values and levels.
#include "check.h"

#include <algorithm>
#include <functional>

using namespace heed::check;
namespace {
constexpr int32_t kFloats[] = {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16};
constexpr int32_t kIntegers[] = {HEED_INT32, HEED_INT64};
using Real = long double;

struct Unary {
  heed_unary_op op;
  const char* name;
  std::function<Real(Real)> f;
  double low, high;
};
const Unary kUnary[] = {
    {HEED_NEG, "neg", [](Real x) { return -x; }, -9, 9},
    {HEED_ABS, "abs", [](Real x) { return fabsl(x); }, -9, 9},
    {HEED_EXP, "exp", expl, -80, 80},
    {HEED_LOG, "log", logl, 0, 3},
    {HEED_SQRT, "sqrt", sqrtl, 0, 100},
    {HEED_RSQRT, "rsqrt", [](Real x) { return 1 / sqrtl(x); }, 0.01, 100},
    {HEED_SQUARE, "square", [](Real x) { return x * x; }, -9, 9},
    {HEED_RECIPROCAL, "reciprocal", [](Real x) { return 1 / x; }, -9, 9},
    {HEED_TANH, "tanh", tanhl, -12, 12},
    {HEED_SIGMOID, "sigmoid", [](Real x) { return 1 / (1 + expl(-x)); }, -80, 80},
    {HEED_SILU, "silu", [](Real x) { return x / (1 + expl(-x)); }, -20, 20},
};
/// The distance of two neighbouring floats of that dtype at x.
double Ulp(double x, int32_t dtype) {
  constexpr int kLowest[] = {-1022, -126, -14, -126}, kDigits[] = {52, 23, 10, 7};
  int exponent = kLowest[dtype];
  if (x != 0 && isfinite(x)) exponent = std::max(exponent, ilogb(x));
  return ldexp(1, exponent - kDigits[dtype]);
}
/// Ulps an operation may be off: two for what has a polynomial in it, and half a one where a 16-bit result is rounded once
/// more.
double Allowed(const Unary& u, int32_t dtype) {
  const bool exact =
      u.op == HEED_NEG || u.op == HEED_ABS || u.op == HEED_SQRT || u.op == HEED_SQUARE || u.op == HEED_RECIPROCAL;
  const bool wide = dtype == HEED_FLOAT64 || dtype == HEED_FLOAT32;
  if (!wide) return 0.502;
  return exact ? 0.5001 : u.op == HEED_RSQRT ? 1.6 : u.op == HEED_SIGMOID || u.op == HEED_SILU ? 3 : 2;
}
Array RunUnary(int op, const Array& x, int32_t out_dtype, Layout layout) {
  Array out(out_dtype, x.Shape(), layout);
  heed_unary p = {sizeof p, op, x.View(), out.View()};
  Ok(heed_unary_run(&p), "unary");
  Check(out.Intact(), "unary %d wrote outside its output", op);
  return out;
}
void UnaryAgainstLibm(const Unary& u, int32_t dtype, Layout x_layout, Layout out_layout, const Dims& shape) {
  Random random{7};
  Array x(dtype, shape, x_layout);
  x.FillUniform(random, u.low, u.high);
  const Array out = RunUnary(u.op, x, dtype, out_layout);
  double worst = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < x.Size(); i++) {
    const Real want = dtype == HEED_FLOAT16 && u.f(x[i]) >= 65520 ? INFINITY : u.f(x[i]);
    if (out[i] == static_cast<double>(want)) continue;
    const double error = static_cast<double>(fabsl(out[i] - want)) / Ulp(static_cast<double>(want), dtype);
    if (!(error <= worst)) worst = error, at = i;
  }
  Check(worst <= Allowed(u, dtype), "%s %s: %.3f ulp at x = %.17g (%.17g)", u.name, Name(dtype), worst, x[at], out[at]);
}
void UnaryCases() {
  for (const Unary& u : kUnary)
    for (int32_t dtype : kFloats) {
      for (Layout x : kLayouts)
        for (Layout out : kLayouts) UnaryAgainstLibm(u, dtype, x, out, {3, 5, 7});
      UnaryAgainstLibm(u, dtype, Layout::kContiguous, Layout::kContiguous, {40000});
      UnaryAgainstLibm(u, dtype, Layout::kPadded, Layout::kContiguous, {3, 1700});
      UnaryAgainstLibm(u, dtype, Layout::kContiguous, Layout::kContiguous, {});
    }
}
/// Special values have the results IEEE 754 and C give them.
void SpecialValues() {
  const double inf = INFINITY, values[] = {inf, -inf, NAN, 0.0, -0.0, 1e-40, -1.5, 3e38, 100, -100};
  const int64_t n = sizeof values / sizeof *values;
  for (const Unary& u : kUnary)
    for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32}) {
      Array x(dtype, {n});
      for (int64_t i = 0; i < n; i++) x.Set(i, values[i]);
      const Array out = RunUnary(u.op, x, dtype, Layout::kContiguous);
      for (int64_t i = 0; i < n; i++) {
        double want = static_cast<double>(u.f(x[i]));
        if (dtype == HEED_FLOAT32) want = static_cast<float>(want);
        const bool both_nan = u.op == HEED_SILU && x[i] == -inf && isnan(out[i]);  // -inf * 0, as in x * sigmoid(x)
        Check(both_nan || Close(out[i], want, (u.op == HEED_SILU ? 100 : 3) * Ulp(want, dtype)),
              "%s %s(%g) is %g, should be %g", Name(dtype), u.name, x[i], out[i], want);
      }
    }
}
void IntegersAndBools() {
  for (int32_t dtype : kIntegers)
    for (Layout layout : kLayouts) {
      Random random{3};
      Array x(dtype, {4, 37}, layout);
      for (int64_t i = 0; i < x.Size(); i++) x.Set(i, static_cast<double>(random.Below(2001) - 1000));
      for (const Unary& u : {kUnary[0], kUnary[1], kUnary[6]}) {
        const Array out = RunUnary(u.op, x, dtype, layout);
        std::vector<double> want;
        for (double v : x.Values()) want.push_back(static_cast<double>(u.f(v)));
        Compare(out, want, 0, 0, u.name);
      }
    }
  for (Layout layout : kLayouts) {
    Array x(HEED_BOOL, {3, 50}, layout), y(HEED_FLOAT32, {3, 50}, layout);
    for (int64_t i = 0; i < x.Size(); i++) x.Set(i, i % 3 == 0), y.Set(i, i % 3 == 0 ? i : i % 3 == 1 ? INFINITY : NAN);
    std::vector<double> negated, finite;
    for (int64_t i = 0; i < x.Size(); i++) negated.push_back(i % 3 != 0), finite.push_back(i % 3 == 0);
    Compare(RunUnary(HEED_NOT, x, HEED_BOOL, layout), negated, 0, 0, "not");
    Compare(RunUnary(HEED_IS_FINITE, y, HEED_BOOL, layout), finite, 0, 0, "isFinite");
  }
}

struct Binary {
  heed_binary_op op;
  const char* name;
  std::function<Real(Real, Real)> f;
  bool integers, flag;
};
const Binary kBinary[] = {
    {HEED_ADD, "add", [](Real a, Real b) { return a + b; }, true, false},
    {HEED_SUB, "sub", [](Real a, Real b) { return a - b; }, true, false},
    {HEED_MUL, "mul", [](Real a, Real b) { return a * b; }, true, false},
    {HEED_DIV, "div", [](Real a, Real b) { return a / b; }, false, false},
    {HEED_MAX, "max", [](Real a, Real b) { return isnan(a) || isnan(b) ? NAN
                                                  : a > b              ? a
                                                                       : b; }, true, false},
    {HEED_MIN, "min", [](Real a, Real b) { return isnan(a) || isnan(b) ? NAN
                                                  : a < b              ? a
                                                                       : b; }, true, false},
    {HEED_POW, "pow", powl, false, false},
    {HEED_EQUAL, "equal", [](Real a, Real b) { return Real(a == b); }, true, true},
    {HEED_LESS, "less", [](Real a, Real b) { return Real(a < b); }, true, true},
    {HEED_LESS_EQUAL, "lessEqual", [](Real a, Real b) { return Real(a <= b); }, true, true},
};
void RunBinary(const Binary& k, const Array& a, const Array& b, Layout layout) {
  const int32_t dtype = k.flag ? HEED_BOOL : a.DType();
  Array out(dtype, a.Shape(), layout);
  heed_binary p = {sizeof p, k.op, a.View(), b.View(), out.View()};
  Ok(heed_binary_run(&p), k.name);
  Check(out.Intact(), "%s wrote outside its output", k.name);
  std::vector<double> want;
  for (int64_t i = 0; i < a.Size(); i++) {
    want.push_back(static_cast<double>(k.f(a[i], b[i])));
    if (fabs(want[i]) > 65519 && dtype == HEED_FLOAT16) want[i] = copysign(INFINITY, want[i]);
  }
  // (A float64 result is itself rounded twice here: to long double, then to double.)
  Compare(out, want, (k.op == HEED_POW || dtype == HEED_FLOAT64 ? 2.001 : 1.001) * Roundoff(dtype),
          dtype == HEED_FLOAT16 ? 0x1p-25 : 0, k.name);
}
void BinaryCases() {
  for (const Binary& k : kBinary)
    for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16, HEED_INT32, HEED_INT64}) {
      const bool integer = dtype >= HEED_INT32;
      if (integer && !k.integers) continue;
      for (Layout layout : kLayouts)
        for (int broadcast = 0; broadcast < 3; broadcast++) {
          Random random{static_cast<uint64_t>(11 + broadcast)};
          const Dims shape = {3, 2, 75};
          Array a(dtype, shape, layout);
          Array b = broadcast == 0   ? Array(dtype, shape)
                    : broadcast == 1 ? Array(dtype, shape, Dims{0, 0, 1})
                                     : Array(dtype, shape, Dims{1, 0, 0});
          for (Array* t : {&a, &b})
            for (int64_t i = 0; i < t->Size(); i++)
              t->Set(i, integer ? static_cast<double>(random.Below(9) - 4) : random.Uniform(k.op == HEED_POW ? 0.1 : -3, 3));
          if (!integer && k.op != HEED_POW) a.Set(3, NAN), a.Set(4, -INFINITY), b.Set(5, NAN), a.Set(80, b[80]);
          RunBinary(k, a, b, layout);
        }
      Random random{5};
      Array a(dtype, {3, 20001}), b(dtype, {3, 20001});
      for (Array* t : {&a, &b})
        for (int64_t i = 0; i < t->Size(); i++)
          t->Set(i, integer ? static_cast<double>(random.Below(9) - 4) : random.Uniform(0.1, 3));
      RunBinary(k, a, b, Layout::kContiguous);
    }
}
/// A value that the mask does not select changes nothing, NaN included; and an operation may write over its operand.
void MasksAndInPlace() {
  for (int32_t dtype : kFloats)
    for (Layout layout : kLayouts)
      for (heed_binary_op op : {HEED_MASK_ZERO, HEED_MASK_NEG_INF}) {
        Array a(dtype, {5, 33}, layout), mask(HEED_BOOL, {5, 33}, Dims{0, 1});
        std::vector<double> want;
        for (int64_t i = 0; i < mask.Size(); i++) mask.Set(i, i % 33 % 3 == 1);
        for (int64_t i = 0; i < a.Size(); i++) {
          a.Set(i, mask[i] ? i : NAN);
          want.push_back(mask[i] ? a[i] : op == HEED_MASK_ZERO ? 0 : -INFINITY);
        }
        heed_binary p = {sizeof p, op, a.View(), mask.View(), a.View()};
        Ok(heed_binary_run(&p), "mask");
        Compare(a, want, 0, 0, "mask");
      }
  for (Layout layout : kLayouts) {
    Array a(HEED_BOOL, {4, 9}, layout), b(HEED_BOOL, {4, 9}), both(HEED_BOOL, {4, 9}, layout), either(HEED_BOOL, {4, 9});
    std::vector<double> want_both, want_either;
    for (int64_t i = 0; i < 36; i++) {
      a.Set(i, i & 1), b.Set(i, (i >> 1) & 1);
      want_both.push_back((i & 3) == 3), want_either.push_back((i & 3) != 0);
    }
    heed_binary p = {sizeof p, HEED_AND, a.View(), b.View(), both.View()},
                q = {sizeof q, HEED_OR, a.View(), b.View(), either.View()};
    Ok(heed_binary_run(&p), "and");
    Ok(heed_binary_run(&q), "or");
    Compare(both, want_both, 0, 0, "and");
    Compare(either, want_either, 0, 0, "or");
  }
}
void Refusals() {
  Array x(HEED_BOOL, {3}), out(HEED_BOOL, {3});
  heed_unary p = {sizeof p, HEED_EXP, x.View(), out.View()};
  Check(heed_unary_run(&p) == HEED_UNSUPPORTED, "exp of bool must be refused");
  p.size = 8;
  Check(heed_unary_run(&p) == HEED_INVALID, "a block of the wrong size must be refused");
  Array empty(HEED_FLOAT32, {0, 4}), none(HEED_FLOAT32, {0, 4});
  heed_unary q = {sizeof q, HEED_EXP, empty.View(), none.View()};
  Ok(heed_unary_run(&q), "an empty tensor");
}
}  // namespace

int main() {
  ForEachIsa([] {
    UnaryCases();
    SpecialValues();
    IntegersAndBools();
    BinaryCases();
    MasksAndInPlace();
    Refusals();
  });
  return Finish();
}
