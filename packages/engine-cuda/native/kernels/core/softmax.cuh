// Softmax over the last axis: exp(x - max) / sum, in three passes over a row of which the caches serve the last two. A row of
// -Infinity gives zeros; a NaN, or Infinity, makes its row NaN.
#pragma once
#include "numbers.cuh"
#include "walk.cuh"

namespace heed {
/// f over the values of the lanes of a row, the same for each of them. Collective in the block. `scratch` holds one A a warp.
template <typename A, typename F> DEVICE A across_lanes(A value, int lanes, const Shared<A>& scratch, F f) {
  for (int step = 1; step < lanes && step < 32; step *= 2) value = f(value, shuffle_xor(value, step));
  if (lanes <= 32) return value;
  sync_block();  // the scratch may still be read
  if (lane() == 0) scratch[warp()] = value;
  sync_block();
  value = scratch[0];
  for (int w = 1; w < lanes / 32; w++) value = f(value, scratch[w]);
  return value;
}
template <typename T, int N> DEVICE void softmax_rows(const heed_cuda_softmax& args) {
  using A = Acc<T>;
  const heed_softmax& p = args.problem;
  const int last = p.x.rank - 1, lanes = args.lanes, per_block = block_threads() / lanes, lane_of_row = thread_x() % lanes;
  const int64_t n = p.x.shape[last], x_step = p.x.strides[last], out_step = p.out.strides[last];
  const Shared<A> scratch = shared<A>(0, 32);
  const int64_t turn = static_cast<int64_t>(grid_x()) * per_block;
  for (int64_t first = static_cast<int64_t>(block_x()) * per_block; first < args.rows; first += turn) {
    const int64_t row = first + thread_x() / lanes, end = row < args.rows ? n : 0;
    const Offsets<2> at = seek(row < args.rows ? row : 0, 0, last, p.out, p.x);
    const T* x = elements<T>(p.x) + at.at[1];
    T* out = elements<T>(p.out) + at.at[0];
    const auto each = [&](auto f) {  // f(place, count, values) for each N neighbours of this lane
      for (int64_t i = static_cast<int64_t>(lane_of_row) * N; i < end; i += static_cast<int64_t>(lanes) * N) {
        A values[N];
        const int count = end - i < N ? static_cast<int>(end - i) : N;
        load_wide<T>(x + i * x_step, x_step, count, values);
        f(i, count, values);
      }
    };
    A most = Traits<A>::lowest();
    each([&](int64_t, int count, A (&values)[N]) {
      UNROLL for (int k = 0; k < N; k++)
        if (k < count) most = larger(most, values[k]);
    });
    most = across_lanes(most, lanes, scratch, [](A a, A b) { return larger(a, b); });
    const bool empty = most == Traits<A>::lowest();
    A sum = 0;
    each([&](int64_t, int count, A (&values)[N]) {
      UNROLL for (int k = 0; k < N; k++)
        if (k < count) sum += exponential(values[k] - most);
    });
    sum = across_lanes(sum, lanes, scratch, [](A a, A b) { return a + b; });
    each([&](int64_t i, int count, A (&values)[N]) {
      UNROLL for (int k = 0; k < N; k++) values[k] = empty ? A(0) : exponential(values[k] - most) / sum;
      store_narrow<T>(out + i * out_step, out_step, count, values);
    });
  }
}
template <typename T> DEVICE void softmax(const heed_cuda_softmax& args) {
  const int last = args.problem.x.rank - 1;
  if (args.problem.x.strides[last] == 1 && args.problem.out.strides[last] == 1) softmax_rows<T, vector_width<T>>(args);
  else softmax_rows<T, 1>(args);
}
}  // namespace heed
