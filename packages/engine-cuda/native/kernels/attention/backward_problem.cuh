// What the backward kernels of attention share: their view of a problem, and the sums over rows that come before and after them.
//
// The gradient (Dao et al. 2022, arXiv:2205.14135, section 3; Dao 2023, arXiv:2307.08691, algorithm 2), row i, key j:
//   p = exp(s - lse)      delta_i = dOut_i . out_i      dp = dOut_i . v_j      ds = p (dp - delta)      dRaw = ds (1 - tanh^2), capped
//   dq_i = scale sum_j dRaw k_j      dk_j = scale sum_i dRaw q_i      dv_j = sum_i p dOut_i      dMask = ds      dSink = -sum_i exp(sink - lse) delta
// Under dropout dp and the p of dv are dropped as the weights of the forward pass were. All gradients are written with `=`.
//
// Nothing is added up by atomics: a kernel over keys has dk and dv, one over rows dq, one over the mask dMask, and each sum has one order.
#pragma once
#include "any.cuh"

namespace heed {

// Of a batch, as dense_sequence has it.
DEVICE Sequence backward_sequence(const heed_attention_backward& p, int batch, int kv_head) {
  Sequence s;
  s.group = static_cast<int>(p.q.shape[2] / p.k.shape[2]);
  s.batch = batch;
  s.first_head = kv_head * s.group;
  s.first_token = 0;
  s.k = bytes_of(p.k, batch * p.k.strides[0] + kv_head * p.k.strides[2]);
  s.v = bytes_of(p.v, batch * p.v.strides[0] + kv_head * p.v.strides[2]);
  s.k_token = static_cast<int32_t>(p.k.strides[1] * element_bytes(p.k));
  s.v_token = static_cast<int32_t>(p.v.strides[1] * element_bytes(p.v));
  s.k_page = s.v_page = 0;
  s.pages = nullptr;
  s.page_size = 1;
  s.tokens = static_cast<int>(p.q.shape[1]);
  s.length = dense_length(p.scores, batch, static_cast<int>(p.k.shape[1]));
  s.offset = first_position(p.scores, batch, s.tokens, s.length);
  return s;
}
// The same as one query head sees it: its rows are its tokens.
DEVICE Sequence head_sequence(const heed_attention_backward& p, int batch, int head) {
  Sequence s = backward_sequence(p, batch, head / static_cast<int>(p.q.shape[2] / p.k.shape[2]));
  s.first_head = head;
  s.group = 1;
  return s;
}
// Element 0 of row r of q, out or their gradients, [B, S, Hq, D].
DEVICE int64_t row_element(const heed_tensor& t, const Sequence& s, int row) {
  return s.batch * t.strides[0] + row / s.group * t.strides[1] + (s.first_head + row % s.group) * t.strides[2];
}
// Element 0 of token j of k, v or their gradients, [B, Sk, Hkv, D].
DEVICE int64_t key_element(const heed_tensor& t, const Sequence& s, int kv_head, int j) {
  return s.batch * t.strides[0] + j * t.strides[1] + kv_head * t.strides[2];
}
DEVICE int64_t statistics_row(const heed_attention_backward& p, int batch, int head, int token) {
  const int heads = static_cast<int>(p.k.shape[2]), group = static_cast<int>(p.q.shape[2]) / heads;
  return (static_cast<int64_t>(batch * heads + head / group) * p.q.shape[1] + token) * group + head % group;
}
template <class A>
DEVICE const A* statistics_of(const heed_cuda_attention_backward& args, const Sequence& s, int row) {
  return static_cast<const A*>(args.statistics) + 4 * statistics_row(args.problem, s.batch, s.first_head + row % s.group, row / s.group);
}

// The rows that see some of the keys first .. last by causality, window and length; no window ends behind a sink token.
DEVICE Range rows_seeing(const heed_scores& rules, const Sequence& s, int sinks, int first, int last) {
  if (first >= s.length) return {0, 0};
  if (last >= s.length) last = s.length - 1;
  const int begin = rules.window_right < 0 ? 0 : clamp_key(first - rules.window_right - s.offset, s.tokens);
  const int end = rules.window_left < 0 || (sinks > 0 && first < sinks) ? s.tokens : clamp_key(last + rules.window_left + 1 - s.offset, s.tokens);
  return {begin * s.group, (end > begin ? end : begin) * s.group};
}

// A row that sees nothing has an out of 0 (`zero`) and no gradient, whatever its dOut holds; its lse becomes +infinity, which gives every
// key the weight 0.
template <class A>
DEVICE void store_statistics(const heed_cuda_attention_backward& args, int batch, int head, int token, A delta, bool zero) {
  const heed_attention_backward& p = args.problem;
  if (zero && !(delta - delta == 0)) delta = 0;
  A lse = number_at<A>(p.lse, batch * p.lse.strides[0] + head * p.lse.strides[1] + token * p.lse.strides[2]);
  if (lse == -INFINITY) lse = INFINITY;
  A* row = static_cast<A*>(args.statistics) + 4 * statistics_row(p, batch, head, token);
  row[0] = lse * static_cast<A>(1.4426950408889634);
  row[1] = delta;
  row[2] = lse;
  row[3] = 0;
}
// Of out or dOut, [B, S, Hq, Dv].
DEVICE int64_t out_element(const heed_tensor& t, int batch, int head, int token) {
  return batch * t.strides[0] + token * t.strides[1] + head * t.strides[2];
}
// Whether rows are 16-bit numbers side by side that begin at multiples of 16 bytes.
DEVICE bool has_vectors(const heed_tensor& t) {
  const uint64_t bytes = reinterpret_cast<uint64_t>(t.data) | static_cast<uint64_t>((t.strides[0] | t.strides[1] | t.strides[2]) * 2);
  return element_bytes(t) == 2 && t.strides[3] == 1 && bytes % 16 == 0 && t.shape[3] % 8 == 0;
}
// Lanes of a warp share a row: as many as it has 16 bytes, up to a power of two, in turn where it has more than 32.
template <class T>
DEVICE void vector_statistics(const heed_cuda_attention_backward& args) {
  const heed_attention_backward& p = args.problem;
  const int heads = static_cast<int>(p.q.shape[2]), tokens = static_cast<int>(p.q.shape[1]), chunks = static_cast<int>(p.v.shape[3]) / 8;
  const int rows = static_cast<int>(p.q.shape[0]) * heads * tokens;
  int lanes = 1;
  while (lanes < 32 && lanes < chunks) lanes *= 2;
  const int own = lane() / lanes, step = grid_x() * (block_threads() / lanes);
  for (int first = (block_x() * (block_threads() / 32) + warp()) * (32 / lanes); first < rows; first += step) {
    // Neighbours are heads, as in memory.
    const int i = first + own < rows ? first + own : rows - 1, head = i % heads, token = i / heads % tokens, batch = i / heads / tokens;
    const T* out = static_cast<const T*>(p.out.data) + out_element(p.out, batch, head, token);
    const T* d_out = static_cast<const T*>(p.d_out.data) + out_element(p.d_out, batch, head, token);
    float delta = 0;
    uint32_t bits = 0;
    for (int c = lane() % lanes; c < chunks; c += lanes) {
      const Vec16 x = load_16(out + 8 * c), y = load_16(d_out + 8 * c);
      UNROLL for (int w = 0; w < 4; w++) {
        const Pair a = unpack2<T>(x.words[w]), b = unpack2<T>(y.words[w]);
        delta += a.low * b.low;
        delta += a.high * b.high;
        bits |= x.words[w] & 0x7fff7fffu;
      }
    }
    UNROLL for (int far = 16; far > 0; far /= 2) {
      if (far >= lanes) continue;
      delta += shuffle_xor(delta, far);
      bits |= shuffle_xor(bits, far);
    }
    if (lane() % lanes == 0 && first + own < rows) store_statistics<float>(args, batch, head, token, delta, bits == 0);
  }
}
// A warp to a row, in turn.
template <class A>
DEVICE void attention_statistics(const heed_cuda_attention_backward& args) {
  const heed_attention_backward& p = args.problem;
  const int heads = static_cast<int>(p.q.shape[2]), tokens = static_cast<int>(p.q.shape[1]), dv = static_cast<int>(p.v.shape[3]);
  const int64_t rows = p.q.shape[0] * heads * tokens, warps = block_threads() / 32;
  if constexpr (sizeof(A) == 4) {
    // A step past the last row, of a grid of at most some thousand blocks, stays below 2^31.
    if (rows < 1 << 30 && p.out.dtype == p.d_out.dtype && has_vectors(p.out) && has_vectors(p.d_out))
      return p.out.dtype == HEED_BFLOAT16 ? vector_statistics<bf16>(args) : vector_statistics<f16>(args);
  }
  for (int64_t i = block_x() * warps + warp(); i < rows; i += grid_x() * warps) {
    // Neighbours are heads, as in memory.
    const int head = static_cast<int>(i % heads), token = static_cast<int>(i / heads % tokens), batch = static_cast<int>(i / heads / tokens);
    const int64_t out = out_element(p.out, batch, head, token), d_out = out_element(p.d_out, batch, head, token);
    A delta = 0;
    bool zero = true;
    for (int c = lane(); c < dv; c += 32) {
      const A x = number_at<A>(p.out, out + c * p.out.strides[3]);
      delta += x * number_at<A>(p.d_out, d_out + c * p.d_out.strides[3]);
      zero = zero && x == 0;
    }
    UNROLL for (int step = 16; step > 0; step /= 2) delta += shuffle_xor(delta, step);
    zero = ballot(!zero) == 0;
    if (lane() == 0) store_statistics(args, batch, head, token, delta, zero);
  }
}
// A block of 256 threads to a head.
template <class A>
DEVICE void attention_sinks_gradient(const heed_cuda_attention_backward& args) {
  const heed_attention_backward& p = args.problem;
  const int head = block_x(), tokens = static_cast<int>(p.q.shape[1]);
  const A sink = number_at<A>(p.scores.sinks, head * p.scores.sinks.strides[0]);
  double sum = 0;
  for (int64_t i = thread_x(); i < p.q.shape[0] * tokens; i += block_threads()) {
    const A* row = static_cast<const A*>(args.statistics) + 4 * statistics_row(p, static_cast<int>(i / tokens), head, static_cast<int>(i % tokens));
    sum += static_cast<double>(wide_exp(sink - row[2]) * row[1]);
  }
  UNROLL for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
  const Shared<double> sums = shared<double>(0, 8);
  if (lane() == 0) sums[warp()] = sum;
  sync_block();
  if (thread_x() != 0) return;
  for (int w = 1; w < block_threads() / 32; w++) sum += sums[w];
  static_cast<A*>(p.d_sinks.data)[head * p.d_sinks.strides[0]] = static_cast<A>(-sum);
}

}  // namespace heed
