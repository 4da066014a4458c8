// heed_attention_backward against the formulas of docs/conventions.md in float64 loops: every option, dtype and layout; what is not
// visible changes no bit; neither does the number of threads; scratch is linear in the sequence.
#include "check.h"

namespace heed::check {
namespace {
enum class MaskKind { kNone, kBool, kFloat };
struct Case {
  int32_t dtype = HEED_FLOAT32;
  int64_t batch = 1, queries = 9, keys = 11, heads = 2, key_heads = 1, d = 8, dv = 8;
  double softcap = 0;
  int64_t left = -1, right = -1, sink_tokens = 0;
  int offset_mode = HEED_OFFSET_END;
  bool lengths = false, alibi = false, sinks = false;
  MaskKind mask = MaskKind::kNone;
  int mask_axes = 15;      // bits: batch, head, query, key; a cleared bit is a broadcast axis
  Layout layout = Layout::kContiguous;
  double blind = 0;        // share of the queries that a boolean mask leaves without keys
  double dropout = 0;
};

/// Inputs of a case, with `out` and `lse` computed here, and arrays for the gradients.
struct Problem {
  Case c;
  Array q, k, v, out, lse, d_out, mask, slopes, sinks, lengths, offsets, dq, dk, dv, d_mask, d_sinks;
  heed_attention_backward block = {};

  explicit Problem(const Case& config, uint64_t seed = 1) : c(config) {
    Random random{seed};
    const int32_t acc = c.dtype == HEED_FLOAT64 ? HEED_FLOAT64 : HEED_FLOAT32;
    q = Array(c.dtype, {c.batch, c.queries, c.heads, c.d}, c.layout).FillUniform(random, -2, 2);
    k = Array(c.dtype, {c.batch, c.keys, c.key_heads, c.d}, c.layout).FillUniform(random, -2, 2);
    v = Array(c.dtype, {c.batch, c.keys, c.key_heads, c.dv}, c.layout).FillUniform(random, -1, 1);
    d_out = Array(c.dtype, {c.batch, c.queries, c.heads, c.dv}, c.layout).FillUniform(random, -1, 1);
    out = Array(c.dtype, {c.batch, c.queries, c.heads, c.dv}, c.layout);
    lse = Array(acc, {c.batch, c.heads, c.queries});
    dq = Array(c.dtype, q.Shape(), c.layout);
    dk = Array(c.dtype, k.Shape(), c.layout);
    dv = Array(c.dtype, v.Shape(), c.layout);
    if (c.lengths) {
      lengths = Array(HEED_INT32, {c.batch});
      for (int64_t b = 0; b < c.batch; b++) lengths.Set(b, static_cast<double>(random.Below(c.keys + 1)));
    }
    if (c.offset_mode == HEED_OFFSET_TENSOR) {
      offsets = Array(HEED_INT32, {c.batch});
      for (int64_t b = 0; b < c.batch; b++) offsets.Set(b, static_cast<double>(random.Below(c.keys + 3) - 2));
    }
    if (c.alibi) slopes = Array(acc, {c.heads}, {2}).FillUniform(random, 0, .3);
    if (c.sinks) sinks = Array(acc, {c.heads}, {2}).FillUniform(random, -2, 2), d_sinks = Array(acc, {c.heads}, {2});
    if (c.mask != MaskKind::kNone) MakeMask(random, acc);
    Forward();
    Fill();
  }
  static int64_t Bit(const Case& c, int bit) { return c.mask_axes >> bit & 1; }
  Dims MaskShape() const {
    return {Bit(c, 0) ? c.batch : 1, Bit(c, 1) ? c.heads : 1, Bit(c, 2) ? c.queries : 1, Bit(c, 3) ? c.keys : 1};
  }
  void MakeMask(Random& random, int32_t acc) {
    mask = Array(c.mask == MaskKind::kBool ? HEED_BOOL : acc, MaskShape());
    for (int64_t i = 0; i < mask.Size(); i++) {
      const bool seen = random.Uniform(0, 1) < .7;
      mask.Set(i, c.mask == MaskKind::kBool ? seen : seen ? random.Uniform(-1, 1) : -INFINITY);
    }
    if (c.blind > 0 && Bit(c, 2) && Bit(c, 3))
      for (int64_t row = 0; row < mask.Size() / c.keys; row++)
        if (random.Uniform(0, 1) < c.blind)
          for (int64_t j = 0; j < c.keys; j++) mask.Set(row * c.keys + j, c.mask == MaskKind::kBool ? 0 : -INFINITY);
    if (c.mask == MaskKind::kFloat) d_mask = Array(acc, MaskShape()).Fill(0);
  }
  int64_t MaskIndex(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return mask.Index({Bit(c, 0) ? b : 0, Bit(c, 1) ? h : 0, Bit(c, 2) ? i : 0, Bit(c, 3) ? j : 0});
  }
  int64_t Length(int64_t b) const { return c.lengths ? static_cast<int64_t>(lengths[b]) : c.keys; }
  static constexpr uint64_t kSeed = 0x123456789abcd;
  double Keep(int64_t b, int64_t h, int64_t i, int64_t j) const { return KeepFactor(c.dropout, kSeed, b, h, i, j); }
  double Scale() const { return 1 / sqrt(static_cast<double>(c.d)); }
  static constexpr int64_t kConstantOffset = 3;

  /// Whether query i sees key j; the score and d score / d (q.k) otherwise.
  bool Score(int64_t b, int64_t h, int64_t i, int64_t j, double* score, double* slope) const {
    const int64_t length = Length(b);
    const int64_t offset = c.offset_mode == HEED_OFFSET_END        ? length - c.queries
                           : c.offset_mode == HEED_OFFSET_CONSTANT ? kConstantOffset
                                                                   : static_cast<int64_t>(offsets[b]);
    const int64_t position = offset + i;
    if (j >= length || (c.left >= 0 && j < position - c.left && j >= c.sink_tokens) || (c.right >= 0 && j > position + c.right)) return false;
    if (c.mask == MaskKind::kBool && mask[MaskIndex(b, h, i, j)] == 0) return false;
    if (c.mask == MaskKind::kFloat && mask[MaskIndex(b, h, i, j)] == -INFINITY) return false;
    double s = 0;
    for (int64_t x = 0; x < c.d; x++) s += q[q.Index({b, i, h, x})] * k[k.Index({b, j, h * c.key_heads / c.heads, x})];
    s *= Scale();
    *slope = Scale();
    if (c.softcap > 0) {
      const double t = tanh(s / c.softcap);
      s = c.softcap * t;
      *slope *= 1 - t * t;
    }
    if (c.alibi) s -= slopes[h] * fabs(static_cast<double>(position - j));
    if (c.mask == MaskKind::kFloat) s += mask[MaskIndex(b, h, i, j)];
    *score = s;
    return true;
  }
  void Forward() {
    for (int64_t b = 0; b < c.batch; b++)
      for (int64_t h = 0; h < c.heads; h++)
        for (int64_t i = 0; i < c.queries; i++) {
          double z = c.sinks ? exp(sinks[h]) : 0, s, slope;
          std::vector<double> sum(c.dv, 0.0);
          for (int64_t j = 0; j < c.keys; j++) {
            if (!Score(b, h, i, j, &s, &slope)) continue;
            z += exp(s);
            const double keep = Keep(b, h, i, j);
            for (int64_t x = 0; x < c.dv; x++) sum[x] += keep * exp(s) * v[v.Index({b, j, h * c.key_heads / c.heads, x})];
          }
          lse.Set(lse.Index({b, h, i}), log(z));
          for (int64_t x = 0; x < c.dv; x++) out.Set(out.Index({b, i, h, x}), z > 0 ? sum[x] / z : 0);
        }
  }
  void Fill() {
    heed_attention_backward& p = block;
    p.size = sizeof p;
    p.scores.scale = Scale();
    p.scores.softcap = c.softcap;
    p.scores.window_left = c.left;
    p.scores.window_right = c.right;
    p.scores.sink_tokens = c.sink_tokens;
    p.scores.query_offset = kConstantOffset;
    p.scores.offset_mode = c.offset_mode;
    SetDropout(p.scores, c.dropout, kSeed);
    p.scores.mask = mask.View();
    for (int bit = 0; bit < 4; bit++)
      if (!Bit(c, bit)) p.scores.mask.strides[bit] = 0;
    const int64_t full[4] = {c.batch, c.heads, c.queries, c.keys};
    memcpy(p.scores.mask.shape, full, sizeof full);
    p.scores.alibi_slopes = slopes.View();
    p.scores.sinks = sinks.View();
    p.scores.kv_lengths = lengths.View();
    p.scores.query_offsets = offsets.View();
    p.q = q.View(), p.k = k.View(), p.v = v.View(), p.out = out.View(), p.lse = lse.View(), p.d_out = d_out.View();
    p.dq = dq.View(), p.dk = dk.View(), p.dv = dv.View(), p.d_mask = d_mask.View(), p.d_sinks = d_sinks.View();
    if (d_mask.Size() > 0 && p.d_mask.data != nullptr) {
      memcpy(p.d_mask.shape, p.scores.mask.shape, sizeof p.d_mask.shape);
      memcpy(p.d_mask.strides, p.scores.mask.strides, sizeof p.d_mask.strides);
    }
  }
};

/// A gradient and the sum of the magnitudes of its terms, which bounds its rounding error.
struct Sum {
  std::vector<double> value, size;
  explicit Sum(int64_t n) : value(n, 0.0), size(n, 0.0) {}
  void Add(int64_t i, double x, double magnitude) { value[i] += x, size[i] += magnitude; }
};
struct Gradients {
  Sum dq, dk, dv, d_mask, d_sinks;
  explicit Gradients(const Problem& p)
      : dq(p.dq.Size()), dk(p.dk.Size()), dv(p.dv.Size()), d_mask(p.d_mask.Size()), d_sinks(p.d_sinks.Size()) {}
};
Gradients Oracle(const Problem& p) {
  Gradients g(p);
  const Case& c = p.c;
  for (int64_t b = 0; b < c.batch; b++)
    for (int64_t h = 0; h < c.heads; h++)
      for (int64_t i = 0; i < c.queries; i++) {
        const int64_t kh = h * c.key_heads / c.heads;
        const double lse = p.lse[p.lse.Index({b, h, i})];
        double delta = 0, delta_size = 0;
        for (int64_t x = 0; x < c.dv; x++) {
          const double term = p.d_out[p.d_out.Index({b, i, h, x})] * p.out[p.out.Index({b, i, h, x})];
          delta += term, delta_size += fabs(term);
        }
        if (lse == -INFINITY) continue;
        if (c.sinks) g.d_sinks.Add(h, -exp(p.sinks[h] - lse) * delta, exp(p.sinks[h] - lse) * delta_size);
        for (int64_t j = 0; j < c.keys; j++) {
          double s, slope;
          if (!p.Score(b, h, i, j, &s, &slope)) continue;
          const double prob = exp(s - lse);
          double dp = 0, dp_size = 0;
          const double keep = p.Keep(b, h, i, j);
          for (int64_t x = 0; x < c.dv; x++) {
            const double o = keep * p.d_out[p.d_out.Index({b, i, h, x})], term = o * p.v[p.v.Index({b, j, kh, x})];
            dp += term, dp_size += fabs(term);
            g.dv.Add(p.dv.Index({b, j, kh, x}), prob * o, prob * fabs(o));
          }
          const double ds = prob * (dp - delta), ds_size = prob * (dp_size + delta_size);
          if (p.d_mask.Size() > 0 && c.mask == MaskKind::kFloat) g.d_mask.Add(p.MaskIndex(b, h, i, j), ds, ds_size);
          for (int64_t x = 0; x < c.d; x++) {
            const double qx = p.q[p.q.Index({b, i, h, x})], kx = p.k[p.k.Index({b, j, kh, x})];
            g.dq.Add(p.dq.Index({b, i, h, x}), ds * slope * kx, ds_size * p.Scale() * fabs(kx));
            g.dk.Add(p.dk.Index({b, j, kh, x}), ds * slope * qx, ds_size * p.Scale() * fabs(qx));
          }
        }
      }
  return g;
}
std::string Words(const Case& c, const char* what) {
  char text[300];
  snprintf(text, sizeof text,
           "%s of %s [%ld, %ld, %ld] heads %ld/%ld d %ld/%ld cap %g window %ld/%ld+%ld offset %d lengths %d alibi %d sinks %d mask %d axes %d "
           "layout %d dropout %g",
           what, Name(c.dtype), (long)c.batch, (long)c.queries, (long)c.keys, (long)c.heads, (long)c.key_heads, (long)c.d, (long)c.dv,
           c.softcap, (long)c.left, (long)c.right, (long)c.sink_tokens, c.offset_mode, c.lengths, c.alibi, c.sinks, (int)c.mask, c.mask_axes, (int)c.layout, c.dropout);
  return text;
}
/// Within 2 roundings of the storage type and `units` of the arithmetic's on the sum of magnitudes.
void Same(const Array& got, const Sum& want, const Case& c, const char* what) {
  const double unit = c.dtype == HEED_FLOAT64 ? 0x1p-53 : 0x1p-24, units = 64;
  double worst = 0;
  int64_t at = -1;
  for (int64_t i = 0; i < got.Size(); i++) {
    const double tolerance = 2 * Roundoff(got.DType()) * fabs(want.value[i]) + units * unit * want.size[i] + (c.dtype == HEED_FLOAT16 ? 0x1p-24 : 1e-30);
    const double excess = Close(got[i], want.value[i], tolerance) ? 0 : isnan(got[i]) ? INFINITY : fabs(got[i] - want.value[i]) / tolerance;
    if (excess > worst) worst = excess, at = i;
  }
  Check(at < 0, "%s: element %ld is %.9g, should be %.9g, %.3g times the tolerance", Words(c, what).c_str(), (long)at, at < 0 ? 0 : got[at],
        at < 0 ? 0 : want.value[at], worst);
  Check(got.Intact(), "%s: wrote beside it", Words(c, what).c_str());
}
void RunCase(const Case& c) {
  Problem p(c);
  if (!Ok(heed_attention_backward_run(&p.block), Words(c, "run").c_str())) return;
  const Gradients want = Oracle(p);
  Same(p.dq, want.dq, c, "dq");
  Same(p.dk, want.dk, c, "dk");
  Same(p.dv, want.dv, c, "dv");
  if (c.sinks) Same(p.d_sinks, want.d_sinks, c, "d_sinks");
  if (c.mask == MaskKind::kFloat) Same(p.d_mask, want.d_mask, c, "d_mask");
}

void Sizes() {
  for (const int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16}) {
    for (const int64_t d : {1, 5, 16, 40, 130}) RunCase({dtype, 1, 13, 21, 4, 2, d, d + 3});
    for (const int64_t queries : {1, 2, 7, 97, 140})
      for (const int64_t keys : {1, 6, 127, 131, 270}) {
        RunCase({.dtype = dtype, .queries = queries, .keys = keys, .heads = 3, .key_heads = 1, .d = 8, .dv = 4, .right = 0});
      }
    RunCase({.dtype = dtype, .batch = 2, .queries = 3, .keys = 9, .heads = 100, .key_heads = 1});
    for (const int64_t group : {5, 7, 49}) RunCase({.dtype = dtype, .queries = 41, .keys = 140, .heads = group, .key_heads = 1, .right = 0});
    RunCase({.dtype = dtype, .batch = 2, .queries = 20, .keys = 600, .heads = 7, .key_heads = 7, .right = 0});
    for (const Layout layout : kLayouts)
      RunCase({.dtype = dtype, .batch = 2, .queries = 33, .keys = 35, .heads = 4, .key_heads = 2, .d = 19, .dv = 34, .right = 0, .layout = layout});
  }
}
void Options() {
  for (const int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32})
    for (const double softcap : {0.0, 1.5})
      for (const int64_t left : {-1, 0, 5})
        for (const int64_t right : {-1, 0, 3})
          for (const int mode : {HEED_OFFSET_END, HEED_OFFSET_CONSTANT, HEED_OFFSET_TENSOR})
            for (const bool extras : {false, true})
              RunCase({.dtype = dtype, .batch = 2, .queries = 25, .keys = 30, .heads = 4, .key_heads = 2, .softcap = softcap, .left = left,
                       .right = right, .offset_mode = mode, .lengths = extras, .alibi = extras, .sinks = extras});
}
/// The first keys and the last ones, in blocks of keys that hold both, one of them, and neither.
void SinkTokens() {
  for (const int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_BFLOAT16})
    for (const int64_t sinks : {1, 4, 128, 150})
      for (const int64_t left : {0, 20, 200}) {
        RunCase({.dtype = dtype, .queries = 290, .keys = 400, .heads = 2, .key_heads = 1, .left = left, .right = 0, .sink_tokens = sinks});
        RunCase({.dtype = dtype, .batch = 2, .queries = 120, .keys = 300, .heads = 4, .key_heads = 2, .softcap = 1.5, .left = left, .right = 3,
                 .sink_tokens = sinks, .offset_mode = HEED_OFFSET_TENSOR, .lengths = true, .sinks = true, .mask = MaskKind::kFloat, .blind = .2, .dropout = .1});
      }
}
void Masks() {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kFloat})
    for (int axes = 0; axes < 16; axes++) {
      for (const int64_t key_heads : {1, 2})
        RunCase({.batch = 2, .queries = 27, .keys = 37, .heads = 6, .key_heads = key_heads, .mask = kind, .mask_axes = axes, .blind = .3});
      RunCase({.dtype = HEED_FLOAT16, .batch = 2, .queries = 130, .keys = 150, .heads = 2, .key_heads = 1, .softcap = 2, .right = 0, .lengths = true,
               .alibi = true, .sinks = true, .mask = kind, .mask_axes = axes, .blind = .3});
    }
  RunCase({.dtype = HEED_FLOAT64, .queries = 40, .keys = 300, .softcap = 1, .sinks = true, .mask = MaskKind::kFloat, .blind = .5});
}
void Dropout() {
  for (const int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
    for (const double dropout : {.1, .5}) {
      for (const int64_t keys : {1, 6, 131, 270})
        RunCase({.dtype = dtype, .batch = 2, .queries = 97, .keys = keys, .heads = 6, .key_heads = 2, .right = 0, .dropout = dropout});
      RunCase({.dtype = dtype, .batch = 2, .queries = 40, .keys = 150, .heads = 4, .key_heads = 2, .softcap = 1.5, .left = 33, .right = 5,
               .lengths = true, .alibi = true, .sinks = true, .mask = MaskKind::kFloat, .mask_axes = 8, .blind = .2, .dropout = dropout});
    }
}
/// All gradients, after a run.
std::vector<double> Run(Problem& p) {
  if (p.d_mask.Size() > 0 && p.c.mask == MaskKind::kFloat) p.d_mask.Fill(0);
  Ok(heed_attention_backward_run(&p.block), Words(p.c, "run").c_str());
  std::vector<double> all = p.dq.Values();
  for (const Array* array : {&p.dk, &p.dv}) {
    const std::vector<double> more = array->Values();
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}
/// The keys of one head that a boolean mask hides from everyone, the keys beyond the length, and queries that see nothing hold NaN
/// and infinities in the second run: the same bits. A key that only later queries see (causal) leaves the earlier ones alone.
void Poison() {
  for (const int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16})
    for (const double poison : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
      const double dropout = dtype == HEED_FLOAT64 || dtype == HEED_FLOAT16 ? .3 : 0;
      const Case c = {.dtype = dtype, .batch = 2, .queries = 120, .keys = 140, .heads = 4, .key_heads = 2, .d = 20, .dv = 12, .right = 0,
                      .lengths = true, .mask = MaskKind::kBool, .mask_axes = 4 | 8, .blind = .2, .dropout = dropout};
      Problem p(c);
      for (int64_t i = 0; i < c.queries; i++) p.mask.Set(i * c.keys + 17, 0);
      p.Forward();
      const std::vector<double> clean = Run(p);
      for (int64_t b = 0; b < c.batch; b++)
        for (int64_t h = 0; h < c.key_heads; h++)
          for (int64_t j = 0; j < c.keys; j++)
            if (j == 17 || j >= p.Length(b)) {
              for (int64_t x = 0; x < c.d; x++) p.k.Set(p.k.Index({b, j, h, x}), poison);
              for (int64_t x = 0; x < c.dv; x++) p.v.Set(p.v.Index({b, j, h, x}), poison);
            }
      Check(clean == Run(p), "%s: hidden keys changed a gradient", Name(dtype));
      for (int64_t b = 0; b < c.batch; b++)
        for (int64_t h = 0; h < c.heads; h++)
          for (int64_t i = 0; i < c.queries; i++)
            if (p.lse[p.lse.Index({b, h, i})] == -INFINITY) {
              for (int64_t x = 0; x < c.d; x++) p.q.Set(p.q.Index({b, i, h, x}), poison);
              for (int64_t x = 0; x < c.dv; x++) p.d_out.Set(p.d_out.Index({b, i, h, x}), poison);
            }
      Check(clean == Run(p), "%s: queries that see nothing changed a gradient", Name(dtype));
    }
  Case c = {.queries = 140, .keys = 140, .heads = 1, .d = 20, .right = 0};
  Problem p(c);
  Run(p);
  const std::vector<double> clean = p.dq.Values(), clean_dk = p.dk.Values();
  p.k.Set(p.k.Index({0, 50, 0, 3}), NAN);
  p.q.Set(p.q.Index({0, 100, 0, 2}), NAN);
  Run(p);
  bool same = true, spread = true;
  for (int64_t i = 0; i < 50 * c.d; i++) same &= clean[i] == p.dq[i];
  for (int64_t j = 101 * c.d; j < 140 * c.d; j++) same &= clean_dk[j] == p.dk[j];
  for (int64_t x = 0; x < c.d; x++) spread &= isnan(p.dq[50 * c.d + x]) && isnan(p.dk[100 * c.d + x]);
  Check(same, "queries before a NaN key, and keys after a NaN query, keep their bits");
  Check(spread, "a NaN reaches what sees it");
}
/// A d_out of NaN reaches the dv of the keys whose weights its row keeps, and of no others.
void DroppedPoison() {
  const Case c = {.queries = 5, .keys = 140, .heads = 1, .d = 8, .dv = 8, .dropout = .5};
  Problem p(c);
  p.d_out.Set(p.d_out.Index({0, 3, 0, 2}), NAN);
  Run(p);
  bool exact = true;
  for (int64_t j = 0; j < c.keys; j++) exact &= isnan(p.dv[p.dv.Index({0, j, 0, 2})]) == (p.Keep(0, 0, 3, j) != 0);
  Check(exact, "a NaN in d_out shows where its row's weight is kept, and nowhere else");
}
void Threads() {
  for (const int64_t key_heads : {1, 4}) {
    const Case c = {.batch = 2, .queries = 150, .keys = 1100, .heads = 4, .key_heads = key_heads, .d = 16, .dv = 16, .right = 0, .sinks = true,
                    .mask = MaskKind::kFloat, .mask_axes = 8};
    Problem p(c);
    Ok(heed_set_threads(1), "set_threads");
    const std::vector<double> one = Run(p), mask = p.d_mask.Values();
    Ok(heed_set_threads(7), "set_threads");
    Check(one == Run(p) && mask == p.d_mask.Values(), "%ld key heads: the number of threads changed a gradient", (long)key_heads);
    Ok(heed_set_threads(0), "set_threads");
  }
}
void Memory() {
  heed_scratch_release();
  const int64_t n = 32768, d = 64;
  std::vector<float> x(n * d, .01f), zero(n * d), lse(n, logf(static_cast<float>(n)));
  const auto tensor = [&](float* data) {
    heed_tensor t = {data, {1, n, 1, d}, {n * d, d, d, 1}, HEED_FLOAT32, 4};
    return t;
  };
  heed_attention_backward p = {};
  p.size = sizeof p;
  p.scores.scale = .125;
  p.scores.window_left = 64;  // the memory is that of the full width, the time is not
  p.scores.window_right = 0;
  std::vector<float> dq(n * d), dk(n * d), dv(n * d);
  p.q = p.k = p.v = p.out = p.d_out = tensor(x.data());
  p.dq = tensor(dq.data()), p.dk = tensor(dk.data()), p.dv = tensor(dv.data());
  p.lse = {lse.data(), {1, 1, n}, {n, n, 1}, HEED_FLOAT32, 3};
  Ok(heed_attention_backward_run(&p), "32768 tokens");
  Check(heed_scratch_bytes() < 100u << 20, "32768 tokens took %lu bytes of scratch", (unsigned long)heed_scratch_bytes());
  heed_scratch_release();
}
}  // namespace
}  // namespace heed::check

int main() {
  using namespace heed::check;
  ForEachIsa([] {
    Sizes();
    Options();
    SinkTokens();
    Masks();
    Dropout();
    Poison();
    DroppedPoison();
    Threads();
    Memory();
  });
  return Finish();
}
