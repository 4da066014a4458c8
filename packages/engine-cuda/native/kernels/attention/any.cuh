// Attention forward for what the tensor cores do not take: float32 and float64 queries, keys in another dtype than the queries, any
// strides, any head size. Products by fused multiply-add, softmax as in forward.cuh; A is float, or double for float64 queries.
//
// A block has 16 query rows of one key head and 8 threads to a row, which share its keys and its values between them. Keys and then
// values of a tile stand in shared memory as A, so that each number is fetched and converted once.
#pragma once
#include "numbers.cuh"

namespace heed {

constexpr int kAnyRows = 16, kAnyLanes = 8, kAnyThreads = kAnyRows * kAnyLanes;
template <class A> struct Hidden { static constexpr A kWeight = -1; };  // no weight is negative

DEVICE float wide_exp(float x) { return expf(x); }
DEVICE double wide_exp(double x) { return exp(x); }
DEVICE float wide_tanh(float x) { return tanhf(x); }
DEVICE double wide_tanh(double x) { return tanh(x); }
DEVICE float wide_log(float x) { return logf(x); }
DEVICE double wide_log(double x) { return log(x); }
template <class A>
DEVICE A larger(A a, A b) { return a > b ? a : b; }  // b where a is NaN: it comes back with its own weight

template <class A>
struct AnyForward {
  const heed_cuda_attention& args;
  const heed_scores& rules;
  const Sequence& s;
  const int kv_head, first_row, d, dv, keys, sinks;
  int row, token, head, part;  // of this thread
  A top = -INFINITY, sum = 0;

  DEVICE int width() const { return (d > dv ? d : dv) + 1; }  // odd or even, never a multiple of the banks for common sizes
  DEVICE Shared<A> queries() const { return shared<A>(0, kAnyRows * (d + 1)); }
  DEVICE Shared<A> tile() const { return shared<A>(kAnyRows * (d + 1) * sizeof(A), keys * width()); }
  DEVICE Shared<A> weights() const { return shared<A>((kAnyRows * (d + 1) + keys * width()) * sizeof(A), kAnyRows * keys); }
  DEVICE Shared<A> sums() const { return shared<A>((kAnyRows * (d + 1) + keys * width() + kAnyRows * keys) * sizeof(A), kAnyRows * dv); }

  DEVICE void load_queries() const {
    const heed_tensor& q = args.q;
    const int64_t step = q.strides[s.pages ? 2 : 3];
    for (int i = thread_x(); i < kAnyRows * d; i += kAnyThreads) {
      const int r = i / d, c = i % d;
      A x = 0;
      if (first_row + r < s.rows()) {
        const unsigned char* start = row_at(args, q, s, first_row + r);
        const heed_tensor one = {const_cast<unsigned char*>(start), {}, {}, q.dtype, 1};
        x = number_at<A>(one, c * step);
      }
      queries()[r * (d + 1) + c] = x;
    }
  }
  DEVICE void load_tile(const StoredRows& rows, int first, Range seen, int count) const {
    for (int i = thread_x(); i < keys * count; i += kAnyThreads) {
      const int j = first + i / count, c = i % count;
      tile()[i / count * width() + c] = is_seen(j, seen, sinks) ? stored_number<A>(rows, s, kv_head, j, c) : A(0);
    }
  }
  // The score of a key of the tile, -infinity where it is hidden.
  DEVICE A score(int first, int at, Range seen) const {
    const int key = first + at;
    if (!is_seen(key, seen, sinks)) return -INFINITY;
    const Shared<A> q = queries(), k = tile();
    A x = 0;
    for (int c = 0; c < d; c++) x += q[row % kAnyRows * (d + 1) + c] * k[at * width() + c];
    x *= static_cast<A>(rules.scale);
    if (rules.softcap > 0) x = static_cast<A>(rules.softcap) * wide_tanh(x / static_cast<A>(rules.softcap));
    if (rules.alibi_slopes.data) {
      const int64_t distance = s.offset + token - key;
      x -= number_at<A>(rules.alibi_slopes, head * rules.alibi_slopes.strides[0]) * static_cast<A>(distance < 0 ? -distance : distance);
    }
    if (rules.mask.data) {
      const int64_t at_mask = mask_start(rules.mask, s.batch, head, token) + key * rules.mask.strides[3];
      if (rules.mask.dtype == HEED_BOOL) return static_cast<const uint8_t*>(rules.mask.data)[at_mask] ? x : A(-INFINITY);
      const A bias = number_at<A>(rules.mask, at_mask);
      return bias == A(-INFINITY) ? bias : x + bias;
    }
    return x;
  }
  DEVICE bool hides(A score, int key, Range seen) const {
    if (!is_seen(key, seen, sinks)) return true;
    if (!rules.mask.data || score != A(-INFINITY)) return false;
    const int64_t at_mask = mask_start(rules.mask, s.batch, head, token) + key * rules.mask.strides[3];
    return rules.mask.dtype == HEED_BOOL ? !static_cast<const uint8_t*>(rules.mask.data)[at_mask] : number_at<A>(rules.mask, at_mask) == A(-INFINITY);
  }
  DEVICE A over_row(A x, bool is_max) const {
    UNROLL for (int step = 1; step < kAnyLanes; step *= 2) {
      const A other = shuffle_xor(x, step);
      x = is_max ? larger(x, other) : x + other;
    }
    return x;
  }
  // Weights of this thread's keys into shared memory, sums scaled to the new top.
  DEVICE void weigh(int first, Range seen) {
    const Shared<A> w = weights();
    const int start = row % kAnyRows * keys;
    A high = top;
    for (int at = part; at < keys; at += kAnyLanes) {
      const A x = score(first, at, seen);
      w[start + at] = x;
      high = larger(x, high);
    }
    high = over_row(high, true);
    const A base = high == A(-INFINITY) ? A(0) : high, shrink = wide_exp(top - base);
    A added = 0;
    for (int at = part; at < keys; at += kAnyLanes) {
      const int key = first + at;
      const A x = w[start + at];
      const bool hidden = hides(x, key, seen);
      A weight = hidden ? Hidden<A>::kWeight : wide_exp(x - base);
      if (!hidden) added += weight;
      if (!hidden && rules.dropout_factor != 0)
        weight = dropout_word(rules.dropout_seed, key, token, head, s.batch) < rules.dropout_threshold ? Hidden<A>::kWeight : weight * static_cast<A>(rules.dropout_factor);
      w[start + at] = weight;
    }
    sum = sum * shrink + added;
    top = high;
    const Shared<A> acc = sums();
    if (shrink != 1)
      for (int c = part; c < dv; c += kAnyLanes) acc[row % kAnyRows * dv + c] *= shrink;
  }
  DEVICE void add_values() const {
    const Shared<A> w = weights(), v = tile(), acc = sums();
    for (int c = part; c < dv; c += kAnyLanes) {
      A x = acc[row % kAnyRows * dv + c];
      for (int at = 0; at < keys; at++) {
        const A weight = w[row % kAnyRows * keys + at];
        if (weight != Hidden<A>::kWeight) x += weight * v[at * width() + c];
      }
      acc[row % kAnyRows * dv + c] = x;
    }
  }
  DEVICE void store() const {
    A total = over_row(sum, false), shrink = 1, high = top;
    if (rules.sinks.data && row < s.rows()) {
      const A sink = number_at<A>(rules.sinks, head * rules.sinks.strides[0]);
      high = larger(top, sink);
      const A base = high == A(-INFINITY) ? A(0) : high;
      shrink = wide_exp(top - base);
      total = total * shrink + wide_exp(sink - base);
    }
    if (row >= s.rows()) return;
    if (s.length == kUnknown) total = NAN;
    const A inverse = total == 0 ? A(0) : shrink / total;
    unsigned char* to = row_at(args, args.out, s, row);
    const int64_t step = args.out.strides[s.pages ? 2 : 3];
    for (int c = part; c < dv; c += kAnyLanes) {
      const A x = sums()[row % kAnyRows * dv + c] * inverse;
      if (args.out.dtype == HEED_FLOAT64) reinterpret_cast<double*>(to)[c * step] = x;
      else if (args.out.dtype == HEED_FLOAT32) reinterpret_cast<float*>(to)[c * step] = static_cast<float>(x);
      else if (args.out.dtype == HEED_FLOAT16) reinterpret_cast<f16*>(to)[c * step] = from_float<f16>(static_cast<float>(x));
      else reinterpret_cast<bf16*>(to)[c * step] = from_float<bf16>(static_cast<float>(x));
    }
    if (args.lse.data && part == 0) {
      const A lse = total == 0 ? A(-INFINITY) : high + wide_log(total);
      if (args.lse.dtype == HEED_FLOAT64) *lse_at<double>(args, s, row) = lse;
      else *lse_at<float>(args, s, row) = static_cast<float>(lse);
    }
  }
  DEVICE void run() {
    const int last_row = first_row + kAnyRows < s.rows() ? first_row + kAnyRows - 1 : s.rows() - 1;
    const Range all = {visible_keys(rules, s, first_row / s.group).begin, visible_keys(rules, s, last_row / s.group).end};
    const Range seen = row < s.rows() ? visible_keys(rules, s, token) : Range{0, 0};
    load_queries();
    for (int c = part; c < dv; c += kAnyLanes) sums()[row % kAnyRows * dv + c] = 0;
    for (int first = skip_hidden(0, sinks, all.begin); first < all.end; first = skip_hidden(first + keys, sinks, all.begin)) {
      sync_block();
      load_tile(stored_keys(args), first, all, d);
      sync_block();
      weigh(first, seen);
      sync_block();
      load_tile(stored_values(args), first, all, dv);
      sync_block();
      add_values();
    }
    store();
  }
};

// Grid: tiles of rows, key heads.
template <class A>
DEVICE void attention_any(const heed_cuda_attention& args) {
  const Work work = find_work(args, block_x(), kAnyRows);
  if (work.sequence < 0) return;
  const Sequence s = sequence_of(args, work.sequence, block_y());
  if (s.tokens == 0) return;  // of a table that does not fit
  const int axis = args.indices.data ? 2 : 3, first_row = work.tile * kAnyRows, row = first_row + thread_x() / kAnyLanes;
  AnyForward<A> forward = {args, args.scores, s, static_cast<int>(block_y()), first_row, static_cast<int>(args.q.shape[axis]),
                           static_cast<int>(args.out.shape[axis]), args.keys, sink_end(args.scores, s), row, row / s.group, s.first_head + row % s.group, thread_x() % kAnyLanes};
  forward.run();
}

}  // namespace heed
