// Attention over pages against a straight double loop: ragged mixes of prefill and decode, pages in any order, poison wherever no
// token stands, page dtypes other than the queries'.
#include <algorithm>

#include "check.h"
using namespace heed::check;

namespace {
struct Case {
  int32_t dtype = HEED_FLOAT32, page_dtype = HEED_FLOAT32;
  int64_t N = 1, Hkv = 1, G = 1, D = 8, Dv = 8, page_size = 16;
  int64_t longest = 100, queries = 1;  // of a sequence, at most
  Layout layout = Layout::kContiguous;
  int64_t left = -1, right = 0, sink_tokens = 0;
  double softcap = 0;
  bool alibi = false, sinks = false, lse = true;
};

struct Problem {
  Case c;
  std::vector<int64_t> lengths, rows;  // per sequence
  int64_t T = 0, P = 0;
  Array q, out, lse, k, v, alibi, sinks, query_indptr, indptr, indices, length;
  std::vector<double> want_out, want_lse;

  Problem(const Case& of, Random& random) : c(of) {
    int64_t used = 0;
    for (int64_t n = 0; n < c.N; n++) {
      lengths.push_back(random.Below(c.longest + 1));
      rows.push_back(std::min(lengths[n], random.Below(c.queries + 1)));
      T += rows[n];
      used += (lengths[n] + c.page_size - 1) / c.page_size;
    }
    P = used + 3;
    const int32_t acc = c.dtype == HEED_FLOAT64 ? HEED_FLOAT64 : HEED_FLOAT32;
    const int64_t Hq = c.Hkv * c.G;
    q = Array(c.dtype, {T, Hq, c.D}, c.layout).FillUniform(random, -2, 2);
    out = Array(c.dtype, {T, Hq, c.Dv}, c.layout);
    if (c.lse) lse = Array(acc, {T, Hq}, c.layout);
    k = Array(c.page_dtype, {P, c.Hkv, c.page_size, c.D}, c.layout).Fill(NAN);
    v = Array(c.page_dtype, {P, c.Hkv, c.page_size, c.Dv}, c.layout).Fill(NAN);
    if (c.alibi) alibi = Array(acc, {Hq}).FillUniform(random, 0, 0.5);
    if (c.sinks) sinks = Array(acc, {Hq}).FillUniform(random, -3, 3);
    MakeTable(random, used);
    want_out.assign(out.Size(), 0);
    want_lse.assign(T * Hq, 0);
    for (int64_t n = 0, row = 0; n < c.N; row += rows[n++])
      for (int64_t i = 0; i < rows[n]; i++)
        for (int64_t h = 0; h < Hq; h++) Row(n, row + i, lengths[n] - rows[n] + i, h);
    LoseHiddenPages();
  }
  /// Pages between the blocks of 64 keys that hold sink tokens and those of the first row's window are not looked at: their numbers become junk.
  void LoseHiddenPages() {
    for (int64_t n = 0; n < c.N && c.left >= 0; n++) {
      const int64_t first = std::max<int64_t>(0, lengths[n] - rows[n] - c.left) / 64 * 64, behind = (std::min(c.sink_tokens, lengths[n]) + 63) / 64 * 64;
      for (int64_t page = 0; page * c.page_size < lengths[n]; page++)
        if (page * c.page_size >= behind && (page + 1) * c.page_size <= first) indices.Set(static_cast<int64_t>(indptr[n]) + page, 1 << 30);
    }
  }
  /// Hands out pages in a random order and fills the tokens' rows; the table has junk entries after the last page.
  void MakeTable(Random& random, int64_t used) {
    query_indptr = Array(HEED_INT32, {c.N + 1});
    indptr = Array(HEED_INT32, {c.N + 1});
    indices = Array(HEED_INT32, {used + 4}).Fill(1 << 30);
    length = Array(HEED_INT32, {c.N});
    std::vector<int64_t> order(P);
    for (int64_t i = 0; i < P; i++) order[i] = i;
    for (int64_t i = P - 1; i > 0; i--) std::swap(order[i], order[random.Below(i + 1)]);
    int64_t at = 0, row = 0;
    for (int64_t n = 0; n < c.N; n++) {
      query_indptr.Set(n, row);
      indptr.Set(n, at);
      length.Set(n, lengths[n]);
      for (int64_t t = 0; t < lengths[n]; t++) {
        if (t % c.page_size == 0) indices.Set(at, order[at]), at++;
        for (int64_t h = 0; h < c.Hkv; h++) {
          for (int64_t d = 0; d < c.D; d++) k.Set(k.Index({order[at - 1], h, t % c.page_size, d}), random.Uniform(-2, 2));
          for (int64_t d = 0; d < c.Dv; d++) v.Set(v.Index({order[at - 1], h, t % c.page_size, d}), random.Uniform(-2, 2));
        }
      }
      row += rows[n];
    }
    query_indptr.Set(c.N, row);
    indptr.Set(c.N, at);
  }
  void Row(int64_t n, int64_t row, int64_t position, int64_t h) {
    const int64_t Hq = c.Hkv * c.G;
    std::vector<double> s(lengths[n], -INFINITY);
    double m = c.sinks ? sinks[h] : -INFINITY;
    auto slot = [&](const Array& pages, int64_t t, int64_t d) {
      const int64_t page = static_cast<int64_t>(indices[static_cast<int64_t>(indptr[n]) + t / c.page_size]);
      return pages[pages.Index({page, h / c.G, t % c.page_size, d})];
    };
    for (int64_t j = 0; j < lengths[n]; j++) {
      if ((c.left >= 0 && j < position - c.left && j >= c.sink_tokens) || (c.right >= 0 && j > position + c.right)) continue;
      s[j] = 0;
      for (int64_t d = 0; d < c.D; d++) s[j] += q[q.Index({row, h, d})] * slot(k, j, d);
      s[j] /= sqrt(static_cast<double>(c.D));
      if (c.softcap > 0) s[j] = c.softcap * tanh(s[j] / c.softcap);
      if (c.alibi) s[j] -= alibi[h] * fabs(static_cast<double>(position - j));
      m = std::max(m, s[j]);
    }
    double z = c.sinks ? exp(sinks[h] - m) : 0;
    for (double x : s) z += exp(x - m);
    want_lse[row * Hq + h] = m + log(z);
    for (int64_t j = 0; j < lengths[n]; j++)
      if (s[j] != -INFINITY)
        for (int64_t d = 0; d < c.Dv; d++) want_out[(row * Hq + h) * c.Dv + d] += exp(s[j] - m) / z * slot(v, j, d);
  }
  std::string Words() const {
    char text[240];
    snprintf(text, sizeof text, "%s over %s N%ld T%ld Hkv%ld G%ld D%ld Dv%ld page %ld layout %d cap %g window %ld,%ld+%ld alibi %d sinks %d",
             Name(c.dtype), Name(c.page_dtype), c.N, T, c.Hkv, c.G, c.D, c.Dv, c.page_size, static_cast<int>(c.layout), c.softcap, c.left,
             c.right, c.sink_tokens, c.alibi, c.sinks);
    return text;
  }
  void Run() {
    heed_paged_attention a = {};
    a.size = sizeof a;
    a.scores.scale = 1 / sqrt(static_cast<double>(c.D));
    a.scores.softcap = c.softcap;
    a.scores.window_left = c.left;
    a.scores.window_right = c.right;
    a.scores.sink_tokens = c.sink_tokens;
    if (c.alibi) a.scores.alibi_slopes = alibi.View();
    if (c.sinks) a.scores.sinks = sinks.View();
    a.q = q.View(), a.out = out.View(), a.k_pages = k.View(), a.v_pages = v.View();
    if (c.lse) a.lse = lse.View();
    a.query_indptr = query_indptr.View(), a.indptr = indptr.View(), a.indices = indices.View(), a.lengths = length.View();
    const double unit = c.dtype == HEED_FLOAT64 ? 0x1p-53 : 0x1p-24;
    const double absolute = 8 * unit * (4 + sqrt(static_cast<double>(c.D))) + (c.dtype == HEED_FLOAT16 ? 0x1p-25 : 0);
    for (int threads : {1, 2}) {
      heed_set_threads(threads);
      out.Fill(-12345);
      if (c.lse) lse.Fill(54321);
      Ok(heed_paged_attention_run(&a), Words().c_str());
      Compare(out, want_out, 1.01 * Roundoff(c.dtype), absolute, (Words() + " out").c_str());
      if (c.lse) Compare(lse, want_lse, 4 * unit, 4 * absolute, (Words() + " lse").c_str());
    }
    Check(out.Intact() && (!c.lse || lse.Intact()), "%s wrote beside its output", Words().c_str());
  }
};

template <class T> T Pick(Random& random, std::initializer_list<T> from) { return from.begin()[random.Below(static_cast<int64_t>(from.size()))]; }

Case RandomCase(Random& random) {
  Case c;
  c.dtype = Pick(random, {HEED_FLOAT64, HEED_FLOAT32, HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16});
  c.page_dtype = c.dtype == HEED_FLOAT64 ? HEED_FLOAT64 : Pick(random, {HEED_FLOAT32, HEED_FLOAT16, HEED_BFLOAT16});
  c.layout = Pick(random, {Layout::kContiguous, Layout::kContiguous, Layout::kPadded, Layout::kTransposed, Layout::kReversed});
  c.N = Pick<int64_t>(random, {0, 1, 3, 6});
  c.Hkv = 1 + random.Below(2);
  c.G = Pick<int64_t>(random, {1, 2, 3, 4, 7});
  c.D = Pick<int64_t>(random, {1, 7, 16, 33, 64});
  c.Dv = Pick<int64_t>(random, {1, 13, 16, 64, 72});
  c.page_size = Pick<int64_t>(random, {1, 7, 16, 64, 100});
  c.longest = Pick<int64_t>(random, {0, 5, 70, 300, 600});
  c.queries = Pick<int64_t>(random, {1, 1, 4, 60, 250});
  if (random.Below(4) == 0) c.left = Pick<int64_t>(random, {0, 1, 20, 70});
  if (random.Below(4) == 0) c.right = Pick<int64_t>(random, {-1, 3});
  if (random.Below(4) == 0) c.softcap = 1.5;
  c.alibi = random.Below(4) == 0;
  c.sinks = random.Below(4) == 0;
  c.lse = random.Below(4) != 0;
  if (c.left >= 0 && random.Below(4)) c.sink_tokens = Pick<int64_t>(random, {1, 4, 64, 100, int64_t{1} << 53});
  return c;
}
}  // namespace

int main(int argc, char** argv) {
  const int trials = argc > 1 ? atoi(argv[1]) : 120;
  ForEachIsa([&] {
    for (int t = 0; t < 24; t++) {  // sink tokens, and a window that has moved on
      Random random{static_cast<uint64_t>(t) * 15485863 + 3};
      Case c = RandomCase(random);
      c.N = 2, c.longest = 900, c.queries = Pick<int64_t>(random, {1, 4, 250});
      c.left = Pick<int64_t>(random, {0, 20, 70, 600}), c.sink_tokens = Pick<int64_t>(random, {1, 4, 64, 100});
      Problem(c, random).Run();
    }
    for (int t = 0; t < trials; t++) {
      Random random{static_cast<uint64_t>(t) * 104729 + 5};
      const Case c = RandomCase(random);
      Problem(c, random).Run();
    }
  });
  heed_set_threads(0);
  return Finish();
}
