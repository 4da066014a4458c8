// Sums, maxima and minima over any axes. The shared-memory tree and the pieces depend on the shape alone and nothing is added by
// atomics, so a result has the same bits every time.
#pragma once
#include "numbers.cuh"
#include "walk.cuh"

namespace heed {
template <typename A> DEVICE A nothing(int op) {
  return op == HEED_REDUCE_SUM ? A(0) : op == HEED_REDUCE_MAX ? Traits<A>::lowest() : Traits<A>::highest();
}
/// Of three selections: some four instructions, where the loads allow some thirty (3.3 TB/s of float32 on 132 multiprocessors).
template <typename A> DEVICE A fold(int op, A a, A b) {
  return op == HEED_REDUCE_SUM ? add(a, b) : op == HEED_REDUCE_MAX ? larger(a, b) : smaller(a, b);
}

/// Units first, first + step, ... of one result's piece, whose x starts at `x`. kAhead units are loaded before they are folded, into
/// running results of their own: single elements are too small to keep the memory busy one at a time.
template <typename T, int N>
DEVICE Acc<T> fold_units(const heed_cuda_reduce& args, const T* x, int64_t first, int64_t end, int64_t step) {
  using A = Acc<T>;
  constexpr int kAhead = N == 1 ? 4 : 1;
  const heed_reduce& p = args.problem;
  const int64_t x_step = p.x.strides[p.x.rank - 1];
  A running[kAhead][N];
  UNROLL for (int k = 0; k < kAhead; k++)
    UNROLL for (int i = 0; i < N; i++) running[k][i] = nothing<A>(p.op);
  for (int64_t unit = first; unit < end; unit += step * kAhead) {
    A values[kAhead][N];
    int counts[kAhead];
    UNROLL for (int k = 0; k < kAhead; k++) {
      counts[k] = 0;
      if (unit + k * step >= end) continue;
      const Unit<1> at = locate(args.along, unit + k * step, args.kept, p.x);
      counts[k] = at.count;
      load_wide<T>(x + at.offsets.at[0], x_step, at.count, values[k]);
    }
    UNROLL for (int k = 0; k < kAhead; k++)
      UNROLL for (int i = 0; i < N; i++)
        if (i < counts[k]) running[k][i] = fold(p.op, running[k][i], values[k][i]);
  }
  UNROLL for (int k = 0; k < kAhead; k++)
    UNROLL for (int i = 0; i < N; i++)
      if (k + i > 0) running[0][0] = fold(p.op, running[0][0], running[k][i]);
  return running[0][0];
}
template <typename T>
DEVICE Acc<T> fold_piece(const heed_cuda_reduce& args, int64_t offset, int64_t first, int64_t end, int64_t step) {
  const T* x = elements<T>(args.problem.x) + offset;
  if (args.along.width == 1) return fold_units<T, 1>(args, x, first, end, step);
  return fold_units<T, vector_width<T>>(args, x, first, end, step);
}
/// x may be of any dtype that is computed in A, and so may out: partial results are kept in A.
template <typename A>
DEVICE A fold_any(const heed_cuda_reduce& args, int64_t offset, int64_t first, int64_t end, int64_t step) {
  if constexpr (sizeof(A) == 4 && Traits<A>::is_float) {
    if (args.problem.x.dtype == HEED_FLOAT16) return fold_piece<f16>(args, offset, first, end, step);
    if (args.problem.x.dtype == HEED_BFLOAT16) return fold_piece<bf16>(args, offset, first, end, step);
  }
  return fold_piece<A>(args, offset, first, end, step);
}
template <typename A> DEVICE void store_result(const heed_tensor& out, int64_t offset, A value) {
  if constexpr (sizeof(A) == 4 && Traits<A>::is_float) {
    if (out.dtype == HEED_FLOAT16) return static_cast<void>(elements<f16>(out)[offset] = narrow<f16>(value));
    if (out.dtype == HEED_BFLOAT16) return static_cast<void>(elements<bf16>(out)[offset] = narrow<bf16>(value));
  }
  elements<A>(out)[offset] = value;
}

/// Block y is the piece; shared memory holds block_threads() of A.
template <typename A> DEVICE void reduce(const heed_cuda_reduce& args) {
  const heed_reduce& p = args.problem;
  const int across = args.across, lanes = block_threads() / across;
  const int column = args.dense ? thread_x() / lanes : thread_x() % across;
  const int row = args.dense ? thread_x() % lanes : thread_x() / across;
  const int place = row * across + column;
  const Shared<A> partial = shared<A>(0, block_threads());
  const int64_t piece = block_y(), begin = piece * args.piece;
  const int64_t end = begin + args.piece < args.along.units ? begin + args.piece : args.along.units;
  for (int64_t group = block_x(); group * across < args.results; group += grid_x()) {
    const int64_t result = group * across + column;
    const bool real = result < args.results;
    A value = nothing<A>(p.op);
    if (real) value = fold_any<A>(args, seek(result, 0, args.kept, p.x).at[0], begin + row, end, lanes);
    if (lanes > 1) {
      sync_block();
      partial[place] = value;
      for (int half = lanes / 2; half > 0; half /= 2) {
        sync_block();
        if (row < half) partial[place] = value = fold(p.op, value, partial[place + half * across]);
      }
    }
    if (real && row == 0)
      store_result<A>(p.out, seek(result, 0, args.kept, p.out).at[0] + piece * p.out.strides[args.kept], value);
  }
}
}  // namespace heed
