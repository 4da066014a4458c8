// Attention forward on wgmma, of Hopper (FlashAttention-3: Shah et al. 2024, arXiv:2407.08608): a block's warpgroups have roles. The last one
// copies keys and values, tile by tile, into two places for each; each of the others has 64 query rows of one key head and walks over the
// keys that any of the block's rows sees. Tensor cores take the queries and keys of a tile and then the weights and values of the tile
// before it; while they do the latter, the tile's scores become weights.
#pragma once
#include "forward_rows.cuh"

#ifdef HEED_WARPGROUP_PRODUCTS
namespace heed {

// Rows of `Width` 16-bit numbers as wgmma reads them: 64 columns to 128 bytes, kRows of these behind one another, then the next 64
// columns; the 16-byte columns of a row are permuted by its number (the 128-byte swizzle), so that 8 rows lie in different banks.
template <int Width, int kRows>
struct SwizzledTile {
  static_assert(Width % 64 == 0, "columns come in 128 bytes");
  static constexpr int kPitch = 128, kChunks = Width / 8, kRepeat = 8;
  static constexpr int kAtom = kRows * kPitch, kBytes = Width / 64 * kAtom;  // kAtom: of 64 columns
  uint32_t start;
  DEVICE uint32_t at(int row, int chunk) const { return start + chunk / 8 * kAtom + row * kPitch + ((chunk ^ row) & 7) * 16; }
};

template <class T, int kD, int kDv, int kGroups, int kKeys>
struct WarpgroupForward : ForwardRows<T, kD, kDv, 64 * kGroups, kKeys, 4 * kGroups, false> {
  using Base = ForwardRows<T, kD, kDv, 64 * kGroups, kKeys, 4 * kGroups, false>;
  using Base::args, Base::rules, Base::s, Base::first_row, Base::d, Base::dv, Base::own_thread, Base::scores, Base::acc, Base::weights, Base::warp,
      Base::lane, Base::rows, Base::kThreads;
  using QTile = SwizzledTile<kD, 64 * kGroups>;
  using KTile = SwizzledTile<kD, kKeys>;
  using VTile = SwizzledTile<kDv, kKeys>;

  static constexpr int kStages = 2;
  static constexpr int kCopiers = 128;                                // threads
  static constexpr int kCopierRegisters = kGroups == 3 ? 32 : 40, kOwnRegisters = kGroups == 3 ? 160 : 232;  // of 65536 for all threads
  static constexpr int kMarks = QTile::kBytes + kStages * (KTile::kBytes + VTile::kBytes);
  static constexpr int kBarriers = kMarks + 64, kShared = kBarriers + 64;
  static_assert(4 * 4 * kGroups <= 64 && kShared <= 227 * 1024);

  DEVICE WarpgroupForward(const heed_cuda_attention& args, const Sequence& s, int first_row, int d, int dv) : Base(args, s, first_row, d, dv, 0) {}
  DEVICE QTile q_tile() const { return {shared_start()}; }
  DEVICE KTile k_tile(int stage) const { return {shared_start() + QTile::kBytes + stage * KTile::kBytes}; }
  DEVICE VTile v_tile(int stage) const { return {shared_start() + QTile::kBytes + kStages * KTile::kBytes + stage * VTile::kBytes}; }

  // A place for a tile of keys or values: that it is full, to be told by the copiers, and that it is empty, by a lane of each other warp.
  enum Side { kKeySide, kValueSide };
  DEVICE static uint32_t full(Side side, int stage) { return shared_start() + kBarriers + (side * kStages + stage) * 16; }
  DEVICE static uint32_t empty(Side side, int stage) { return full(side, stage) + 8; }
  DEVICE static void init_barriers() {
    if (thread_x() == 0) {
      UNROLL for (int side = 0; side < 2; side++) {
        UNROLL for (int stage = 0; stage < kStages; stage++) {
          barrier_init(full(static_cast<Side>(side), stage), kCopiers);
          barrier_init(empty(static_cast<Side>(side), stage), 4 * kGroups);
        }
      }
    }
    sync_block();
  }
  // Tile number n, from 0, of the walk.
  DEVICE static void wait_full(Side side, int n) { barrier_wait(full(side, n % kStages), n / kStages & 1); }
  DEVICE static void wait_empty(Side side, int n) { barrier_wait(empty(side, n % kStages), ~(n / kStages) & 1); }
  DEVICE void release(Side side, int n) const {
    if (lane() == 0) barrier_arrive(empty(side, n % kStages));
  }

  // The copiers' part: keys a tile ahead of values, as they are wanted. A tile is told to be there when the next one is under way.
  DEVICE void copy_all(int first, Range keys) const {
    const int tiles = (keys.end - first + kKeys - 1) / kKeys;
    copy_keys(0, first, keys);
    ROLLED for (int n = 0; n < tiles; n++) {
      if (n + 1 < tiles) copy_keys(n + 1, first, keys);
      else copy_async_commit();
      arrive<1>(n > 0 ? full(kValueSide, (n - 1) % kStages) : full(kKeySide, 0));
      copy_values(n, first, keys);
      if (n + 1 < tiles) arrive<1>(full(kKeySide, (n + 1) % kStages));
    }
    arrive<0>(full(kValueSide, (tiles - 1) % kStages));
  }
  DEVICE void copy_keys(int n, int first, Range keys) const {
    wait_empty(kKeySide, n);
    Base::template load_tokens<kCopiers>(k_tile(n % kStages), s.k, s.k_token, s.k_page, first + n * kKeys, keys, d, thread_x() - kThreads);
    copy_async_commit();
  }
  DEVICE void copy_values(int n, int first, Range keys) const {
    wait_empty(kValueSide, n);
    Base::template load_tokens<kCopiers>(v_tile(n % kStages), s.v, s.v_token, s.v_page, first + n * kKeys, keys, dv, thread_x() - kThreads);
    copy_async_commit();
  }
  template <int kLeft>
  DEVICE static void arrive(uint32_t barrier) {
    copy_async_wait<kLeft>();
    publish_shared();
    barrier_arrive(barrier);
  }

  // Both are under way until they are waited for.
  DEVICE void multiply_keys(int n) {
    const uint32_t q_rows = q_tile().start + warp() / 4 * 64 * QTile::kPitch, k_rows = k_tile(n % kStages).start;
    warpgroup_fence();
    UNROLL for (int k = 0; k < kD / 16; k++) {
      const uint64_t a = matrix_descriptor(q_rows + k / 4 * QTile::kAtom + k % 4 * 32, 16, 1024);
      const uint64_t b = matrix_descriptor(k_rows + k / 4 * KTile::kAtom + k % 4 * 32, 16, 1024);
      warpgroup_multiply<T, kKeys>(scores[0], a, b, k > 0);
    }
    warpgroup_commit();
  }
  DEVICE void multiply_values(int n) {
    const uint32_t v_rows = v_tile(n % kStages).start;
    warpgroup_fence();
    UNROLL for (int k = 0; k < kKeys / 16; k++)
      warpgroup_multiply_transposed<T, kDv>(acc[0], weights[0][k], matrix_descriptor(v_rows + k * 16 * VTile::kPitch, VTile::kAtom, 1024));
    warpgroup_commit();
  }

  // For clear_odd_values. The keys' bits are the first words.
  struct Places {
    VTile tile;
    DEVICE Shared<uint32_t> warp_mark(int w) const { return shared<uint32_t>(kMarks + 4 * w, 1); }
    DEVICE Shared<uint32_t> marks() const { return shared<uint32_t>(kMarks, 4); }
    DEVICE Shared<Vec16> value_words(int row, int chunk) const { return shared<Vec16>(tile.at(row, chunk) - shared_start(), 1); }
    DEVICE static void sync() { sync_threads(1, kThreads); }
  };
  // Of tile n, whose first key is `first`; whether there are values to add by hand.
  DEVICE bool clear_odd_values(int n, int first, Range all_see) const {
    if (Base::is_whole(first, all_see)) return false;
    wait_full(kValueSide, n);
    Places::sync();  // all are done with the marks of a tile before
    const Places at = {v_tile(n % kStages)};
    const bool odd = Base::clear_odd_values(at);
    if (!odd) return false;
    publish_shared();
    Places::sync();
    return true;
  }
  DEVICE void finish_values(int n, int first, bool odd) {
    if (odd) Base::add_odd_values(Places{v_tile(n % kStages)}, first);
    release(kValueSide, n);
  }
  DEVICE void weigh(int first, Range all_see) {
    Base::finish_scores(first, Base::is_whole(first, all_see));
    Base::weigh();
  }

  DEVICE void multiply_all(int first, Range keys, Range all_see) {
    Base::load_queries(q_tile());
    copy_async_commit();
    copy_async_wait<0>();
    publish_shared();
    sync_threads(2 + warp() / 4, 128);
    wait_full(kKeySide, 0);
    multiply_keys(0);
    warpgroup_wait<0>();
    release(kKeySide, 0);
    weigh(first, all_see);
    Base::pack_weights();
    int n = 1;  // of the tile at first + kKeys
    for (; first + kKeys < keys.end; first += kKeys, n++) {
      const bool odd = clear_odd_values(n - 1, first, all_see);
      wait_full(kKeySide, n);
      multiply_keys(n);
      wait_full(kValueSide, n - 1);
      multiply_values(n - 1);
      warpgroup_wait<1>();
      release(kKeySide, n);
      weigh(first + kKeys, all_see);
      UNROLL for (int u = 0; u < 2; u++) settle(Base::sum[0][u]);
      warpgroup_wait<0>();
      finish_values(n - 1, first, odd);
      Base::rescale();
      Base::pack_weights();
    }
    const bool odd = clear_odd_values(n - 1, first, all_see);
    wait_full(kValueSide, n - 1);
    multiply_values(n - 1);
    warpgroup_wait<0>();
    finish_values(n - 1, first, odd);
  }

  // The keys that the block's rows see, by any and by all of them.
  struct Seen { Range any, all; };
  DEVICE Seen seen() const {
    const int last_row = first_row + 64 * kGroups < rows() ? first_row + 64 * kGroups - 1 : rows() - 1;
    const Range head_sees = visible_keys(rules, s, first_row / s.group), tail_sees = visible_keys(rules, s, last_row / s.group);
    return {{head_sees.begin, tail_sees.end}, {tail_sees.begin, head_sees.end}};
  }
  DEVICE void copy() const {
    const Range keys = seen().any;
    const int first = keys.begin / kKeys * kKeys;
    if (first < keys.end) copy_all(first, keys);
  }
  DEVICE void multiply() {
    const Seen keys = seen();
    const int first = keys.any.begin / kKeys * kKeys;
    Base::start_rows();
    if (first < keys.any.end) multiply_all(first, keys.any, keys.all);
    Base::store();
  }
  // Each role looks for its work: what both kept would leave the copiers short of registers.
  template <class Part>
  DEVICE static void run(const heed_cuda_attention& args, const Part& part) {
    const Work work = find_work(args, block_x(), 64 * kGroups);
    if (work.sequence < 0) return;
    const Sequence s = sequence_of(args, work.sequence, block_y());
    if (s.tokens == 0) return;  // of a table that does not fit
    const int axis = args.indices.data ? 2 : 3;
    const int d = static_cast<int>(args.q.shape[axis]), dv = static_cast<int>(args.out.shape[axis]);
    WarpgroupForward forward(args, s, work.tile * 64 * kGroups, d, dv);
    part(forward);
  }
};

// Grid: tiles of rows, key heads. Threads: 128 for each 64 rows, and 128 copiers.
template <class T, int kD, int kDv, int kGroups, int kKeys>
DEVICE void attention_forward_warpgroup(const heed_cuda_attention& args) {
  using Forward = WarpgroupForward<T, kD, kDv, kGroups, kKeys>;
  Forward::init_barriers();
  if (thread_x() >= Forward::kThreads) {
    give_registers<Forward::kCopierRegisters>();
    Forward::run(args, [](Forward& forward) { forward.copy(); });
  } else {
    take_registers<Forward::kOwnRegisters>();
    Forward::run(args, [](Forward& forward) { forward.multiply(); });
  }
}

}  // namespace heed
#endif
