// Attention forward against a straight double loop, over every option, dtype, stride and path: rows that decode, split, or are packed.
#include <algorithm>

#include "check.h"
using namespace heed::check;

namespace {
struct Case {
  int32_t dtype = HEED_FLOAT32;
  int64_t B = 1, S = 1, Sk = 1, Hkv = 1, G = 1, D = 8, Dv = 8;
  Layout layout = Layout::kContiguous;
  double scale = 0, softcap = 0;  // scale 0: 1 / sqrt(D)
  int64_t left = -1, right = -1, sink_tokens = 0;
  int32_t offset_mode = HEED_OFFSET_END;
  int64_t offset = 0;
  int32_t mask = -1;            // dtype of the mask; -1: none
  Dims mask_ones = {};          // axes along which the mask is broadcast
  bool alibi = false, sinks = false, lengths = false, lse = true;
  double dropout = 0;
  uint64_t seed = 0;            // of dropout
  int nan_keys = 0;             // keys and values made NaN or Inf wherever they are; rows that see them turn NaN
};

struct Problem {
  Case c;
  Array q, k, v, out, lse, mask, alibi, sinks, lengths, offsets;
  std::vector<double> want_out, want_lse;

  Problem(const Case& of, Random& random) : c(of) {
    const int32_t acc = c.dtype == HEED_FLOAT64 ? HEED_FLOAT64 : HEED_FLOAT32;
    const int64_t Hq = c.Hkv * c.G;
    q = Array(c.dtype, {c.B, c.S, Hq, c.D}, c.layout).FillUniform(random, -2, 2);
    k = Array(c.dtype, {c.B, c.Sk, c.Hkv, c.D}, c.layout).FillUniform(random, -2, 2);
    v = Array(c.dtype, {c.B, c.Sk, c.Hkv, c.Dv}, c.layout).FillUniform(random, -2, 2);
    out = Array(c.dtype, {c.B, c.S, Hq, c.Dv}, c.layout);
    if (c.lse) lse = Array(acc, {c.B, Hq, c.S}, c.layout);
    if (c.alibi) alibi = Array(acc, {Hq}).FillUniform(random, 0, 0.5);
    if (c.sinks) sinks = Array(acc, {Hq}).FillUniform(random, -3, 3);
    if (c.lengths) {
      lengths = Array(HEED_INT32, {c.B});
      for (int64_t b = 0; b < c.B; b++) lengths.Set(b, random.Below(c.Sk + 1));
    }
    if (c.offset_mode == HEED_OFFSET_TENSOR) {
      offsets = Array(HEED_INT32, {c.B});
      for (int64_t b = 0; b < c.B; b++) offsets.Set(b, random.Below(c.Sk + 2) - 1);
    }
    if (c.mask >= 0) MakeMask(random);
    Reference reference(*this);
    // What no row of a key head's group sees is poison; some that rows see, when asked for.
    for (int64_t b = 0; b < c.B; b++)
      for (int64_t j = 0; j < c.Sk; j++)
        for (int64_t h = 0; h < c.Hkv; h++)
          if (!reference.SeenByAny(b, h, j)) SetKey(b, j, h, NAN, random.Below(2) ? NAN : INFINITY);
    for (int i = 0; i < c.nan_keys; i++)
      SetKey(random.Below(c.B), random.Below(c.Sk), random.Below(c.Hkv), i % 2 ? NAN : 1.0, i % 3 ? -INFINITY : NAN);
    reference.Run(&want_out, &want_lse);
  }
  void SetKey(int64_t b, int64_t j, int64_t h, double key, double value) {
    for (int64_t d = 0; d < c.D; d++) k.Set(k.Index({b, j, h, d}), key);
    for (int64_t d = 0; d < c.Dv; d++) v.Set(v.Index({b, j, h, d}), value);
  }
  void MakeMask(Random& random) {
    Dims shape = {c.B, c.Hkv * c.G, c.S, c.Sk};
    for (int64_t axis : c.mask_ones) shape[axis] = 1;
    mask = Array(c.mask, shape, c.layout);
    for (int64_t i = 0; i < mask.Size(); i++) {
      const bool hidden = random.Below(3) == 0;
      mask.Set(i, c.mask == HEED_BOOL ? !hidden : hidden ? -INFINITY : random.Uniform(-2, 2));
    }
  }
  double MaskAt(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const Dims& s = mask.Shape();
    return mask[mask.Index({s[0] == 1 ? 0 : b, s[1] == 1 ? 0 : h, s[2] == 1 ? 0 : i, s[3] == 1 ? 0 : j})];
  }

  struct Reference {
    const Problem& p;
    explicit Reference(const Problem& of) : p(of) {}
    int64_t Length(int64_t b) const { return p.c.lengths ? static_cast<int64_t>(p.lengths[b]) : p.c.Sk; }
    int64_t Position(int64_t b, int64_t i) const {
      const Case& c = p.c;
      const int64_t offset = c.offset_mode == HEED_OFFSET_END        ? Length(b) - c.S
                             : c.offset_mode == HEED_OFFSET_CONSTANT ? c.offset
                                                                     : static_cast<int64_t>(p.offsets[b]);
      return offset + i;
    }
    bool Sees(int64_t b, int64_t h, int64_t i, int64_t j) const {
      const int64_t at = Position(b, i);
      if (j >= Length(b)) return false;
      if (p.c.left >= 0 && j < at - p.c.left && j >= p.c.sink_tokens) return false;
      if (p.c.right >= 0 && j > at + p.c.right) return false;
      if (p.c.mask < 0) return true;
      return p.c.mask == HEED_BOOL ? p.MaskAt(b, h, i, j) != 0 : p.MaskAt(b, h, i, j) != -INFINITY;
    }
    bool SeenByAny(int64_t b, int64_t key_head, int64_t j) const {
      for (int64_t g = 0; g < p.c.G; g++)
        for (int64_t i = 0; i < p.c.S; i++)
          if (Sees(b, key_head * p.c.G + g, i, j)) return true;
      return false;
    }
    double Score(int64_t b, int64_t h, int64_t i, int64_t j) const {
      const Case& c = p.c;
      double s = 0;
      for (int64_t d = 0; d < c.D; d++) s += p.q[p.q.Index({b, i, h, d})] * p.k[p.k.Index({b, j, h / c.G, d})];
      s *= c.scale != 0 ? c.scale : 1 / sqrt(static_cast<double>(c.D));
      if (c.softcap > 0) s = c.softcap * tanh(s / c.softcap);
      if (c.alibi) s -= p.alibi[h] * fabs(static_cast<double>(Position(b, i) - j));
      if (c.mask >= 0 && c.mask != HEED_BOOL) s += p.MaskAt(b, h, i, j);
      return s;
    }
    void Row(int64_t b, int64_t h, int64_t i, std::vector<double>* out, std::vector<double>* lse) const {
      const Case& c = p.c;
      std::vector<double> s(c.Sk);
      double m = c.sinks ? p.sinks[h] : -INFINITY;
      bool nan = false;
      for (int64_t j = 0; j < c.Sk; j++) {
        if (!Sees(b, h, i, j)) continue;
        s[j] = Score(b, h, i, j);
        nan |= s[j] != s[j];
        m = std::max(m, s[j]);
      }
      double z = c.sinks ? exp(p.sinks[h] - m) : 0;
      for (int64_t j = 0; j < c.Sk; j++)
        if (Sees(b, h, i, j)) z += exp(s[j] - m);
      if (nan) z = m = NAN;
      (*lse)[(b * c.Hkv * c.G + h) * c.S + i] = z == 0 ? -INFINITY : m + log(z);
      double* row = out->data() + ((b * c.S + i) * c.Hkv * c.G + h) * c.Dv;
      for (int64_t j = 0; j < c.Sk; j++) {
        const double keep = nan ? 1 : KeepFactor(c.dropout, c.seed, b, h, i, j);  // a NaN sum shows even where all is dropped
        if (!Sees(b, h, i, j) || keep == 0) continue;
        for (int64_t d = 0; d < c.Dv; d++) row[d] += exp(s[j] - m) / z * keep * p.v[p.v.Index({b, j, h / c.G, d})];
      }
    }
    void Run(std::vector<double>* out, std::vector<double>* lse) const {
      out->assign(p.out.Size(), 0);
      lse->assign(p.c.B * p.c.Hkv * p.c.G * p.c.S, 0);
      for (int64_t b = 0; b < p.c.B; b++)
        for (int64_t h = 0; h < p.c.Hkv * p.c.G; h++)
          for (int64_t i = 0; i < p.c.S; i++) Row(b, h, i, out, lse);
    }
  };

  heed_attention Block() const {
    heed_attention a = {};
    a.size = sizeof a;
    a.scores.scale = c.scale != 0 ? c.scale : 1 / sqrt(static_cast<double>(c.D));
    a.scores.softcap = c.softcap;
    a.scores.window_left = c.left;
    a.scores.window_right = c.right;
    a.scores.sink_tokens = c.sink_tokens;
    a.scores.offset_mode = c.offset_mode;
    a.scores.query_offset = c.offset;
    SetDropout(a.scores, c.dropout, c.seed);
    if (c.mask >= 0) {
      a.scores.mask = mask.View();
      const int64_t full[] = {c.B, c.Hkv * c.G, c.S, c.Sk};
      for (int axis = 0; axis < 4; axis++) {
        if (a.scores.mask.shape[axis] != full[axis]) a.scores.mask.strides[axis] = 0;
        a.scores.mask.shape[axis] = full[axis];
      }
    }
    if (c.alibi) a.scores.alibi_slopes = alibi.View();
    if (c.sinks) a.scores.sinks = sinks.View();
    if (c.lengths) a.scores.kv_lengths = lengths.View();
    if (c.offset_mode == HEED_OFFSET_TENSOR) a.scores.query_offsets = offsets.View();
    a.q = q.View();
    a.k = k.View();
    a.v = v.View();
    a.out = out.View();
    if (c.lse) a.lse = lse.View();
    return a;
  }
  std::string Words() const {
    char text[300];
    snprintf(text, sizeof text, "%s B%ld S%ld Sk%ld Hkv%ld G%ld D%ld Dv%ld layout %d cap %g window %ld,%ld+%ld offset %d/%ld mask %d alibi %d sinks %d lengths %d dropout %g nan %d",
             Name(c.dtype), c.B, c.S, c.Sk, c.Hkv, c.G, c.D, c.Dv, static_cast<int>(c.layout), c.softcap, c.left, c.right, c.sink_tokens, c.offset_mode,
             c.offset, c.mask, c.alibi, c.sinks, c.lengths, c.dropout, c.nan_keys);
    return text;
  }
  void Run() {
    const heed_attention block = Block();
    // The error of a score, and with it that of p, is a rounding of its size: at most 4 sqrt(D), and what ALiBi takes off.
    const double unit = c.dtype == HEED_FLOAT64 ? 0x1p-53 : 0x1p-24;
    const double size = 4 + sqrt(static_cast<double>(c.D)) + (c.alibi ? 0.5 * (c.S + c.Sk + 100) : 0);
    const double absolute = 8 * unit * size / (1 - c.dropout) + (c.dtype == HEED_FLOAT16 ? 0x1p-25 : 0);
    const double relative = 1.01 * Roundoff(c.dtype);
    Array first;
    for (int threads : {1, 2, 5}) {
      heed_set_threads(threads);
      out.Fill(-12345);
      if (c.lse) lse.Fill(54321);
      Ok(heed_attention_run(&block), Words().c_str());
      Compare(out, want_out, relative, absolute, (Words() + " out").c_str());
      if (c.lse) Compare(lse, want_lse, 4 * unit, 4 * absolute, (Words() + " lse").c_str());
      if (threads == 1) {
        first = out;
        continue;
      }
      bool same = true;
      for (int64_t i = 0; i < out.Size(); i++) same &= out[i] == first[i] || (isnan(out[i]) && isnan(first[i]));
      Check(same, "%s: %d threads give other bits than one", Words().c_str(), threads);
    }
    Check(out.Intact() && (!c.lse || lse.Intact()), "%s wrote beside its output", Words().c_str());
  }
};

template <class T> T Pick(Random& random, std::initializer_list<T> from) { return from.begin()[random.Below(static_cast<int64_t>(from.size()))]; }

Case RandomCase(Random& random) {
  Case c;
  c.dtype = Pick(random, {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16});
  c.layout = Pick(random, {Layout::kContiguous, Layout::kContiguous, Layout::kPadded, Layout::kTransposed, Layout::kReversed});
  c.B = 1 + random.Below(2);
  c.Hkv = 1 + random.Below(2);
  c.G = Pick<int64_t>(random, {1, 2, 3, 4, 7});
  c.S = Pick<int64_t>(random, {1, 1, 2, 5, 17, 50, 70});
  c.Sk = Pick<int64_t>(random, {1, 3, 63, 64, 65, 130, 200});
  c.D = Pick<int64_t>(random, {1, 7, 8, 16, 24, 33, 64});
  c.Dv = Pick<int64_t>(random, {1, 8, 13, 16, 40, 64, 72});
  if (random.Below(4) == 0) c.Sk = Pick<int64_t>(random, {300, 517, 700}), c.S = std::min<int64_t>(c.S, 12);
  if (random.Below(6) == 0) c.S = 230, c.G = 1, c.D = c.Dv = 16;
  if (random.Below(4) == 0) c.softcap = 1.5;
  if (random.Below(5) == 0) c.scale = 0.3;
  if (random.Below(3) == 0) c.left = Pick<int64_t>(random, {0, 1, 20, 70});
  if (random.Below(2) == 0) c.right = Pick<int64_t>(random, {0, 0, 0, 3});
  c.offset_mode = Pick(random, {HEED_OFFSET_END, HEED_OFFSET_END, HEED_OFFSET_CONSTANT, HEED_OFFSET_TENSOR});
  c.offset = Pick<int64_t>(random, {0, 0, 5, -3, 100});
  if (random.Below(2) == 0) c.mask = Pick(random, {HEED_BOOL, HEED_BOOL, HEED_FLOAT32, HEED_FLOAT64, HEED_FLOAT16, HEED_BFLOAT16});
  for (int64_t axis = 0; axis < 4; axis++)
    if (random.Below(2)) c.mask_ones.push_back(axis);
  c.alibi = random.Below(4) == 0;
  c.sinks = random.Below(3) == 0;
  c.lengths = random.Below(3) == 0;
  c.lse = random.Below(4) != 0;
  if (random.Below(3) == 0) c.nan_keys = 2;
  if (random.Below(3) == 0) c.dropout = Pick(random, {0.1, 0.5, 0.75}), c.seed = static_cast<uint64_t>(random.Below(int64_t{1} << 53));
  if (c.left >= 0 && random.Below(2)) c.sink_tokens = Pick<int64_t>(random, {1, 4, 63, 64, 65, 150, int64_t{1} << 53});
  return c;
}
void RunCase(const Case& c, uint64_t seed) {
  Random random{seed};
  Problem(c, random).Run();
}
/// The test vectors of Random123, the authors' own library.
void KnownWords() {
  const auto words = [](const uint32_t (&counter)[4], uint64_t key, const uint32_t (&want)[4]) {
    uint32_t got[4];
    Philox(counter, key, got);
    Check(memcmp(got, want, sizeof got) == 0, "Philox of key %llx", static_cast<unsigned long long>(key));
  };
  words({0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  words({~0u, ~0u, ~0u, ~0u}, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  words({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}
/// Row i of a causal mask gives the mean of what it sees when all keys are equal.
void KnownAnswers() {
  Array q(HEED_FLOAT32, {1, 3, 1, 4}), k(HEED_FLOAT32, {1, 3, 1, 4}), v(HEED_FLOAT32, {1, 3, 1, 4}), out(HEED_FLOAT32, {1, 3, 1, 4});
  const double qs[] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4}, ks[] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6, 7}, vs[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6};
  for (int i = 0; i < 12; i++) q.Set(i, qs[i]), k.Set(i, ks[i]), v.Set(i, vs[i]);
  for (int causal = 0; causal < 2; causal++) {
    heed_attention a = {};
    a.size = sizeof a;
    a.scores.scale = 0.5;
    a.scores.window_left = -1;
    a.scores.window_right = causal ? 0 : -1;
    a.q = q.View(), a.k = k.View(), a.v = v.View(), a.out = out.View();
    Ok(heed_attention_run(&a), "known answer");
    const double both[] = {5, 16.0 / 3, 17.0 / 3, 6, 5, 16.0 / 3, 17.0 / 3, 6}, lower[] = {1, 2, 3, 4, 3, 4, 5, 6};
    for (int i = 0; i < 8; i++) Check(Close(out[i], causal ? lower[i] : both[i], 1e-6), "known answer %d of %d: %.9g", i, causal, out[i]);
  }
}
/// Keys long enough to be split over tasks, read in place and packed, with what the parts must not lose or count twice.
void SplitKeys() {
  for (Layout layout : {Layout::kContiguous, Layout::kPadded})
    for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_BFLOAT16})
      for (int option = 0; option < 4; option++) {
        Case c;
        c.dtype = dtype;
        c.layout = layout;
        c.S = 2, c.G = 3, c.Sk = 1300, c.D = 24, c.Dv = 16;
        c.right = 0;
        c.sinks = option != 0;
        c.lengths = option == 2;
        c.left = option == 3 ? 900 : -1;
        c.nan_keys = option == 1 ? 1 : 0;
        RunCase(c, option);
      }
}
/// The first keys and the last ones, with keys between that no row sees (which are poison), for rows that decode, split, and are packed.
void SinkTokens() {
  uint64_t seed = 0;
  for (int32_t dtype : {HEED_FLOAT64, HEED_FLOAT32, HEED_BFLOAT16})
    for (int64_t sinks : {1, 4, 64, 130})
      for (int64_t left : {0, 63, 150, 600})
        for (int64_t S : {1, 70, 260}) {
          Case c;
          c.dtype = dtype;
          c.S = S, c.G = S == 260 ? 1 : 3, c.Sk = 1300, c.D = c.Dv = 16;
          c.left = left, c.sink_tokens = sinks;
          c.right = seed % 3 == 0 ? 2 : 0;
          c.sinks = seed % 4 == 0;
          c.softcap = seed % 5 == 0 ? 1.5 : 0;
          c.nan_keys = seed % 7 == 0 ? 2 : 0;
          c.dropout = seed % 6 == 0 ? 0.5 : 0;
          if (seed % 2) c.offset_mode = HEED_OFFSET_CONSTANT, c.offset = static_cast<int64_t>(seed * 37 % 1400);
          RunCase(c, seed++);
        }
}
void ScratchStaysSmall() {
  const int64_t S = 32768, D = 64;
  Array q(HEED_FLOAT32, {1, 256, 1, D}), k(HEED_FLOAT32, {1, S, 1, D}), out(HEED_FLOAT32, {1, 256, 1, D});
  q.Fill(0.5), k.Fill(0.25);
  heed_attention a = {};
  a.size = sizeof a;
  a.scores.scale = 0.125;
  a.scores.window_left = -1;
  a.scores.window_right = 0;
  a.q = q.View(), a.k = k.View(), a.v = k.View(), a.out = out.View();
  heed_scratch_release();
  Ok(heed_attention_run(&a), "32,768 keys");
  Check(heed_scratch_bytes() < 50u << 20, "scratch of 32,768 keys of 64 is %.1f MB", static_cast<double>(heed_scratch_bytes()) / 1e6);
  Check(Close(out[0], 0.25, 1e-6), "the mean of equal values is %.9g", out[0]);
}
}  // namespace

int main(int argc, char** argv) {
  const int trials = argc > 1 ? atoi(argv[1]) : 150;
  ForEachIsa([&] {
    KnownWords();
    KnownAnswers();
    SplitKeys();
    SinkTokens();
    ScratchStaysSmall();
    for (int t = 0; t < trials; t++) {
      Random random{static_cast<uint64_t>(t) * 7919 + 1};
      RunCase(RandomCase(random), t);
    }
    Case c;  // lengths of zero in every axis that may be
    c.nan_keys = 0;
    for (int axis = 0; axis < 5; axis++) {
      Case e = c;
      e.S = 3, e.Sk = 5;
      (axis == 0 ? e.B : axis == 1 ? e.S : axis == 2 ? e.Sk : axis == 3 ? e.Hkv : e.Dv) = 0;
      RunCase(e, axis);
    }
  });
  heed_set_threads(0);
  return Finish();
}
