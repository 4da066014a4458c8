// RMS normalisation (Zhang, Sennrich 2019, arXiv:1910.07467) over the last axis, and its backward:
//   r = 1 / sqrt(mean(x^2) + eps);  out = x r w               w = weight, or 1 + weight, or 1
//   g = d_out w;  d_x = r (g - x r^2 mean(g x));  d_weight = sum over rows of d_out x r
// A row's lanes take its vectors in turn; how many they are depends on its length and dtype alone (src/fused/rows.ts), so that every
// kernel that normalises adds in one order and gives the same bits. A row of at most kRowVectors vectors a lane is read once, and the
// next one while it is normalised; a longer one twice, the second time from the first-level cache.
#pragma once
#include "../core/softmax.cuh"

namespace heed {
DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }  // written out, so that no kernel rounds another way
DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }

/// f(place, count) for the vectors of a row of n that belong to one of its lanes.
template <int N, typename F> DEVICE void each_vector(int64_t n, int lane_of_row, int lanes, F f) {
  for (int64_t i = static_cast<int64_t>(lane_of_row) * N; i < n; i += static_cast<int64_t>(lanes) * N)
    f(i, n - i < N ? static_cast<int>(n - i) : N);
}
/// r of a row of n; `get(place, count, values)` loads it, `own` are the elements of this lane's row: n, or 0. Collective in the block.
template <int N, typename A, typename Get>
DEVICE A inverse_rms(int64_t n, int64_t own, int lane_of_row, int lanes, double eps, const Shared<A>& scratch, Get get) {
  A sum = 0;
  each_vector<N>(own, lane_of_row, lanes, [&](int64_t i, int count) {
    A x[N];
    get(i, count, x);  // zeros beyond count
    UNROLL for (int k = 0; k < N; k++) sum = fused(x[k], x[k], sum);
  });
  sum = across_lanes(sum, lanes, scratch, [](A a, A b) { return a + b; });
  return A(1) / square_root(sum / static_cast<A>(n) + static_cast<A>(eps));
}
/// The factors of neighbours of a row; they are dense.
template <typename A, int N> DEVICE void load_gain(const heed_tensor& weight, bool unit_offset, int64_t i, int count, A (&w)[N]) {
  if (weight.data == nullptr) {
    UNROLL for (int k = 0; k < N; k++) w[k] = 1;
    return;
  }
  load_wide<A>(elements<A>(weight) + i, 1, count, w);
  if (unit_offset) UNROLL for (int k = 0; k < N; k++) w[k] += 1;
}
/// x becomes x r w.
template <typename A, int N>
DEVICE void normalise(const heed_tensor& weight, bool unit_offset, int64_t i, int count, A r, A (&x)[N]) {
  A w[N];
  load_gain<A>(weight, unit_offset, i, count, w);
  UNROLL for (int k = 0; k < N; k++) x[k] = x[k] * r * w[k];
}

constexpr int kRowVectors = 4;  // that a lane keeps in registers
/// From one row of [rows, n], or [n], to the next.
DEVICE int64_t row_step(const heed_tensor& t) { return t.rank == 1 ? 0 : t.strides[0]; }
/// Whether t has rows at one distance, and every one is whole aligned vectors.
template <typename T> DEVICE bool has_vectors(const heed_tensor& t) {
  constexpr int N = vector_width<T>;
  const int last = t.rank - 1;
  return t.rank <= 2 && t.strides[last] == 1 && t.shape[last] % N == 0 && row_step(t) % N == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}
/// The sum over the lanes of a row, in the order of across_lanes. Rows of a block take the two halves of its scratch in turn: one barrier each.
template <typename A> DEVICE A add_across(A value, int lanes, const Shared<A>& scratch, int half) {
  UNROLL for (int step = 1; step < 32; step *= 2) {
    const A other = shuffle_xor(value, step);
    if (step < lanes) value += other;
  }
  if (lanes <= 32) return value;
  if (lane() == 0) scratch[half * 16 + warp()] = value;
  sync_block();
  value = scratch[half * 16];
  UNROLL for (int w = 1; w < 8; w++) value += scratch[half * 16 + w];
  return value;
}
/// 16 bytes of a row, as they came: nobody waits for them before they are unpacked.
template <typename T> struct RawVector {
  Vec16 bytes;
  DEVICE void unpack(Acc<T> (&x)[vector_width<T>]) const {
    union { Vec16 bytes; T at[vector_width<T>]; } both = {bytes};
    UNROLL for (int k = 0; k < vector_width<T>; k++) x[k] = widen(both.at[k]);
  }
};
template <typename T> DEVICE Vec16 pack(const Acc<T> (&x)[vector_width<T>]) {
  union { T at[vector_width<T>]; Vec16 bytes; } both;
  UNROLL for (int k = 0; k < vector_width<T>; k++) both.at[k] = narrow<T>(x[k]);
  return both.bytes;
}
constexpr int kMostRows = 1 << 30;  // that are counted in 32 bits
/// Dense rows of at most V vectors a lane; kAhead: the next row is loaded before this one is added up, and weights stay in registers.
template <typename T, int V, bool kAhead> DEVICE void norm_vectors(const heed_cuda_rms_norm& args) {
  using A = Acc<T>;
  constexpr int N = vector_width<T>;
  const heed_rms_norm& p = args.problem;
  const int lanes = args.lanes, per_block = block_threads() / lanes, own = thread_x() % lanes * N, n = static_cast<int>(p.x.shape[p.x.rank - 1]);
  const A length = static_cast<A>(n), eps = static_cast<A>(p.eps);
  const Shared<A> scratch = shared<A>(0, 32);
  const int turn = grid_x() * per_block, rows = static_cast<int>(args.rows);
  int row = block_x() * per_block + thread_x() / lanes;
  const auto load = [&](RawVector<T> (&to)[V]) {
    const T* x = elements<T>(p.x) + row * row_step(p.x) + own;
    UNROLL for (int v = 0; v < V; v++) {
      to[v].bytes = Vec16{};
      if (row < rows && own + v * lanes * N < n) to[v].bytes = load_16(x + v * lanes * N);
    }
  };
  RawVector<T> raw[V], next[V];
  load(raw);
  A gain[kAhead ? V : 1][N];
  if constexpr (kAhead)
    UNROLL for (int v = 0; v < V; v++)
      if (own + v * lanes * N < n) load_gain<A>(p.weight, p.unit_offset != 0, own + v * lanes * N, N, gain[v]);
  // The same turns in every thread of the block, which meets in add_across.
  for (int first = block_x() * per_block, half = 0; first < rows; first += turn, half ^= 1) {
    const bool real = row < rows;
    T* out = elements<T>(p.out) + row * row_step(p.out) + own;
    row += turn;
    if (kAhead) load(next);
    A sum = 0, wide[N];
    UNROLL for (int v = 0; v < V; v++) {
      raw[v].unpack(wide);
      UNROLL for (int k = 0; k < N; k++) sum = fused(wide[k], wide[k], sum);
    }
    sum = add_across(sum, lanes, scratch, half);
    const A r = A(1) / square_root(sum / length + eps);
    UNROLL for (int v = 0; v < V; v++) {
      const int i = own + v * lanes * N;
      if (!real || i >= n) continue;
      if constexpr (!kAhead) load_gain<A>(p.weight, p.unit_offset != 0, i, N, gain[0]);
      raw[v].unpack(wide);
      UNROLL for (int k = 0; k < N; k++) wide[k] = wide[k] * r * gain[kAhead ? v : 0][k];
      store_16(out + v * lanes * N, pack<T>(wide));
    }
    if (!kAhead) load(raw);
    else UNROLL for (int v = 0; v < V; v++) raw[v] = next[v];
  }
}
template <typename T> DEVICE void norm_any(const heed_cuda_rms_norm& args) {
  using A = Acc<T>;
  constexpr int N = vector_width<T>;
  const heed_rms_norm& p = args.problem;
  const int last = p.x.rank - 1, lanes = args.lanes, per_block = block_threads() / lanes, lane_of_row = thread_x() % lanes;
  const int64_t n = p.x.shape[last], x_step = p.x.strides[last], out_step = p.out.strides[last];
  const Shared<A> scratch = shared<A>(0, 32);
  const int64_t turn = static_cast<int64_t>(grid_x()) * per_block;
  for (int64_t first = static_cast<int64_t>(block_x()) * per_block; first < args.rows; first += turn) {
    const int64_t row = first + thread_x() / lanes, own = row < args.rows ? n : 0;
    const Offsets<2> at = seek(own ? row : 0, 0, last, p.out, p.x);
    const T* x = elements<T>(p.x) + at.at[1];
    T* out = elements<T>(p.out) + at.at[0];
    const auto get = [&](int64_t i, int count, A (&values)[N]) { load_wide<T>(x + i * x_step, x_step, count, values); };
    const A r = inverse_rms<N, A>(n, own, lane_of_row, lanes, p.eps, scratch, get);
    each_vector<N>(own, lane_of_row, lanes, [&](int64_t i, int count) {
      A values[N];
      get(i, count, values);
      normalise(p.weight, p.unit_offset != 0, i, count, r, values);
      store_narrow<T>(out + i * out_step, out_step, count, values);
    });
  }
}
template <typename T> DEVICE void rms_norm(const heed_cuda_rms_norm& args) {
  const heed_rms_norm& p = args.problem;
  const int64_t each = static_cast<int64_t>(args.lanes) * vector_width<T>, n = p.x.shape[p.x.rank - 1];
  if (n > kRowVectors * each || args.rows > kMostRows || !has_vectors<T>(p.x) || !has_vectors<T>(p.out)) norm_any<T>(args);
  else if (n > 2 * each) norm_vectors<T, kRowVectors, false>(args);
  else norm_vectors<T, 2, true>(args);
}

constexpr int kKept = 4;  // vectors of d_weight that a lane keeps in registers
/// Adds to neighbours of a group's row of partial sums.
template <typename A, int N> DEVICE void add_partial(A* partial, int64_t i, int count, const A (&values)[N]) {
  A sum[N];
  load_elements(partial + i, 1, count, sum);
  UNROLL for (int k = 0; k < N; k++) sum[k] += values[k];
  store_elements(partial + i, 1, count, sum);
}
/// Between the numbers of a row: vectors are for dense rows.
template <int N> DEVICE int64_t step_of(const heed_tensor& t) { return N == 1 ? t.strides[t.rank - 1] : 1; }
/// d_x of a vector; returns its part of d_weight in w.
template <typename T, int N>
DEVICE void backward_vector(const heed_rms_norm_backward& p, const T* x, const T* d_out, T* d_x, int64_t i, int count, Acc<T> r, Acc<T> along,
                            Acc<T> (&w)[N]) {
  Acc<T> values[N], g[N];
  load_wide<T>(x + i * step_of<N>(p.x), step_of<N>(p.x), count, values);
  load_wide<T>(d_out + i * step_of<N>(p.d_out), step_of<N>(p.d_out), count, g);
  UNROLL for (int k = 0; k < N; k++) w[k] = g[k] * values[k] * r;
  normalise(p.weight, p.unit_offset != 0, i, count, Acc<T>(1), g);
  UNROLL for (int k = 0; k < N; k++) values[k] = (g[k] - values[k] * along) * r;
  store_narrow<T>(d_x + i * step_of<N>(p.d_x), step_of<N>(p.d_x), count, values);
}
/// d_x, and sums of d_weight over the rows of each group of lanes into partial [groups, n]: added up in registers where a row has at
/// most kKept vectors a lane, else in the group's row of partial, which no other group touches. Which row takes part where depends
/// on the shape alone: the same bits every time.
template <typename T, int N, bool kRegisters> DEVICE void backward_rows(const heed_cuda_rms_norm_backward& args) {
  using A = Acc<T>;
  const heed_rms_norm_backward& p = args.problem;
  const int last = p.x.rank - 1, lanes = args.lanes, per_block = block_threads() / lanes, lane_of_row = thread_x() % lanes;
  const int64_t n = p.x.shape[last];
  const Shared<A> scratch = shared<A>(0, 32);
  const int64_t group = static_cast<int64_t>(block_x()) * per_block + thread_x() / lanes;
  A* partial = args.partial ? static_cast<A*>(args.partial) + group * n : nullptr;
  A kept[kRegisters ? kKept : 1][N] = {};
  if (!kRegisters && partial)
    each_vector<N>(n, lane_of_row, lanes, [&](int64_t i, int count) { store_elements(partial + i, 1, count, kept[0]); });
  const int64_t turn = static_cast<int64_t>(grid_x()) * per_block;
  for (int64_t first = static_cast<int64_t>(block_x()) * per_block; first < args.rows; first += turn) {
    const int64_t row = first + thread_x() / lanes, own = row < args.rows ? n : 0;
    const Offsets<3> at = seek(own ? row : 0, 0, last, p.d_x, p.x, p.d_out);
    T* d_x = elements<T>(p.d_x) + at.at[0];
    const T *x = elements<T>(p.x) + at.at[1], *d_out = elements<T>(p.d_out) + at.at[2];
    A along = 0;
    const A r = inverse_rms<N, A>(n, own, lane_of_row, lanes, p.eps, scratch, [&](int64_t i, int count, A (&values)[N]) {
      A g[N];
      load_wide<T>(x + i * step_of<N>(p.x), step_of<N>(p.x), count, values);
      load_wide<T>(d_out + i * step_of<N>(p.d_out), step_of<N>(p.d_out), count, g);
      normalise(p.weight, p.unit_offset != 0, i, count, A(1), g);
      UNROLL for (int k = 0; k < N; k++) along = fused(g[k], values[k], along);
    });
    along = across_lanes(along, lanes, scratch, [](A a, A b) { return a + b; }) / static_cast<A>(n) * r * r;
    if constexpr (kRegisters) {
      UNROLL for (int v = 0; v < kKept; v++) {
        const int64_t i = static_cast<int64_t>(v * lanes + lane_of_row) * N;
        if (i >= own) continue;
        A w[N];
        backward_vector(p, x, d_out, d_x, i, own - i < N ? static_cast<int>(own - i) : N, r, along, w);
        UNROLL for (int k = 0; k < N; k++) kept[v][k] += w[k];
      }
    } else {
      each_vector<N>(own, lane_of_row, lanes, [&](int64_t i, int count) {
        A w[N];
        backward_vector(p, x, d_out, d_x, i, count, r, along, w);
        if (partial) add_partial(partial, i, count, w);
      });
    }
  }
  if constexpr (kRegisters) {
    if (partial == nullptr) return;
    UNROLL for (int v = 0; v < kKept; v++) {
      const int64_t i = static_cast<int64_t>(v * lanes + lane_of_row) * N;
      if (i < n) store_elements(partial + i, 1, n - i < N ? static_cast<int>(n - i) : N, kept[v]);
    }
  }
}
template <typename T> DEVICE void rms_norm_backward(const heed_cuda_rms_norm_backward& args) {
  constexpr int N = vector_width<T>;
  const heed_rms_norm_backward& p = args.problem;
  const int last = p.x.rank - 1;
  if (p.x.strides[last] != 1 || p.d_out.strides[last] != 1 || p.d_x.strides[last] != 1) return backward_rows<T, 1, false>(args);
  if (p.x.shape[last] <= static_cast<int64_t>(args.lanes) * N * kKept) backward_rows<T, N, true>(args);
  else backward_rows<T, N, false>(args);
}
}  // namespace heed
