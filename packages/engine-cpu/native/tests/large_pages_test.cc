// Pages whose rows stand past 2^32 bytes and past 2^32 elements of their block: a cache of 64 GiB is described whole and touched in a
// few pages only, whose addresses the kernels must compute in 64 bits.
#include "check.h"
using namespace heed::check;

namespace {
constexpr int64_t kHeads = 2, kPageSize = 64, kD = 16, kTokens = 100;
constexpr uint64_t kBytes = uint64_t{64} << 30;

heed_tensor Tensor(void* data, int32_t dtype, std::initializer_list<int64_t> shape) {
  heed_tensor t = {};
  t.data = data;
  t.dtype = dtype;
  for (int64_t n : shape) t.shape[t.rank++] = n;
  for (int64_t i = t.rank - 1, step = 1; i >= 0; step *= t.shape[i--]) t.strides[i] = step;
  return t;
}
struct Pages {
  void *memory, *scales;
  int64_t count;
  heed_tensor pages, scale;
  explicit Pages(int32_t format) {
    const int64_t element = format == HEED_PAGES_FLOAT ? 4 : 1, page = kHeads * kPageSize * kD * element;
    count = static_cast<int64_t>(kBytes) / page;
    memory = heed_alloc(kBytes);
    scales = format == HEED_PAGES_FLOAT ? nullptr : heed_alloc(static_cast<uint64_t>(count * kHeads * kPageSize * 4));
    pages = Tensor(memory, format == HEED_PAGES_FLOAT ? HEED_FLOAT32 : HEED_UINT8, {count, kHeads, kPageSize, kD});
    scale = Tensor(scales, HEED_FLOAT32, {count, kHeads, kPageSize});
  }
  ~Pages() {
    heed_free(memory, nullptr);
    heed_free(scales, nullptr);
  }
};
/// The last page and one page just past 2^32 elements hold a sequence; its rows are told apart by their numbers.
void OnePool(int32_t format) {
  Pages k(format), v(format);
  if (!Check(k.memory && v.memory, "64 GiB of address space")) return;
  const int64_t slot_limit = int64_t{1} << 31;  // slots are int32
  const int64_t last = (k.count * kPageSize < slot_limit ? k.count : slot_limit / kPageSize) - 1;
  const int64_t past = (int64_t{1} << 32) / (kHeads * kPageSize * kD) + 3;
  Check(past < last && last * kHeads * kPageSize * kD > (int64_t{1} << 32), "pages past 2^32 elements");
  std::vector<float> rows(kTokens * kHeads * kD), queries(kHeads * kD, 0.25f), out(kHeads * kD, -1);
  Random random{7};
  for (float& x : rows) x = static_cast<float>(random.Uniform(-1, 1));
  std::vector<int32_t> slots, indices = {static_cast<int32_t>(past), static_cast<int32_t>(last)}, query_indptr = {0, 1}, indptr = {0, 2},
                              lengths = {static_cast<int32_t>(kTokens)};
  for (int64_t t = 0; t < kTokens; t++)
    slots.push_back(static_cast<int32_t>(static_cast<int64_t>(indices[t / kPageSize]) * kPageSize + t % kPageSize));
  heed_kv_append append = {};
  append.size = sizeof append;
  append.format = format;
  append.k = append.v = Tensor(rows.data(), HEED_FLOAT32, {kTokens, kHeads, kD});
  append.k_pages = k.pages, append.v_pages = v.pages, append.k_scales = k.scale, append.v_scales = v.scale;
  append.slots = Tensor(slots.data(), HEED_INT32, {kTokens});
  Ok(heed_kv_append_run(&append), "kv_append");

  heed_paged_attention attend = {};
  attend.size = sizeof attend;
  attend.format = format;
  attend.scores.scale = 1;
  attend.scores.window_left = -1;
  attend.q = Tensor(queries.data(), HEED_FLOAT32, {1, kHeads, kD});
  attend.out = Tensor(out.data(), HEED_FLOAT32, {1, kHeads, kD});
  attend.k_pages = k.pages, attend.v_pages = v.pages, attend.k_scales = k.scale, attend.v_scales = v.scale;
  attend.query_indptr = Tensor(query_indptr.data(), HEED_INT32, {2});
  attend.indptr = Tensor(indptr.data(), HEED_INT32, {2});
  attend.indices = Tensor(indices.data(), HEED_INT32, {2});
  attend.lengths = Tensor(lengths.data(), HEED_INT32, {1});
  Ok(heed_paged_attention_run(&attend), "paged_attention");
  // Relative to rows within [-1, 1]: half a step of int8 is 1 / 254, of E4M3 1 / 16; a key's error moves a score by 4 steps at most.
  const double step = format == HEED_PAGES_FLOAT ? 1e-6 : format == HEED_PAGES_INT8 ? 1.0 / 254 : 1.0 / 16, bound = step * (1 + 2 * 4);
  for (int64_t h = 0; h < kHeads; h++) {
    std::vector<double> weights;
    double sum = 0;
    for (int64_t t = 0; t < kTokens; t++) {
      double score = 0;
      for (int64_t d = 0; d < kD; d++) score += 0.25 * rows[(t * kHeads + h) * kD + d];
      weights.push_back(exp(score));
      sum += weights[t];
    }
    for (int64_t d = 0; d < kD; d++) {
      double want = 0;
      for (int64_t t = 0; t < kTokens; t++) want += weights[t] / sum * rows[(t * kHeads + h) * kD + d];
      Check(fabs(out[h * kD + d] - want) <= bound, "format %d head %ld channel %ld: %g, expected %g", format, h, d, out[h * kD + d], want);
    }
  }
}
}  // namespace

int main() {
  ForEachIsa([] {
    for (int32_t format : {HEED_PAGES_FLOAT, HEED_PAGES_INT8, HEED_PAGES_E4M3}) OnePool(format);
  });
  return Finish();
}
