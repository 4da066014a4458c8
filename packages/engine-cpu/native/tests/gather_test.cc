// gather, scatter_add and kv_append against straight loops.
#include "check.h"

using namespace heed::check;
namespace {
Array Indices(int32_t dtype, int64_t n, int64_t rows, int64_t step, uint64_t seed) {
  Random random{seed};
  Array indices(dtype, Dims{n}, Dims{step});
  for (int64_t i = 0; i < n; i++) indices.Set(i, static_cast<double>(random.Below(rows)));
  return indices;
}
void Gather() {
  for (int32_t dtype = 0; dtype < 8; dtype++)
    for (Layout layout : kLayouts)
      for (const Dims& rest : {Dims{}, Dims{70}, Dims{3, 5}, Dims{0}}) {
        Dims x_shape = {9}, out_shape = {40};
        x_shape.insert(x_shape.end(), rest.begin(), rest.end()), out_shape.insert(out_shape.end(), rest.begin(), rest.end());
        Array x(dtype, x_shape, layout), out(dtype, out_shape, layout);
        const Array indices = Indices(dtype % 2 ? HEED_INT32 : HEED_INT64, 40, 9, dtype % 3 - 1, 5);
        for (int64_t i = 0; i < x.Size(); i++) x.Set(i, static_cast<double>(dtype == HEED_BOOL ? i & 1 : i % 200));
        heed_gather p = {sizeof p, 0, x.View(), indices.View(), out.View()};
        Ok(heed_gather_run(&p), "gather");
        Check(out.Intact(), "gather wrote outside its output");
        std::vector<double> want;
        const int64_t n = x.Size() / 9;
        for (int64_t i = 0; i < 40 * n; i++) want.push_back(x[static_cast<int64_t>(indices[i / n]) * n + i % n]);
        Compare(out, want, 0, 0, "gather");
      }
}
/// Rows with the same destination add up in ascending order; a 16-bit sum is rounded once.
void ScatterAdd() {
  for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16, HEED_INT32, HEED_INT64})
    for (Layout layout : kLayouts)
      for (int64_t n : {1, 37, 1030}) {
        Random random{41};
        Array x(dtype, {60, n}, layout), out(dtype, {7, n}, layout);
        for (Array* t : {&x, &out})
          for (int64_t i = 0; i < t->Size(); i++)
            t->Set(i, dtype >= HEED_INT32 ? static_cast<double>(random.Below(100)) : random.Uniform(0, 1));
        const Array indices = Indices(HEED_INT64, 60, 5, 1, 9);  // destinations 5 and 6 stay as they are
        std::vector<double> want = out.Values();
        for (int64_t i = 0; i < 60 * n; i++) {
          double& to = want[static_cast<int64_t>(indices[i / n]) * n + i % n];
          to = dtype == HEED_FLOAT32 ? static_cast<float>(to + x[i]) : to + x[i];
        }
        heed_scatter_add p = {sizeof p, 0, x.View(), indices.View(), out.View()};
        Ok(heed_scatter_add_run(&p), "scatter_add");
        Check(out.Intact(), "scatter_add wrote outside its output");
        Compare(out, want, dtype >= HEED_INT32 || dtype < HEED_FLOAT16 ? 0 : Roundoff(dtype) + 60 * 0x1p-24, 0, "scatter_add");
      }
}
void BadIndices() {
  for (double bad : {-1.0, 9.0, 2147483647.0}) {
    Array x(HEED_FLOAT32, {9, 3}), out(HEED_FLOAT32, {2, 3}), indices(HEED_INT32, {2});
    x.Fill(1), out.Fill(5), indices.Set(0, 3), indices.Set(1, bad);
    heed_gather p = {sizeof p, 0, x.View(), indices.View(), out.View()};
    Check(heed_gather_run(&p) == HEED_INVALID, "gather must refuse index %g", bad);
    heed_scatter_add q = {sizeof q, 0, out.View(), indices.View(), x.View()};
    Check(heed_scatter_add_run(&q) == HEED_INVALID, "scatter_add must refuse index %g", bad);
    Compare(out, std::vector<double>(6, 5), 0, 0, "a refused gather writes nothing");
  }
}
void KvAppend() {
  constexpr int64_t kTokens = 11, kHeads = 3, kPages = 6, kSize = 4;
  for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
    for (int32_t pages : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
      for (Layout layout : kLayouts) {
        Random random{53};
        Array tensors[] = {Array(dtype, {kTokens, kHeads, 20}, layout), Array(dtype, {kTokens, kHeads, 7}, layout)};
        Array stores[] = {Array(pages, {kPages, kHeads, kSize, 20}, layout), Array(pages, {kPages, kHeads, kSize, 7}, layout)};
        Array slots(HEED_INT32, {kTokens});
        for (int64_t t = 0; t < kTokens; t++) slots.Set(t, t == 4 ? -1 : static_cast<double>((t * 7 + 3) % (kPages * kSize)));
        std::vector<double> want[2];
        for (int k = 0; k < 2; k++) {
          tensors[k].FillUniform(random, -1, 1), stores[k].Fill(3);
          want[k] = stores[k].Values();
          const int64_t d = tensors[k].Shape()[2];
          for (int64_t i = 0; i < tensors[k].Size(); i++) {
            const int64_t t = i / d / kHeads, h = i / d % kHeads, slot = static_cast<int64_t>(slots[t]);
            uint8_t bytes[8];
            WriteElement(bytes, pages, tensors[k][i]);
            if (slot >= 0)
              want[k][((slot / kSize * kHeads + h) * kSize + slot % kSize) * d + i % d] = ReadElement(bytes, pages);
          }
        }
        heed_kv_append p = {sizeof p,         0,           tensors[0].View(), tensors[1].View(), stores[0].View(),
                            stores[1].View(), slots.View(), {}, {}, 0};
        Ok(heed_kv_append_run(&p), "kv_append");
        for (int k = 0; k < 2; k++) {
          Check(stores[k].Intact(), "kv_append wrote outside its pages");
          Compare(stores[k], want[k], 0, 0, "kv_append");
        }
        slots.Set(5, kPages * kSize);
        Check(heed_kv_append_run(&p) == HEED_INVALID, "kv_append must refuse a slot past the pages");
      }
}
}  // namespace

int main() {
  ForEachIsa([] {
    Gather();
    ScatterAdd();
    BadIndices();
    KvAppend();
  });
  return Finish();
}
