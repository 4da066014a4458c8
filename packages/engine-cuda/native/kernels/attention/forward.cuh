// Attention forward on mma.sync (FlashAttention-2: Dao 2023, arXiv:2307.08691): a block has kRows query rows of one key head, walks over
// the keys that any of them sees in tiles of kKeys, and keeps running maxima and sums of its rows. While scores are computed the values
// arrive, while weights are the next keys.
#pragma once
#include "forward_rows.cuh"

namespace heed {

template <class T, int kD, int kDv, int kRows, int kKeys, int kWarps, bool kRich>
struct Forward : ForwardRows<T, kD, kDv, kRows, kKeys, kWarps, kRich> {
  using Base = ForwardRows<T, kD, kDv, kRows, kKeys, kWarps, kRich>;
  using Base::args, Base::rules, Base::s, Base::first_row, Base::d, Base::dv, Base::dv_start, Base::own_thread, Base::scores, Base::acc,
      Base::weights, Base::kTall, Base::kScores, Base::kThreads, Base::kWarpRows, Base::lane, Base::warp, Base::rows, Base::has;

  static constexpr int kQBytes = kRows * Tile<kD>::kPitch, kKBytes = kKeys * Tile<kD>::kPitch, kVBytes = kKeys * Tile<kDv>::kPitch;
  static constexpr int kShared = kQBytes + kKBytes + kVBytes;

  Tile<kD> q_tile, k_tile;
  Tile<kDv> v_tile;

  DEVICE Forward(const heed_cuda_attention& args, const Sequence& s, int first_row, int d, int dv, int dv_start)
      : Base(args, s, first_row, d, dv, dv_start) {
    q_tile.start = shared_start();
    k_tile.start = q_tile.start + kQBytes;
    v_tile.start = k_tile.start + kKBytes;
  }
  // The first tile of the walk over the keys of a block from tile `first` on.
  DEVICE int seen_from(int first, Range keys) const { return kRich ? skip_hidden(first, Base::sinks(), keys.begin / kKeys * kKeys) : first; }

  DEVICE void load_keys(int first, Range keys) const {
    Base::template load_tokens<kThreads>(k_tile, s.k, s.k_token, s.k_page, first, keys, d, own_thread);
  }
  DEVICE void load_values(int first, Range keys) const {
    Base::template load_tokens<kThreads>(v_tile, s.v + dv_start * 2, s.v_token, s.v_page, first, keys, dv, own_thread);
  }
  DEVICE void multiply_keys() {
    UNROLL for (int t = 0; t < kTall; t++) UNROLL for (int n = 0; n < kScores; n++) UNROLL for (int e = 0; e < 4; e++) scores[t][n][e] = 0;
    const uint32_t q_lane = lane_of_a(q_tile, lane()) + step<kD>(warp() * kWarpRows, 0), k_lane = lane_of_b_rows(k_tile, lane());
    UNROLL for (int k = 0; k < kD / 16; k++) {
      uint32_t a[kTall][4];
      UNROLL for (int t = 0; t < kTall; t++) load_matrix_x4(a[t], q_lane + step<kD>(t * 16, k));
      UNROLL for (int n = 0; n < kScores / 2; n++) {
        uint32_t b[4];
        load_matrix_x4(b, k_lane + step<kD>(n * 16, k));
        UNROLL for (int t = 0; t < kTall; t++) {
          mma_16x8x16<T>(scores[t][2 * n], a[t], b[0], b[1]);
          mma_16x8x16<T>(scores[t][2 * n + 1], a[t], b[2], b[3]);
        }
      }
    }
  }
  DEVICE void multiply_values() {
    const uint32_t v_lane = lane_of_b_columns(v_tile, lane());
    UNROLL for (int k = 0; k < kKeys / 16; k++) {
      UNROLL for (int n = 0; n < kDv / 16; n++) {
        uint32_t b[4];
        load_matrix_x4_transposed(b, v_lane + step<kDv>(k * 16, n));
        UNROLL for (int t = 0; t < kTall; t++) {
          mma_16x8x16<T>(acc[t][2 * n], weights[t][k], b[0], b[1]);
          mma_16x8x16<T>(acc[t][2 * n + 1], weights[t][k], b[2], b[3]);
        }
      }
    }
  }

  // In the padding of the queries' rows: a word of each warp, and in the first row's the keys' bits.
  DEVICE Shared<uint32_t> warp_mark(int w) const { return shared<uint32_t>(w * Tile<kD>::kPitch + 2 * kD, 1); }
  DEVICE Shared<uint32_t> marks() const { return shared<uint32_t>(2 * kD, 4); }
  DEVICE static void sync() { sync_block(); }
  DEVICE Shared<Vec16> value_words(int row, int chunk) const { return shared<Vec16>(kQBytes + kKBytes + row * Tile<kDv>::kPitch + chunk * 16, 1); }

  DEVICE void run() {
    const int last_row = first_row + kRows < rows() ? first_row + kRows - 1 : rows() - 1;
    const Range head_sees = visible_keys(rules, s, first_row / s.group), tail_sees = visible_keys(rules, s, last_row / s.group);
    const Range keys = {head_sees.begin, tail_sees.end};
    Base::start_rows();
    int first = kRich ? seen_from(0, keys) : keys.begin / kKeys * kKeys;
    Base::load_queries(q_tile);
    if (first < keys.end) load_keys(first, keys);
    copy_async_commit();
    for (int next; first < keys.end; first = next) {
      copy_async_wait<0>();
      sync_block();  // the keys are there, and nobody reads the values before them any more
      load_values(first, keys);
      next = seen_from(first + kKeys, keys);
      copy_async_commit();
      multiply_keys();
      const bool all_seen = first >= tail_sees.begin && first + kKeys <= head_sees.end;
      Base::finish_scores(first, all_seen);
      copy_async_wait<0>();
      sync_block();  // the values are there, and nobody reads the keys any more
      if (next < keys.end) load_keys(next, keys);
      copy_async_commit();
      Base::weigh();
      Base::rescale();
      if constexpr (kRich)
        if (rules.dropout_factor != 0) Base::drop(first);
      Base::pack_weights();
      const bool alike = all_seen && !(kRich && (rules.mask.data || rules.dropout_factor != 0));
      const bool odd = alike ? false : Base::clear_odd_values(*this);
      multiply_values();
      if (odd) Base::add_odd_values(*this, first);
    }
    copy_async_wait<0>();
    Base::store();
  }
};

// Grid: tiles of rows, key heads, slices of kDv values.
template <class T, int kD, int kDv, int kRows, int kKeys, int kWarps, bool kRich>
DEVICE void attention_forward(const heed_cuda_attention& args) {
  const Work work = find_work(args, block_x(), kRows);
  if (work.sequence < 0) return;
  const Sequence s = sequence_of(args, work.sequence, block_y());
  if (s.tokens == 0) return;  // of a table that does not fit
  const int axis = args.indices.data ? 2 : 3, dv_start = kD > kDv && kD > 256 ? block_z() * kDv : 0;  // the others take all values at once
  const int d = static_cast<int>(args.q.shape[axis]), dv = static_cast<int>(args.out.shape[axis]) - dv_start;
  Forward<T, kD, kDv, kRows, kKeys, kWarps, kRich>(args, s, work.tile * kRows, d, dv, dv_start).run();
}

}  // namespace heed
