// Conversions between all dtypes, and copies between all layouts.
#include "check.h"

using namespace heed::check;
namespace {
Array Copy(const Array& x, int32_t dtype, Layout layout) {
  Array out(dtype, x.Shape(), layout);
  heed_copy p = {sizeof p, 0, x.View(), out.View()};
  Ok(heed_copy_run(&p), "copy");
  Check(out.Intact(), "copy wrote outside its output");
  return out;
}
/// What `value` becomes in `dtype`, by the rules of heed_cpu.h.
double Converted(double value, int32_t from, int32_t dtype) {
  uint8_t bytes[8];
  if (dtype == HEED_BOOL) return value != 0;
  if (dtype < HEED_INT32) {
    if (dtype == HEED_BFLOAT16) {  // rounded once: through a float rounded to odd
      float f = static_cast<float>(value);
      uint32_t u;
      memcpy(&u, &f, 4);
      if (f != value && value == value) {
        if (fabs(static_cast<double>(f)) > fabs(value)) u--;
        u |= 1;
      }
      memcpy(&f, &u, 4);
      value = f;
    }
    WriteElement(bytes, dtype, value);
    return ReadElement(bytes, dtype);
  }
  const bool real = from < HEED_INT32;
  if (isnan(value)) return 0;
  const double t = trunc(value);
  if (dtype == HEED_INT64) return t >= 0x1p63 ? 0x1p63 : t <= -0x1p63 ? -0x1p63 : t;
  if (dtype == HEED_INT32) return real ? fmax(-0x1p31, fmin(0x1p31 - 1, t)) : static_cast<int32_t>(static_cast<int64_t>(value));
  return real ? fmax(0, fmin(255, t)) : static_cast<uint8_t>(static_cast<int64_t>(value));
}
void Conversions() {
  const double values[] = {0,
                           -0.0,
                           1,
                           -1,
                           2.5,
                           -2.5,
                           0.999,
                           255,
                           256,
                           300.7,
                           -7,
                           65504,
                           65520,
                           65519.99,
                           2147483647,
                           2147483648.0,
                           -2147483648.0,
                           -3e9,
                           1e19,
                           -1e19,
                           INFINITY,
                           -INFINITY,
                           NAN,
                           1e-8,
                           6e-8,
                           5.9e-8,
                           0x1p-24,
                           0x1p-25,
                           0x1.8p-25,
                           1 + 0x1p-11,
                           1 + 0x1p-11 + 0x1p-40,
                           1 + 0x1p-8 + 0x1p-40,
                           1 + 0x1.8p-8,
                           3.3895e38,
                           3.4e38,
                           1e-40,
                           0x1p-133,
                           16777217,
                           9007199254740993.0,
                           127,
                           128};
  for (int32_t from = 0; from < 8; from++)
    for (int32_t to = 0; to < 8; to++)
      for (Layout layout : kLayouts) {
        Array x(from, {2, sizeof values / sizeof *values}, layout);
        for (int64_t i = 0; i < x.Size(); i++) x.Set(i, Converted(values[i % (x.Size() / 2)], HEED_FLOAT64, from));
        if (from == HEED_INT64)  // the largest double below 2^63 in place of 2^63, which int64 lacks
          for (int64_t i = 0; i < x.Size(); i++)
            if (x[i] == -0x1p63) x.Set(i, values[i % (x.Size() / 2)] > 0 ? 0x1p62 : -0x1p62);
        const Array out = Copy(x, to, layout);
        std::vector<double> want;
        for (double v : x.Values()) want.push_back(Converted(v, from, to));
        Compare(out, want, 0, 0, Name(from));
      }
}
/// An int64 near a rounding boundary of a 16-bit or 32-bit float, beyond what a double holds.
void WideIntegers() {
  const int64_t values[] = {(int64_t{1} << 60) + (int64_t{1} << 52) + 1, (int64_t{1} << 60) + (int64_t{1} << 36) + 1,
                            -(int64_t{1} << 60) - (int64_t{1} << 52) - 1, INT64_MAX, INT64_MIN};
  heed_tensor x = {}, out = {};
  float f[5];
  uint16_t b[5];
  x.data = const_cast<int64_t*>(values), x.dtype = HEED_INT64;
  x.rank = out.rank = 1, x.shape[0] = out.shape[0] = 5, x.strides[0] = out.strides[0] = 1;
  out.data = f, out.dtype = HEED_FLOAT32;
  heed_copy p = {sizeof p, 0, x, out};
  Ok(heed_copy_run(&p), "int64 to float32");
  for (int i = 0; i < 5; i++) Check(f[i] == static_cast<float>(values[i]), "int64 to float32: %a", static_cast<double>(f[i]));
  p.out.data = b, p.out.dtype = HEED_BFLOAT16;
  Ok(heed_copy_run(&p), "int64 to bfloat16");
  const double want[] = {0x1.02p60, 0x1p60, -0x1.02p60, 0x1p63, -0x1p63};
  for (int i = 0; i < 5; i++)
    Check(ReadElement(b + i, HEED_BFLOAT16) == want[i], "int64 to bfloat16: %a, should be %a",
          ReadElement(b + i, HEED_BFLOAT16), want[i]);
}
void Layouts() {
  for (int32_t dtype = 0; dtype < 8; dtype++)
    for (const Dims& shape :
         {Dims{}, Dims{0, 3}, Dims{7}, Dims{3, 5, 2, 4}, Dims{67, 129}, Dims{2, 70, 3, 65}, Dims{1, 1, 40, 1, 41}})
      for (Layout from : kLayouts)
        for (Layout to : kLayouts) {
          Array x(dtype, shape, from);
          for (int64_t i = 0; i < x.Size(); i++) x.Set(i, static_cast<double>(dtype == HEED_BOOL ? i % 3 == 0 : i % 251));
          Compare(Copy(x, dtype, to), x.Values(), 0, 0, "copy");
        }
  Array row(HEED_FLOAT32, {50, 40}, Dims{0, 1}), column(HEED_FLOAT32, {50, 40}, Dims{1, 0}),
      scalar(HEED_FLOAT32, {50, 40}, Dims{0, 0});
  for (Array* x : {&row, &column, &scalar}) {
    for (int64_t i = 0; i < x->Size(); i++) x->Set(i, static_cast<double>(i));
    Compare(Copy(*x, HEED_FLOAT16, Layout::kContiguous), x->Values(), 0, 0, "broadcast");
  }
}
/// Every float16 and bfloat16 survives the way to float32 and back.
void RoundTrips() {
  for (int32_t dtype : {HEED_FLOAT16, HEED_BFLOAT16}) {
    std::vector<uint16_t> bits(65536), back(65536);
    std::vector<float> wide(65536);
    for (int i = 0; i < 65536; i++) bits[i] = static_cast<uint16_t>(i);
    heed_tensor narrow = {}, middle = {};
    narrow.data = bits.data(), narrow.dtype = dtype, middle.data = wide.data(), middle.dtype = HEED_FLOAT32;
    narrow.rank = middle.rank = 1, narrow.shape[0] = middle.shape[0] = 65536, narrow.strides[0] = middle.strides[0] = 1;
    heed_copy p = {sizeof p, 0, narrow, middle};
    Ok(heed_copy_run(&p), "widen");
    narrow.data = back.data();
    heed_copy q = {sizeof q, 0, middle, narrow};
    Ok(heed_copy_run(&q), "narrow");
    int wrong = 0;
    for (int i = 0; i < 65536; i++) {
      const double value = ReadElement(&bits[i], dtype);
      wrong += !Close(wide[i], value, 0) || (!isnan(value) && back[i] != bits[i]) ||
               (isnan(value) && !isnan(ReadElement(&back[i], dtype)));
    }
    Check(wrong == 0, "%s: %d of 65536 do not survive", Name(dtype), wrong);
  }
}
}  // namespace

int main() {
  ForEachIsa([] {
    Conversions();
    WideIntegers();
    Layouts();
    RoundTrips();
  });
  return Finish();
}
