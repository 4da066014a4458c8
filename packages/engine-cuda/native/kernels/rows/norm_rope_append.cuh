// Norm, rotation and append of a step's tokens in one pass, of the same functions as the three kernels and with the same roundings
// between them. A block has some rows of one token: of its queries, keys or values. A row is a head, or all heads of a token where they
// are normalised together.
#pragma once
#include "append.cuh"
#include "rope.cuh"

namespace heed {
/// Rows of one token, x [T, H, D]; `all`: one row of H heads.
template <typename T> struct RowOfHeads {
  const T* data;  // of the first head
  int64_t head_step, step, size, heads;
  /// Neighbours of the row of heads one after the other; zeros beyond count.
  template <int N> DEVICE void get(int64_t i, int count, Acc<T> (&x)[N]) const {
    const int64_t head = heads == 1 ? 0 : divide(i, size), within = i - head * size;
    if (heads == 1 || within + count <= size) return load_wide<T>(data + head * head_step + within * step, step, count, x);
    UNROLL for (int k = 0; k < N; k++) {
      const int64_t at = i + k, h = divide(at, size);
      x[k] = k < count ? widen(data[h * head_step + (at - h * size) * step]) : Acc<T>(0);
    }
  }
};
/// What becomes of q, k or v.
struct Part {
  const heed_tensor &x, &weight, &to;  // to: out, or pages
  int lanes;
  bool normal, all, turns, stored;  // stored: in pages
};
template <typename T> DEVICE void run_part(const heed_norm_rope_append& p, const Part& part, int64_t t, int block, const Shared<Acc<T>>& scratch) {
  using A = Acc<T>;
  constexpr int N = vector_width<T>;
  const int64_t H = part.x.shape[1], D = part.x.shape[2];
  const int lanes = part.lanes, lane_of_row = thread_x() % lanes;
  const int64_t row = static_cast<int64_t>(block) * (block_threads() / lanes) + thread_x() / lanes;
  const Slot slot = part.stored ? slot_of(p.slots, t, part.to, 0) : Slot{0, 0};
  if (slot.page < 0) return;  // the whole block does
  const bool real = row < (part.all ? 1 : H);
  const int64_t first = part.all || !real ? 0 : row, heads = part.all ? H : 1;
  const RowOfHeads<T> from = {elements<T>(part.x) + t * part.x.strides[0] + first * part.x.strides[1], part.x.strides[1], part.x.strides[2], D, heads};
  A r = 1;
  if (part.normal)
    r = inverse_rms<N, A>(heads * D, real ? heads * D : 0, lane_of_row, lanes, p.eps, scratch,
                          [&](int64_t i, int count, A (&x)[N]) { from.get(i, count, x); });
  if (!real) return;
  Turn<A> turn = {nullptr, nullptr, 0, 0, 0, static_cast<int>(D), false, false, true};  // everything passes through
  if (part.turns)
    turn = turn_at<A>(p.cos, p.sin, elements<int32_t>(p.positions)[t * p.positions.strides[0]], D, p.rotary_dim, p.pairing, false);
  const int per_head = units_of_turn<N>(turn.pairs, turn.size, turn.interleaved);
  for (int64_t unit = lane_of_row; unit < heads * per_head; unit += lanes) {
    const int64_t h = divide(unit, per_head);
    const int64_t at = part.stored ? 0 : t * part.to.strides[0] + (first + h) * part.to.strides[1];
    const FloatRow to = part.stored ? float_row(part.to, slot.page, first + h, slot.row)
                                    : FloatRow{elements<T>(part.to) + at, part.to.strides[2], part.to.dtype};
    turn_unit<N>(
        turn, static_cast<int>(unit - h * per_head),
        [&](int64_t i, int count, A (&x)[N]) {
          load_wide<T>(from.data + h * from.head_step + i * from.step, from.step, count, x);
          if (!part.normal) return;
          normalise(part.weight, p.unit_offset != 0, part.all ? h * D + i : i, count, r, x);
          UNROLL for (int k = 0; k < N; k++) x[k] = widen(narrow<T>(x[k]));
        },
        [&](int64_t i, int count, A (&x)[N]) {
          UNROLL for (int k = 0; k < N; k++) x[k] = widen(narrow<T>(x[k]));
          to.put(i, count, x);
        });
  }
}
template <typename T> DEVICE void norm_rope_append(const heed_cuda_norm_rope_append& args) {
  const heed_norm_rope_append& p = args.problem;
  const Shared<Acc<T>> scratch = shared<Acc<T>>(0, 32);
  const bool turns = p.cos.data != nullptr;
  const int blocks = args.q_blocks + args.k_blocks + args.v_blocks;
  for (int64_t task = block_x(); task < args.tasks; task += grid_x()) {
    const int64_t t = divide(task, blocks);
    const int block = static_cast<int>(task - t * blocks);
    if (block < args.q_blocks) {
      run_part<T>(p, {p.q, p.q_weight, p.out, args.q_lanes, p.q_weight.data != nullptr, args.q_all != 0, turns, false}, t, block, scratch);
    } else if (block < args.q_blocks + args.k_blocks) {
      const int at = block - args.q_blocks;
      run_part<T>(p, {p.k, p.k_weight, p.k_pages, args.k_lanes, p.k_weight.data != nullptr, args.k_all != 0, turns, true}, t, at, scratch);
    } else {
      const int at = block - args.q_blocks - args.k_blocks;
      run_part<T>(p, {p.v, p.k_weight, p.v_pages, args.v_lanes, false, false, false, true}, t, at, scratch);
    }
  }
}
}  // namespace heed
