// Norm, rotation and append in one call against the three calls it stands for: the same bits, in pages and queries.
#include "check.h"

using namespace heed::check;
namespace {
constexpr int64_t kP = 3, kPageSize = 4, kRows = 40;
enum class Over { kNone, kHead, kAll };
struct Case {
  int32_t dtype, page_dtype;
  int64_t tokens, hq, hkv, d, dv, rotary;  // rotary -1: no rotation
  int pairing;
  Over q_norm, k_norm;
  bool unit_offset;
  Layout layout;
};
int32_t Wide(int32_t dtype) { return dtype == HEED_FLOAT64 ? HEED_FLOAT64 : HEED_FLOAT32; }

struct Rows {
  Array q, k, v;
};
struct Problem {
  Case c;
  Rows rows;
  Array q_weight, k_weight, cosines, sines, positions, slots;
  Problem(const Case& c, Random& random) : c(c) {
    const auto fill = [&](int32_t dtype, const Dims& shape) { return Array(dtype, shape, c.layout).FillUniform(random, -2, 2); };
    rows = {fill(c.dtype, {c.tokens, c.hq, c.d}), fill(c.dtype, {c.tokens, c.hkv, c.d}), fill(c.dtype, {c.tokens, c.hkv, c.dv})};
    const auto weight = [&](Over over, int64_t heads) {
      return over == Over::kNone ? Array() : fill(Wide(c.dtype), {over == Over::kHead ? c.d : heads * c.d});
    };
    q_weight = weight(c.q_norm, c.hq), k_weight = weight(c.k_norm, c.hkv);
    if (c.rotary >= 0) cosines = fill(Wide(c.dtype), {kRows, c.rotary / 2}), sines = fill(Wide(c.dtype), {kRows, c.rotary / 2});
    positions = Array(HEED_INT32, {c.tokens}, c.layout), slots = Array(HEED_INT32, {c.tokens}, c.layout);
    for (int64_t t = 0; t < c.tokens; t++) {
      positions.Set(t, static_cast<double>(random.Below(kRows)));
      slots.Set(t, t % 3 == 2 ? -1 : static_cast<double>((t * 5 + 1) % (kP * kPageSize)));
    }
  }
  Array Pages(int64_t width) const { return Array(c.page_dtype, {kP, c.hkv, kPageSize, width}, c.layout).Fill(-7); }
  /// x [T, H, D] normalised and rotated by the calls for that, dense.
  Array Apart(const Array& x, const Array& weight, Over over) const {
    const int64_t H = x.Shape()[1], rows = over == Over::kAll ? 1 : H, n = H * c.d / rows;
    Array dense(c.dtype, {c.tokens, H, c.d});
    for (int64_t i = 0; i < x.Size(); i++) dense.Set(i, x[i]);
    heed_tensor view = dense.View();
    if (over != Over::kNone) {
      view.rank = 4;
      const int64_t shape[] = {1, c.tokens, rows, n}, strides[] = {0, H * c.d, n, 1};
      for (int i = 0; i < 4; i++) view.shape[i] = shape[i], view.strides[i] = strides[i];
      heed_rms_norm p = {sizeof p, c.unit_offset, 1e-5, view, weight.View(), view};
      Ok(heed_rms_norm_run(&p), "rms_norm");
    }
    if (c.rotary < 0) return dense;
    const int64_t shape[] = {1, c.tokens, H, c.d}, strides[] = {0, H * c.d, c.d, 1};
    view.rank = 4;
    for (int i = 0; i < 4; i++) view.shape[i] = shape[i], view.strides[i] = strides[i];
    heed_tensor at = positions.View();
    at.rank = 2, at.shape[1] = at.shape[0], at.strides[1] = at.strides[0], at.shape[0] = 1, at.strides[0] = 0;
    heed_rope p = {sizeof p, c.pairing, static_cast<int32_t>(c.rotary), 0, view, view, cosines.View(), sines.View(), at};
    Ok(heed_rope_run(&p), "rope");
    return dense;
  }
};
heed_norm_rope_append Block(const Problem& p, const Array& out, const Array& k_pages, const Array& v_pages) {
  heed_norm_rope_append b = {};
  b.size = sizeof b, b.unit_offset = p.c.unit_offset, b.eps = 1e-5;
  b.pairing = p.c.pairing, b.rotary_dim = p.c.rotary < 0 ? 0 : static_cast<int32_t>(p.c.rotary);
  b.q = p.rows.q.View(), b.k = p.rows.k.View(), b.v = p.rows.v.View(), b.out = out.View();
  b.q_weight = p.q_weight.View(), b.k_weight = p.k_weight.View();
  if (p.c.rotary >= 0) b.cos = p.cosines.View(), b.sin = p.sines.View(), b.positions = p.positions.View();
  b.k_pages = k_pages.View(), b.v_pages = v_pages.View(), b.slots = p.slots.View();
  return b;
}
void Run(const Case& c) {
  Random random{83};
  Problem p(c, random);
  Array k_pages = p.Pages(c.d), v_pages = p.Pages(c.dv), want_k = p.Pages(c.d), want_v = p.Pages(c.dv);
  Array out(c.dtype, {c.tokens, c.hq, c.d}, c.layout);
  const Array q = p.Apart(p.rows.q, p.q_weight, c.q_norm), k = p.Apart(p.rows.k, p.k_weight, c.k_norm);
  heed_kv_append append = {sizeof append, 0, k.View(), p.rows.v.View(), want_k.View(), want_v.View(), p.slots.View(), {}, {}, 0};
  Ok(heed_kv_append_run(&append), "kv_append");
  for (int threads : {1, 2}) {
    heed_set_threads(threads);
    k_pages.Fill(-7), v_pages.Fill(-7), out.Fill(99);
    heed_norm_rope_append b = Block(p, out, k_pages, v_pages);
    Ok(heed_norm_rope_append_run(&b), "norm_rope_append");
    Compare(out, q.Values(), 0, 0, "queries");
    Compare(k_pages, want_k.Values(), 0, 0, "key pages");
    Compare(v_pages, want_v.Values(), 0, 0, "value pages");
  }
  Check(out.Intact() && k_pages.Intact() && v_pages.Intact(), "norm_rope_append wrote beside its outputs");
}
/// A call that is refused leaves everything as it was.
void Refusals() {
  Random random{5};
  const Case c = {HEED_FLOAT32, HEED_FLOAT32, 2, 2, 1, 8, 8, 8, HEED_PAIRS_HALF, Over::kHead, Over::kHead, false, Layout::kContiguous};
  Problem p(c, random);
  Array k_pages = p.Pages(c.d), v_pages = p.Pages(c.dv), out(c.dtype, {c.tokens, c.hq, c.d});
  out.Fill(99);
  const auto refused = [&](const heed_norm_rope_append& b, int32_t status, const char* what) {
    Check(heed_norm_rope_append_run(&b) == status, "%s must be refused", what);
    bool same = true;
    for (double x : k_pages.Values()) same &= x == -7;
    for (double x : v_pages.Values()) same &= x == -7;
    for (double x : out.Values()) same &= x == 99;
    Check(same, "%s must write nothing", what);
  };
  heed_norm_rope_append b = Block(p, out, k_pages, v_pages);
  p.slots.Set(1, kP * kPageSize);
  refused(b, HEED_INVALID, "a slot past the pages");
  p.slots.Set(1, -2);
  refused(b, HEED_INVALID, "a slot below -1");
  p.slots.Set(1, 3);
  p.positions.Set(1, kRows);
  refused(b, HEED_INVALID, "a position past the tables");
  p.positions.Set(1, -1);
  refused(b, HEED_INVALID, "a position below 0");
  p.positions.Set(1, 0);
  b.k.dtype = HEED_FLOAT16;
  refused(b, HEED_UNSUPPORTED, "keys of another dtype");
  b.k.dtype = HEED_FLOAT32, b.v_pages.dtype = HEED_INT32;
  refused(b, HEED_UNSUPPORTED, "integer pages");
  b.v_pages.dtype = HEED_FLOAT32, b.size--;
  refused(b, HEED_INVALID, "a block of another size");
}
}  // namespace

int main() {
  ForEachIsa([] {
    for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
      for (int32_t pages : {dtype, int32_t{HEED_FLOAT32}, int32_t{HEED_BFLOAT16}})
        for (Layout layout : kLayouts)
          for (int64_t d : {2, 5, 16, 34, 128, 600})
            for (Over norm : {Over::kNone, Over::kHead, Over::kAll}) {
              const int pairing = d % 3 == 1 ? HEED_PAIRS_INTERLEAVED : HEED_PAIRS_HALF;
              const Over other = norm == Over::kNone ? Over::kNone : norm == Over::kHead ? Over::kAll : Over::kHead;
              Run({dtype, pages, 1, 3, 1, d, d, d / 2 * 2, pairing, norm, norm, false, layout});
              Run({dtype, pages, 7, 3, 2, d, 5, d / 4 * 2, 1 - pairing, norm, other, true, layout});
              if (d == 34) Run({dtype, pages, 2, 3, 1, d, d, -1, pairing, norm, norm, true, layout});
            }
    // Enough tokens for several tasks.
    Run({HEED_FLOAT32, HEED_FLOAT16, 8, 40, 10, 128, 128, 128, HEED_PAIRS_HALF, Over::kHead, Over::kHead, false, Layout::kContiguous});
    Refusals();
  });
  heed_set_threads(0);
  return Finish();
}
