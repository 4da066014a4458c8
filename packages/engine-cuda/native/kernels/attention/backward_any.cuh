// Attention backward for what the tensor cores do not take: float32 and float64, any strides, any head size that fits; and the gradient
// of the mask in every dtype. A is float, or double for float64. backward_problem.cuh has the formulas.
//
// A block has tiles of `edge` query rows and `edge` keys in shared memory as A: those of its own stay, the others come and go. Sums stand
// in shared memory too, each the business of one thread.
#pragma once
#include "backward_problem.cuh"

namespace heed {

template <class A>
struct AnyBackward {
  const heed_cuda_attention_backward& args;
  const heed_attention_backward& p;
  const int edge, d, dv;

  DEVICE AnyBackward(const heed_cuda_attention_backward& args)
      : args(args), p(args.problem), edge(args.edge), d(static_cast<int>(p.q.shape[3])), dv(static_cast<int>(p.v.shape[3])) {}

  // Rows of a tile are a number longer than they need to be, against bank conflicts.
  DEVICE Shared<A> part(int before, int count) const { return shared<A>(before * static_cast<int>(sizeof(A)), count); }
  DEVICE Shared<A> q() const { return part(0, edge * (d + 1)); }
  DEVICE Shared<A> k() const { return part(edge * (d + 1), edge * (d + 1)); }
  DEVICE Shared<A> d_out() const { return part(edge * 2 * (d + 1), edge * (dv + 1)); }
  DEVICE Shared<A> v() const { return part(edge * (2 * (d + 1) + dv + 1), edge * (dv + 1)); }
  // Of a row and a key of the tiles: the weight that dv takes, or Hidden; and the gradient of the score, 0 where the key is hidden.
  DEVICE Shared<A> weights() const { return part(edge * 2 * (d + dv + 2), edge * edge); }
  DEVICE Shared<A> gradients() const { return part(edge * (2 * (d + dv + 2) + edge), edge * edge); }
  DEVICE Shared<A> sums() const { return part(edge * (2 * (d + dv + 2) + 2 * edge), edge * (d + dv)); }
  DEVICE Shared<double> mask_sums() const {
    const int before = edge * (2 * (d + dv + 2) + 2 * edge) * static_cast<int>(sizeof(A));
    return shared<double>((before + 7) / 8 * 8, edge * edge);
  }

  // Row or token i of a tile from element start(i) of t on; zeros from row `count` on.
  template <class Start>
  DEVICE void load(const Shared<A>& to, const heed_tensor& t, int width, int count, const Start& start) const {
    for (int i = thread_x(); i < edge * width; i += block_threads()) {
      const int row = i / width, c = i % width;
      to[row * (width + 1) + c] = row < count ? number_at<A>(t, start(row) + c * t.strides[3]) : A(0);
    }
  }
  DEVICE void load_rows(const Sequence& s, int first) const {
    load(q(), p.q, d, s.rows() - first, [&](int i) { return row_element(p.q, s, first + i); });
    load(d_out(), p.d_out, dv, s.rows() - first, [&](int i) { return row_element(p.d_out, s, first + i); });
  }
  DEVICE void load_keys(const Sequence& s, int kv_head, int first) const {
    load(k(), p.k, d, s.length - first, [&](int i) { return key_element(p.k, s, kv_head, first + i); });
    load(v(), p.v, dv, s.length - first, [&](int i) { return key_element(p.v, s, kv_head, first + i); });
  }

  DEVICE static A dot(const Shared<A>& x, int at_x, const Shared<A>& y, int at_y, int n) {
    A sum = 0;
    for (int c = 0; c < n; c++) sum += x[at_x + c] * y[at_y + c];
    return sum;
  }
  // What mask and ALiBi add to the score of a visible key; -infinity hides it.
  DEVICE A bias(const Sequence& s, int token, int head, int key) const {
    const heed_scores& rules = p.scores;
    A x = 0;
    if (rules.alibi_slopes.data) {
      const int64_t distance = s.offset + token - key;
      x = -number_at<A>(rules.alibi_slopes, head * rules.alibi_slopes.strides[0]) * static_cast<A>(distance < 0 ? -distance : distance);
    }
    if (!rules.mask.data) return x;
    const int64_t at = mask_start(rules.mask, s.batch, head, token) + key * rules.mask.strides[3];
    if (rules.mask.dtype == HEED_BOOL) return static_cast<const uint8_t*>(rules.mask.data)[at] ? x : A(-INFINITY);
    const A added = number_at<A>(rules.mask, at);
    return added == A(-INFINITY) ? added : x + added;
  }
  // Weights and gradients of the tiles. With before_softcap, gradients are those of what the mask is added to.
  DEVICE void compare(const Sequence& s, int first_row, int first_key, bool before_softcap) const {
    const heed_scores& rules = p.scores;
    const A cap = static_cast<A>(rules.softcap);
    for (int i = thread_x(); i < edge * edge; i += block_threads()) {
      const int r = i / edge, j = i % edge, row = first_row + r, key = first_key + j;
      A weight = Hidden<A>::kWeight, gradient = 0;
      const int token = row / s.group, head = s.first_head + row % s.group;
      const Range seen = row < s.rows() ? visible_keys(rules, s, token) : Range{0, 0};
      const A added = is_seen(key, seen, sink_end(rules, s)) ? bias(s, token, head, key) : A(-INFINITY);
      if (added != A(-INFINITY)) {
        A score = dot(q(), r * (d + 1), k(), j * (d + 1), d) * static_cast<A>(rules.scale), slope = 1;
        if (cap > 0) {
          const A bent = wide_tanh(score / cap);
          score = cap * bent;
          slope = before_softcap ? A(1) : 1 - bent * bent;
        }
        const A* row_statistics = statistics_of<A>(args, s, row);
        const A probability = wide_exp(score + added - row_statistics[2]);
        A d_weight = dot(d_out(), r * (dv + 1), v(), j * (dv + 1), dv);
        weight = probability;
        if (rules.dropout_factor != 0) {
          const A factor = static_cast<A>(rules.dropout_factor);
          const bool kept = dropout_word(rules.dropout_seed, key, token, head, s.batch) >= rules.dropout_threshold;
          weight = kept ? weight * factor : Hidden<A>::kWeight;
          d_weight = kept ? d_weight * factor : A(0);
        }
        gradient = probability * (d_weight - row_statistics[1]) * slope;
      }
      weights()[i] = weight;
      gradients()[i] = gradient;
    }
  }

  DEVICE void clear_sums(int count) const {
    for (int i = thread_x(); i < count; i += block_threads()) sums()[i] = 0;
  }
  // sums[own, c] += sum over others of factors[own, other] * tile[other, c], leaving out those that are `nothing`. A gradient of 0 is nothing: a
  // number that is not finite would otherwise come through from where it is hidden.
  DEVICE void add(int before, const Shared<A>& factors, int own_step, int other_step, A nothing, const Shared<A>& tile, int width) const {
    const Shared<A> to = sums();
    for (int i = thread_x(); i < edge * width; i += block_threads()) {
      const int own = i / width, c = i % width;
      A sum = to[before + i];
      for (int other = 0; other < edge; other++) {
        const A factor = factors[own * own_step + other * other_step];
        if (factor != nothing) sum += factor * tile[other * (width + 1) + c];
      }
      to[before + i] = sum;
    }
  }
  template <class Start>
  DEVICE void store(int before, const heed_tensor& t, int width, int count, A factor, const Start& start) const {
    for (int i = thread_x(); i < edge * width; i += block_threads()) {
      if (i / width >= count) return;
      const int64_t at = start(i / width) + i % width * t.strides[3];
      const A x = sums()[before + i] * factor;
      if (t.dtype == HEED_FLOAT64) static_cast<double*>(t.data)[at] = x;
      else if (t.dtype == HEED_FLOAT32) static_cast<float*>(t.data)[at] = static_cast<float>(x);
      else if (t.dtype == HEED_FLOAT16) static_cast<f16*>(t.data)[at] = from_float<f16>(static_cast<float>(x));
      else static_cast<bf16*>(t.data)[at] = from_float<bf16>(static_cast<float>(x));
    }
  }

  // dk and dv of a tile of keys.
  DEVICE void run_keys() const {
    const int batch = block_x() / args.tiles, first = block_x() % args.tiles * edge, kv_head = block_y();
    const Sequence s = backward_sequence(p, batch, kv_head);
    load_keys(s, kv_head, first);
    clear_sums(edge * (d + dv));
    const Range rows = rows_seeing(p.scores, s, sink_end(p.scores, s), first, first + edge - 1);
    for (int row = rows.begin; row < rows.end; row += edge) {
      sync_block();
      load_rows(s, row);
      sync_block();
      compare(s, row, first, false);
      sync_block();
      add(0, gradients(), 1, edge, 0, q(), d);
      add(edge * d, weights(), 1, edge, Hidden<A>::kWeight, d_out(), dv);
    }
    const int count = static_cast<int>(p.k.shape[1]) - first;
    sync_block();
    store(0, p.dk, d, count, static_cast<A>(p.scores.scale), [&](int i) { return key_element(p.dk, s, kv_head, first + i); });
    store(edge * d, p.dv, dv, count, 1, [&](int i) { return key_element(p.dv, s, kv_head, first + i); });
  }
  // dq of a tile of rows.
  DEVICE void run_rows() const {
    const int batch = block_x() / args.tiles, first = block_x() % args.tiles * edge, kv_head = block_y();
    const Sequence s = backward_sequence(p, batch, kv_head);
    const int last = first + edge < s.rows() ? first + edge - 1 : s.rows() - 1;
    load_rows(s, first);
    clear_sums(edge * d);
    const Range seen = {visible_keys(p.scores, s, first / s.group).begin, visible_keys(p.scores, s, last / s.group).end};
    const int sinks = sink_end(p.scores, s);
    for (int key = skip_hidden(0, sinks, seen.begin); key < seen.end; key = skip_hidden(key + edge, sinks, seen.begin)) {
      sync_block();
      load_keys(s, kv_head, key);
      sync_block();
      compare(s, first, key, false);
      sync_block();
      add(0, gradients(), edge, 1, 0, k(), d);
    }
    sync_block();
    store(0, p.dq, d, s.rows() - first, static_cast<A>(p.scores.scale), [&](int i) { return row_element(p.dq, s, first + i); });
  }

  // dMask. A block has the places of a tile of queries and keys, in one head of one sequence, and then others. Along an axis of stride 0 the
  // mask has one place: the block walks over the whole axis, in order.
  DEVICE void run_mask() const {
    const heed_tensor& t = p.d_mask;
    const int heads = t.strides[1] != 0 ? static_cast<int>(p.q.shape[2]) : 1, sequences = t.strides[0] != 0 ? static_cast<int>(p.q.shape[0]) : 1;
    const int tokens = t.strides[2] != 0 ? static_cast<int>(p.q.shape[1]) : 1, keys = t.strides[3] != 0 ? static_cast<int>(p.k.shape[1]) : 1;
    for (int place = block_y(); place < sequences * heads; place += grid_y())
      for (int token = block_z() * edge; token < tokens; token += grid_z() * edge)
        for (int key = block_x() * edge; key < keys; key += grid_x() * edge) run_mask_tile(place / heads, place % heads, token, key);
  }
  DEVICE void run_mask_tile(int batch, int head, int token, int key) const {
    const heed_tensor& t = p.d_mask;
    const int tokens = static_cast<int>(p.q.shape[1]), keys = static_cast<int>(p.k.shape[1]);
    const bool by_token = t.strides[2] != 0, by_key = t.strides[3] != 0;
    const int wide = by_key ? edge : 1, places = (by_token ? edge : 1) * wide;
    const Shared<double> sum = mask_sums();
    for (int i = thread_x(); i < places; i += block_threads()) sum[i] = 0;
    const int end_batch = t.strides[0] != 0 ? batch + 1 : static_cast<int>(p.q.shape[0]), end_head = t.strides[1] != 0 ? head + 1 : static_cast<int>(p.q.shape[2]);
    for (int b = batch; b < end_batch; b++)
      for (int h = head; h < end_head; h++) {
        const Sequence s = head_sequence(p, b, h);
        for (int first = token; first < (by_token ? token + 1 : tokens); first += edge) {
          const int last = first + edge < tokens ? first + edge - 1 : tokens - 1;
          const Range seen = {visible_keys(p.scores, s, first).begin, visible_keys(p.scores, s, last).end};
          const int sinks = sink_end(p.scores, s), end = by_key ? key + 1 : seen.end;
          for (int from = by_key ? key : skip_hidden(0, sinks, seen.begin); from < end; from = skip_hidden(from + edge, sinks, seen.begin))
            if (from < seen.end && (from + edge > seen.begin || from < sinks)) add_mask_tile(s, first, from, by_token, by_key, places, wide);
        }
      }
    for (int i = thread_x(); i < places; i += block_threads()) {
      const int i_token = token + i / wide, i_key = key + i % wide;
      if (i_token >= tokens || i_key >= keys) continue;
      const int64_t at = batch * t.strides[0] + head * t.strides[1] + i_token * t.strides[2] + i_key * t.strides[3];
      static_cast<A*>(t.data)[at] = static_cast<A>(sum[i]);
    }
  }
  DEVICE void add_mask_tile(const Sequence& s, int token, int key, bool by_token, bool by_key, int places, int wide) const {
    sync_block();
    load_rows(s, token);
    load_keys(s, s.first_head / static_cast<int>(p.q.shape[2] / p.k.shape[2]), key);
    sync_block();
    compare(s, token, key, true);
    sync_block();
    const Shared<double> sum = mask_sums();
    for (int i = thread_x(); i < places; i += block_threads()) {
      const int row = i / wide, column = i % wide;
      double x = sum[i];
      for (int r = by_token ? row : 0; r < (by_token ? row + 1 : edge); r++)
        for (int j = by_key ? column : 0; j < (by_key ? column + 1 : edge); j++) x += static_cast<double>(gradients()[r * edge + j]);
      sum[i] = x;
    }
  }
};

}  // namespace heed
