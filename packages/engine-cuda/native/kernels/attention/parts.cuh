// A long sequence is cut into parts, each the work of a block; their results meet in the block that ends last, in the order of the parts,
// so that neither the batch nor time changes a result. Parts are a function of the sequence alone; only a sequence with one query token
// is cut.
#pragma once
#include "problem.cuh"

namespace heed {

constexpr int kMostParts = 64;

// The keys of one part of a sequence from key `first` on: the sinks, and those of the window; and how many parts have any. Of a sequence
// without visible keys the window's first part has none of them.
struct Part {
  Range keys;  // of the window
  int first;
  int count, index;  // index -1: nothing to do
};
// Parts of a multiple of `tile` keys, at least `least`.
DEVICE Part part_of(const Sequence& s, Range seen, int sinks, int tile, int least, int number) {
  if (s.tokens != 1) return {seen, 0, 1, number == 0 ? 0 : -1};
  int size = (s.length + kMostParts - 1) / kMostParts;
  size = (size + tile - 1) / tile * tile;
  if (size < least) size = least;
  // Parts below sunk have sinks, the others from `first` on the window's keys.
  const int sunk = ((sinks < seen.end ? sinks : seen.end) + size - 1) / size;
  const int first = seen.begin / size > sunk ? seen.begin / size : sunk;
  int end = seen.end > seen.begin ? (seen.end + size - 1) / size : first;
  if (sunk + end == first) end++;
  const int count = sunk + end - first, hidden = number < sunk ? 0 : first - sunk;
  if (number >= end || (number >= sunk && number < first)) return {{0, 0}, 0, count, -1};
  const int from = number * size, to = from + size;
  return {{from > seen.begin ? from : seen.begin, to < seen.end ? to : seen.end}, from, count, number - hidden};
}

// Sums with their tops, one after the other: what was summed is scaled to the larger top.
struct Merged {
  float top = -INFINITY, sum = 0, value = 0;
  DEVICE void add(float other_top, float other_sum, float other_value) {
    const float high = fmaxf(top, other_top), base = high == -INFINITY ? 0.0f : high;
    const float mine = exp2_approx(top - base), others = exp2_approx(other_top - base);
    sum = sum * mine + other_sum * others;
    value = value * mine + other_value * others;
    top = high;
  }
};
template <class T>
DEVICE void store_merged(const heed_cuda_attention& args, const Sequence& s, int row, int column, Merged m) {
  if (args.scores.sinks.data) {
    const float sink = float_at(args.scores.sinks, (s.first_head + row % s.group) * args.scores.sinks.strides[0]) * kLog2E;
    m.add(sink, 1, 0);
  }
  if (s.length == kUnknown) m.sum = NAN;
  const float inverse = m.sum == 0 ? 0.0f : 1.0f / m.sum;
  reinterpret_cast<T*>(row_at(args, args.out, s, row))[column] = from_float<T>(m.value * inverse);
  if (args.lse.data && column == 0) *lse_at<float>(args, s, row) = m.sum == 0 ? -INFINITY : m.top * kLn2 + logf(m.sum);
}

// A block's share of a part: result(row, column) for `rows` rows from first_row on, of which there are `tiles` to a token, this being
// tile number `tile`. partial is [slots, Hkv, G, Dv + 2], counters [N, Hkv, tiles], zero before and after. `scratch` is shared memory for
// one word that nobody uses any more.
template <class T, class Result>
DEVICE void meet(const heed_cuda_attention& args, const Sequence& s, const Part& part, int first_row, int rows, int tile, int tiles, uint32_t scratch,
                 const Result& result) {
  const int dv = static_cast<int>(args.out.shape[2]), width = dv + 2, heads = grid_y(), kv_head = block_y();
  // A sequence's parts lie behind those that the pages of the sequences before it can have, with one to spare for each.
  const int64_t slot = part.count == 1 ? 0 : static_cast<int64_t>(at_i32(args.indptr, s.batch)) * s.page_size / args.part + s.batch;
  float* partial = static_cast<float*>(args.partial);
  for (int i = thread_x(); i < rows * dv; i += block_threads()) {
    const int row = i / dv, column = i % dv;
    const Merged m = result(row, column);
    if (part.count == 1) {
      store_merged<T>(args, s, first_row + row, column, m);
      continue;
    }
    float* out = partial + (((slot + part.index) * heads + kv_head) * s.group + first_row + row) * width;
    out[column] = m.value;
    if (column == 0) {
      out[dv] = m.top;
      out[dv + 1] = m.sum;
    }
  }
  if (part.count == 1) return;
  memory_fence();
  sync_block();
  const Shared<uint32_t> order = shared<uint32_t>(scratch, 1);
  uint32_t* counter = static_cast<uint32_t*>(args.counters) + (s.batch * heads + kv_head) * tiles + tile;
  if (thread_x() == 0) order[0] = atomic_fetch_add(counter, 1);
  sync_block();
  if (order[0] != static_cast<uint32_t>(part.count - 1)) return;
  memory_fence();
  for (int i = thread_x(); i < rows * dv; i += block_threads()) {
    const int row = i / dv, column = i % dv;
    Merged m;
    for (int p = 0; p < part.count; p++) {
      const float* in = partial + (((slot + p) * heads + kv_head) * s.group + first_row + row) * width;
      m.add(in[dv], in[dv + 1], in[column]);
    }
    store_merged<T>(args, s, first_row + row, column, m);
  }
  if (thread_x() == 0) *counter = 0;
}

}  // namespace heed
