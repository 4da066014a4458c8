// Attention backward by keys in pairs of warps, where no rule but causality, window and length hides a pair; backward.cuh has the rest.
//
// Two warps own the same keys. One has dv: it computes scores and weights and hands the weights, as fragments, to the other, which has dk
// and a tile later computes dp and gradients. So a warp has one sum, which leaves registers for 32 keys at head size 128: a number read
// from shared memory meets twice as many as with 16. In return there are three tiles of rows in shared memory, and the weights of two.
//
// Where pairs of a tile may be hidden, fragments of the last product are cleared of what is not finite.
#pragma once
#include "backward.cuh"

namespace heed {

struct alignas(16) Fragment { float at[4]; };

// kHeld: of the operands [32, 16] that a warp owns, those that stay in registers.
template <class T, int kD, int kHeld>
struct BackwardPairs : Backward<T, true, kD, kD, 2, 32, 4, 1, true, false> {
  static constexpr int kTall = 2, kOther = 32, kStages = 3;
  using Base = Backward<T, true, kD, kD, kTall, kOther, 4, 1, true, false>;
  using Base::kFrags, Base::kOwnBytes, Base::kOtherBytes;
  using Base::scores, Base::gradients, Base::weights_packed, Base::gradients_packed, Base::sum, Base::rules, Base::s, Base::p;
  using Base::Base;
  uint32_t held[kHeld > 0 ? kHeld : 1][kTall][4];

  // Weights of a tile, of this lane and its pair's other lane of that number.
  DEVICE static Fragment& handed(int parity, int t, int n) {
    const int fragment = (parity * 2 + warp() / 2) * kTall * kFrags + t * kFrags + n;
    return shared<Fragment>(kOwnBytes + kStages * kOtherBytes + (fragment * 32 + lane()) * 16, 1)[0];
  }
  DEVICE void hold(const Tile<kD>& tile) {
    UNROLL for (int k = 0; k < kHeld; k++) UNROLL for (int t = 0; t < kTall; t++) load_a(held[k][t], tile, Base::warp_row() + t * 16, k);
  }
  // c [own, other] = a b^T over the columns of two tiles.
  DEVICE void multiply_own(float (&c)[kTall][kFrags][4], const Tile<kD>& a_tile, const Tile<kD>& b_tile) const {
    Base::clear(c);
    const uint32_t a_start = Base::lane_start(a_tile) + Base::warp_row() * Tile<kD>::kPitch, b_start = Base::lane_start_rows(b_tile);
    UNROLL for (int k = 0; k < kD / 16; k++) {
      uint32_t a[kTall][4];
      UNROLL for (int t = 0; t < kTall; t++) {
        if (k < kHeld) UNROLL for (int w = 0; w < 4; w++) a[t][w] = held[k < kHeld ? k : 0][t][w];
        else load_matrix_x4(a[t], a_start + t * 16 * Tile<kD>::kPitch + k * 32);
      }
      Base::template multiply_16<kD>(c, a, b_start + k * 32);
    }
  }
  // Whether a row meets a key of this lane: all do where `seen`.
  struct Met { Range of[kTall][2]; };
  DEVICE Met find_met() const {
    Met met;
    UNROLL for (int t = 0; t < kTall; t++) UNROLL for (int u = 0; u < 2; u++) met.of[t][u] = Base::meets(t, u);
    return met;
  }
  DEVICE static bool has(Range range, int row) { return row >= range.begin && row < range.end; }
  // Products become weights.
  DEVICE void weigh(int first, bool seen, int stage) {
    const float scale = static_cast<float>(rules.scale) * kLog2E;
    UNROLL for (int n = 0; n < kFrags; n++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const float lse = Base::statistics_at(Base::other_wide(stage), n * 8 + Base::column() + e).lse;
        UNROLL for (int t = 0; t < kTall; t++)
          UNROLL for (int u = 0; u < 2; u++) scores[t][n][2 * u + e] = exp2_approx(scores[t][n][2 * u + e] * scale - lse);
      }
    }
    if (seen) return;
    const Met met = find_met();
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int n = 0; n < kFrags; n++) {
        UNROLL for (int e = 0; e < 4; e++)
          scores[t][n][e] = has(met.of[t][e / 2], first + n * 8 + Base::column() + e % 2) ? scores[t][n][e] : 0.0f;
      }
    }
  }
  // dp become gradients of scale q.k.
  DEVICE void slope(int first, bool seen, int stage, int parity) {
    UNROLL for (int n = 0; n < kFrags; n++) {
      float delta[2];
      UNROLL for (int e = 0; e < 2; e++) delta[e] = Base::statistics_at(Base::other_wide(stage), n * 8 + Base::column() + e).delta;
      UNROLL for (int t = 0; t < kTall; t++) {
        const Fragment weights = handed(parity, t, n);
        UNROLL for (int e = 0; e < 4; e++) gradients[t][n][e] = weights.at[e] * (gradients[t][n][e] - delta[e % 2]);
      }
    }
    if (seen) return;
    const Met met = find_met();
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int n = 0; n < kFrags; n++) {
        UNROLL for (int e = 0; e < 4; e++)
          gradients[t][n][e] = has(met.of[t][e / 2], first + n * 8 + Base::column() + e % 2) ? gradients[t][n][e] : 0.0f;
      }
    }
  }
  DEVICE void take_values(int first, Range range, bool seen, int stage, int parity) {
    multiply_own(scores, Base::own_tile(), Base::other_tile(stage));
    weigh(first, seen, stage);
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int n = 0; n < kFrags; n++) {
        const float(&c)[4] = scores[t][n];
        handed(parity, t, n) = {{c[0], c[1], c[2], c[3]}};
      }
    }
    Base::pack(weights_packed, scores);
    if (seen) Base::multiply_columns(sum, weights_packed, Base::other_wide(stage));
    else if (Base::template multiply_columns<true>(sum, weights_packed, Base::other_wide(stage))) Base::add_odd(sum, first, range);
  }
  DEVICE void take_keys(int first, bool seen, int stage, int parity) {
    multiply_own(gradients, Base::own_wide(), Base::other_wide(stage));
    slope(first, seen, stage, parity);
    Base::pack(gradients_packed, gradients);
    if (seen) Base::multiply_columns(sum, gradients_packed, Base::other_tile(stage));
    else Base::template multiply_columns<true>(sum, gradients_packed, Base::other_tile(stage));
  }
  DEVICE void store(bool has_values) const {
    const float factor = has_values ? 1.0f : static_cast<float>(rules.scale);
    const heed_tensor& to = has_values ? p.dv : p.dk;
    UNROLL for (int t = 0; t < kTall; t++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const int at = Base::own_at(t, u);
        if (at < static_cast<int>(p.k.shape[1]))
          Base::store_row(sum[t], u, bytes_of(to, key_element(to, s, Base::kv_head, at)), has_values ? Base::dv : Base::d, factor);
      }
    }
  }
  DEVICE void run() {
    const Range range = Base::others(), full = Base::full_others();
    const bool has_values = warp() % 2 == 0;
    const int begin = range.begin / kOther * kOther;
    Base::start();
    Base::load_own();
    Base::seek(begin);
    if (begin < range.end) Base::load_other(begin, range, 0);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    hold(has_values ? Base::own_tile() : Base::own_wide());
    // The warp with dv takes the tile from `first` on, that with dk the one before it.
    int stage = 0, before = kStages - 1, parity = 0;
    for (int first = begin; begin < range.end && first - kOther < range.end; first += kOther) {
      copy_async_wait<0>();
      sync_block();  // the tile is there, and the weights of the one before; nobody reads the one before that any more
      const int next = first + kOther, after = kStages - stage - before;
      Base::seek_next(first, next);
      if (next < range.end) Base::load_other(next, {next, range.end}, after);
      copy_async_commit();
      const int mine = has_values ? first : first - kOther;
      const bool seen = mine >= full.begin && mine + kOther <= full.end;
      if (has_values) {
        if (first < range.end) take_values(first, range, seen, stage, parity);
      } else if (first > begin) {
        take_keys(mine, seen, before, parity ^ 1);
      }
      before = stage;
      stage = after;
      parity ^= 1;
    }
    copy_async_wait<0>();
    store(has_values);
  }
};

// Grid: tiles of keys, key heads. Head sizes up to kD.
template <class T, int kD, int kHeld>
DEVICE void attention_backward_key_pairs(const heed_cuda_attention_backward& args) {
  using Kernel = BackwardPairs<T, kD, kHeld>;
  const Sequence s = backward_sequence(args.problem, block_x() / args.tiles, block_y());
  // Causality gives the first keys the most rows: they come first.
  Kernel(args, s, block_y(), block_x() % args.tiles * Kernel::kOwn).run();
}

}  // namespace heed
