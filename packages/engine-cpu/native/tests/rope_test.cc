// Rotary position embedding against a straight loop.
#include "check.h"

using namespace heed::check;
namespace {
constexpr int64_t kB = 2, kS = 5, kH = 3, kP = 40;
struct Case {
  int32_t dtype;
  int64_t d, rotary;
  int pairing;
  Layout layout;
};

void Tables(const Case& c, Array& cosines, Array& sines) {
  for (int64_t i = 0; i < cosines.Size(); i++) {
    const int64_t half = c.rotary / 2;
    const double angle =
        static_cast<double>(i / half) * pow(10000, -2.0 * static_cast<double>(i % half) / static_cast<double>(c.rotary));
    cosines.Set(i, cos(angle)), sines.Set(i, sin(angle));
  }
}
void Rotate(const Case& c) {
  Random random{61};
  const Dims shape = {kB, kS, kH, c.d};
  const int32_t table = c.dtype == HEED_FLOAT64 ? HEED_FLOAT64 : HEED_FLOAT32;
  Array x(c.dtype, shape, c.layout), out(c.dtype, shape, c.layout), back(c.dtype, shape, c.layout);
  Array cosines(table, {kP, c.rotary / 2}, c.layout), sines(table, {kP, c.rotary / 2}, c.layout),
      positions(HEED_INT32, {kB, kS}, c.layout);
  x.FillUniform(random, -1, 1);
  Tables(c, cosines, sines);
  for (int64_t i = 0; i < kB * kS; i++) positions.Set(i, static_cast<double>(random.Below(kP)));
  heed_rope p = {sizeof p,     c.pairing,       static_cast<int32_t>(c.rotary), 0, x.View(), out.View(), cosines.View(),
                 sines.View(), positions.View()};
  Ok(heed_rope_run(&p), "rope");
  Check(out.Intact(), "rope wrote outside its output");
  std::vector<double> want = x.Values();
  for (int64_t head = 0; head < kB * kS * kH; head++)
    for (int64_t j = 0; j < c.rotary / 2; j++) {
      const int64_t row = static_cast<int64_t>(positions[head / kH]) * (c.rotary / 2) + j;
      const int64_t first = head * c.d + (c.pairing == HEED_PAIRS_HALF ? j : 2 * j),
                    second = first + (c.pairing == HEED_PAIRS_HALF ? c.rotary / 2 : 1);
      want[first] = x[first] * cosines[row] - x[second] * sines[row];
      want[second] = x[second] * cosines[row] + x[first] * sines[row];
    }
  Compare(out, want, 1.001 * Roundoff(c.dtype), 3 * Roundoff(table), "rope");
  // The inverse, in place: back to x, to the roundings of both ways.
  heed_rope q = {sizeof q,     c.pairing,       static_cast<int32_t>(c.rotary), 1, out.View(), out.View(), cosines.View(),
                 sines.View(), positions.View()};
  Ok(heed_rope_run(&q), "inverse rope");
  Compare(out, x.Values(), 0, 4 * Roundoff(c.dtype) + 6 * Roundoff(table), "inverse rope");
  positions.Set(3, kP);
  Check(heed_rope_run(&p) == HEED_INVALID, "a position outside the tables must be refused");
}
}  // namespace

int main() {
  ForEachIsa([] {
    for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
      for (int pairing : {HEED_PAIRS_HALF, HEED_PAIRS_INTERLEAVED})
        for (Layout layout : kLayouts) {
          for (int64_t d : {2, 34, 128, 1100}) Rotate({dtype, d, d, pairing, layout});
          Rotate({dtype, 96, 32, pairing, layout});
          Rotate({dtype, 5, 4, pairing, layout});
        }
  });
  return Finish();
}
