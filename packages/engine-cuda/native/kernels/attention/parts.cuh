// A long sequence is cut into parts, each the work of a block; their results meet in the block that ends last, in the order of the parts,
// so that neither the batch nor time changes a result. Parts are a function of the sequence alone; only a sequence with one query token
// is cut.
#pragma once
#include "problem.cuh"

namespace heed {

constexpr int kMostParts = 48;

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

// Sums with their tops, one after the other: what was summed is scaled to the larger top. Of four columns side by side.
struct Merged {
  float top = -INFINITY, sum = 0, values[4] = {0, 0, 0, 0};
  DEVICE void add(float other_top, float other_sum, const float (&others_values)[4]) {
    const float high = fmaxf(top, other_top), base = high == -INFINITY ? 0.0f : high;
    const float mine = exp2_approx(top - base), others = exp2_approx(other_top - base);
    sum = sum * mine + other_sum * others;
    UNROLL for (int c = 0; c < 4; c++) values[c] = values[c] * mine + others_values[c] * others;
    top = high;
  }
  DEVICE void add(Vec8 top_and_sum, Vec16 v) {
    add(bits_float(top_and_sum.words[0]), bits_float(top_and_sum.words[1]),
        {bits_float(v.words[0]), bits_float(v.words[1]), bits_float(v.words[2]), bits_float(v.words[3])});
  }
};
template <class T>
DEVICE void store_merged(const heed_cuda_attention& args, const Sequence& s, int row, int column, Merged m) {
  if (args.scores.sinks.data) {
    const float sink = float_at(args.scores.sinks, (s.first_head + row % s.group) * args.scores.sinks.strides[0]) * kLog2E;
    m.add(sink, 1, {0, 0, 0, 0});
  }
  if (s.length == kUnknown) m.sum = NAN;
  const float inverse = m.sum == 0 ? 0.0f : 1.0f / m.sum;
  const Vec8 numbers = {{pack2<T>(m.values[0] * inverse, m.values[1] * inverse), pack2<T>(m.values[2] * inverse, m.values[3] * inverse)}};
  store_8(row_at(args, args.out, s, row) + column * 2, numbers);
  if (args.lse.data && column == 0) *lse_at<float>(args, s, row) = m.sum == 0 ? -INFINITY : m.top * kLn2 + logf(m.sum);
}

constexpr int kPartsAtOnce = 8;  // whose loads are under way together

// A block's share of a part: result(row, column), of four columns, for `rows` rows from first_row on, of which there are `tiles` to a token,
// this being tile number `tile`. partial is [slots, Hkv, G, Dv + 4], top and sum behind the row, counters [N, Hkv, tiles], zero before and
// after. `scratch` is shared memory for one word that nobody uses any more.
template <class T, class Result>
DEVICE void meet(const heed_cuda_attention& args, const Sequence& s, const Part& part, int first_row, int rows, int tile, int tiles, uint32_t scratch,
                 const Result& result) {
  const int dv = static_cast<int>(args.out.shape[2]), width = dv + 4, fours = dv / 4, heads = grid_y(), kv_head = block_y();
  // A sequence's parts lie behind those that the pages of the sequences before it can have, with one to spare for each.
  const int64_t slot = part.count == 1 ? 0 : static_cast<int64_t>(at_i32(args.indptr, s.batch)) * s.page_size / args.part + s.batch;
  float* partial = static_cast<float*>(args.partial) + ((slot * heads + kv_head) * s.group + first_row) * width;
  const int64_t next = static_cast<int64_t>(heads) * s.group * width;  // from one part to the next
  ROLLED for (int i = thread_x(); i < rows * fours; i += block_threads()) {
    const int row = i / fours, column = i % fours * 4;
    const Merged m = result(row, column);
    if (part.count == 1) {
      store_merged<T>(args, s, first_row + row, column, m);
      continue;
    }
    float* out = partial + part.index * next + row * width;
    store_16(out + column, {{float_bits(m.values[0]), float_bits(m.values[1]), float_bits(m.values[2]), float_bits(m.values[3])}});
    if (column == 0) store_8(out + dv, {{float_bits(m.top), float_bits(m.sum)}});
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
  ROLLED for (int i = thread_x(); i < rows * fours; i += block_threads()) {
    const int row = i / fours, column = i % fours * 4;
    const float* in = partial + row * width;
    Merged m;
    ROLLED for (int p = 0; p < part.count; p += kPartsAtOnce) {
      Vec8 tops[kPartsAtOnce];
      Vec16 values[kPartsAtOnce];
      UNROLL for (int n = 0; n < kPartsAtOnce; n++) {
        const float* its = in + (p + n < part.count ? p + n : p) * next;
        tops[n] = load_8(its + dv);
        values[n] = load_16(its + column);
      }
      UNROLL for (int n = 0; n < kPartsAtOnce; n++)
        if (p + n < part.count) m.add(tops[n], values[n]);
    }
    store_merged<T>(args, s, first_row + row, column, m);
  }
  if (thread_x() == 0) *counter = 0;
}

}  // namespace heed
