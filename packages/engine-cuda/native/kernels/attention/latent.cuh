// Decode of multi-head latent attention, absorbed (DeepSeek-V2: 2024, arXiv:2405.04434): all query heads share one key head whose rows
// hold the latent and the rotary key, and the values are the latents, a prefix of the keys, so that each row is fetched once.
//
// A block has 64 query rows and tiles of 32 or 64 keys. A team of warps has 16 or 32 of the rows: each takes the scores of 16 keys of a
// tile, all agree on the largest and share the weights, each takes a slice of the values. So a fragment that comes from shared memory
// serves as many products as registers allow: shared memory is what bounds this kernel. The next tile arrives meanwhile.
#pragma once
#include "fragments.cuh"
#include "parts.cuh"

namespace heed {

constexpr int kLatentRows = 64, kLatentWarps = 8, kLatentD = 576, kLatentDv = 512, kLatentStages = 2;

// How a sequence with one query is cut into parts of `size` keys: those below `sunk` have sinks, first .. end - 1 the window's keys. It is
// a function of the sequence alone. Of one without visible keys the window's first part has none of them.
struct Cut {
  int size, sunk, first, end;
  DEVICE int count() const { return sunk + end - first; }
};
DEVICE Cut cut_of(Range seen, int length, int sinks, int least) {
  Cut c;
  c.size = ((length + kMostParts - 1) / kMostParts + 63) / 64 * 64;
  if (c.size < least) c.size = least;
  c.sunk = ((sinks < seen.end ? sinks : seen.end) + c.size - 1) / c.size;
  c.first = seen.begin / c.size > c.sunk ? seen.begin / c.size : c.sunk;
  c.end = seen.end > seen.begin ? (seen.end + c.size - 1) / c.size : c.first;
  if (c.sunk + c.end == c.first) c.end++;
  return c;
}
// The keys of part `index` of a cut.
DEVICE Part part_at(const Cut& c, Range seen, int index) {
  const int from = (index < c.sunk ? index : index - c.sunk + c.first) * c.size, to = from + c.size;
  return {{from > seen.begin ? from : seen.begin, to < seen.end ? to : seen.end}, from, c.count(), index};
}
// Where the partial results of a sequence begin: behind those that the pages of the sequences before it can have, with one to spare for each.
DEVICE int64_t first_slot(const heed_cuda_attention& args, const Sequence& s) {
  return static_cast<int64_t>(at_i32(args.indptr, s.batch)) * s.page_size / args.part + s.batch;
}
DEVICE float* partial_row(const heed_cuda_attention& args, const Sequence& s, int64_t slot, int kv_head, int row) {
  const int64_t heads = args.k.shape[1], width = args.out.shape[2] + 4;  // top and sum behind the row, which is 16-byte aligned
  return static_cast<float*>(args.partial) + ((slot * heads + kv_head) * s.group + row) * width;
}

struct alignas(8) Two { float low, high; };
// Writes lse of a row, where `writes`, and returns the factor that makes its result of what was summed under `top`.
DEVICE float finish_row(const heed_cuda_attention& args, const Sequence& s, int row, float top, float sum, bool writes) {
  float shrink = 1;
  if (args.scores.sinks.data) {
    const float sink = float_at(args.scores.sinks, (s.first_head + row % s.group) * args.scores.sinks.strides[0]) * kLog2E;
    const float high = fmaxf(top, sink), base = high == -INFINITY ? 0.0f : high;
    shrink = exp2_approx(top - base);
    sum = sum * shrink + exp2_approx(sink - base);
    top = high;
  }
  if (s.length == kUnknown) sum = NAN;
  if (writes && args.lse.data) *lse_at<float>(args, s, row) = sum == 0 ? -INFINITY : top * kLn2 + logf(sum);
  return sum == 0 ? 0.0f : shrink / sum;
}

// A tile of query rows and a part of the keys of a sequence; sequence -1: there is none of that number.
struct LatentWork { int sequence, tile, part; };
// Blocks that sequence n needs, as far as can be told without its pages.
DEVICE int latent_blocks(const heed_cuda_attention& p, int n, int group) {
  const int tokens = at_i32(p.query_indptr, n + 1) - at_i32(p.query_indptr, n), tiles = (tokens * group + kLatentRows - 1) / kLatentRows;
  if (tokens != 1) return tokens < 0 ? 0 : tiles;
  Sequence s;
  s.length = at_i32(p.lengths, n);
  s.offset = static_cast<int64_t>(s.length) - 1;
  const int64_t listed = static_cast<int64_t>(at_i32(p.indptr, n + 1)) - at_i32(p.indptr, n);
  if (s.length < 1 || s.length > listed * p.k.shape[2]) return tiles;
  return tiles * cut_of(visible_keys(p.scores, s, 0), s.length, sink_end(p.scores, s), p.part).count();
}
// Work in the order of sequences, parts, tiles: blocks that read the same keys run side by side.
DEVICE LatentWork find_latent_work(const heed_cuda_attention& p, int number) {
  const int sequences = static_cast<int>(p.lengths.shape[0]), group = static_cast<int>(p.q.shape[1] / p.k.shape[1]);
  for (int first = 0, before = 0; first < sequences; first += 32) {
    const int n = first + lane(), own = n < sequences ? latent_blocks(p, n, group) : 0;
    int upto = own;  // blocks of the sequences from `first` to this lane's
    UNROLL for (int step = 1; step < 32; step *= 2) {
      const int left = shuffle(upto, lane() - step & 31);
      if (lane() >= step) upto += left;
    }
    const uint32_t ends_behind = ballot(number < before + upto);
    if (ends_behind) {
      int at = 0;
      while (!(ends_behind >> at & 1)) at++;
      const int within = number - before - (shuffle(upto, at) - shuffle(own, at));
      const int tokens = at_i32(p.query_indptr, first + at + 1) - at_i32(p.query_indptr, first + at);
      const int tiles = (tokens * group + kLatentRows - 1) / kLatentRows;
      return {first + at, within % tiles, within / tiles};
    }
    before += shuffle(upto, 31);
  }
  return {-1, 0, 0};
}

template <class T, int kKeys>
struct Latent {
  using Row = Tile<kLatentD>;
  static constexpr int kTeam = kKeys / 16;               // warps
  static constexpr int kM = kTeam / 2;                   // 16 rows each
  static constexpr int kSlice = kLatentDv / kTeam, kWide = kSlice / 8;
  static constexpr int kLanes = 8;                       // that copy a row
  static constexpr int kChunks = Row::kChunks / kLanes;  // of 16 bytes to a lane
  static constexpr int kCopied = 32 * kLatentWarps / kLanes, kRowsEach = kKeys / kCopied;
  static constexpr int kBehind = 2 * kLatentD;           // the 16 bytes that pad a row: those of a query hold the team's largest scores
  static constexpr int kQBytes = kLatentRows * Row::kPitch, kStage = kKeys * Row::kPitch;
  static constexpr int kWeights = kQBytes + kLatentStages * kStage;  // T [64, kKeys]; in the end float [64, kTeam], sums
  static constexpr int kShared = kWeights + kLatentRows * kKeys * 2;
  static_assert(Row::kChunks % kLanes == 0 && kShared <= 232448, "of a block on 9.0 and 10.0; 32 keys fit on 8.0");

  const heed_cuda_attention& args;
  const heed_scores& rules;
  const Sequence& s;
  const int first_row, chunks, first_key;  // chunks of 16 bytes in a row of queries and keys
  Range keys, all;                         // of the part; those that every row sees
  int page[kRowsEach], within[kRowsEach];  // of the rows that this lane copies next; page -1: not seen
  float acc[kM][kWide][4];
  float top[kM][2], sum[kM][2];  // of rows lane / 4 and + 8; the sum of this warp's keys

  DEVICE int sinks() const { return sink_end(rules, s); }  // kept as a member it spills on 10.0
  DEVICE int team() const { return warp() / kTeam; }
  DEVICE int member() const { return warp() % kTeam; }
  DEVICE int row_of(int m, int u) const { return (team() * kM + m) * 16 + u * 8 + lane() / 4; }  // of the tile
  // Rows of weights are 16-byte chunks in an order of their own, so that those of 8 rows lie in different banks.
  DEVICE static uint32_t weight_at(int row, int chunk) {
    return kWeights + row * kKeys * 2 + (chunk ^ (row * kKeys / 64 & kKeys / 8 - 1)) * 16;
  }

  // What a lane copies of a row: every kLanes-th chunk, those from `limit` on zeros.
  struct Copy {
    uint32_t to;
    const unsigned char* from;
    int limit;
    DEVICE void chunk(int c) const { copy_async_16(to + c * kLanes * 16, from + c * kLanes * 16, c * kLanes < limit); }
    DEVICE void skip(int count) {
      to += count * kLanes * 16;
      from += count * kLanes * 16;
      limit -= count * kLanes;
    }
  };
  DEVICE Copy copy_of(uint32_t to, const unsigned char* from, bool valid) const {
    const int own = thread_x() % kLanes;
    return {to + own * 16, from + own * 16, (valid ? chunks : 0) - own};
  }
  DEVICE void load_queries() const {
    for (int row = thread_x() / kLanes; row < kLatentRows; row += kCopied) {
      const int at = first_row + row;
      const bool valid = at < s.rows();
      const Copy copy = copy_of(shared_start() + row * Row::kPitch, valid ? row_at(args, args.q, s, at) : s.k, valid);
      UNROLL for (int c = 0; c < kChunks; c++) copy.chunk(c);
    }
  }
  DEVICE Row stage_rows(int stage) const { return {shared_start() + kQBytes + stage * kStage}; }
  // Looks up the rows of the tile from key `first` on. Their pages are not needed before they are copied: nobody waits for them here.
  DEVICE void look_up(int first) {
    UNROLL for (int i = 0; i < kRowsEach; i++) {
      const uint32_t j = first + thread_x() / kLanes + i * kCopied, size = s.page_size, index = j / size;
      within[i] = static_cast<int>(j - index * size);
      page[i] = -1;
      if (is_seen(static_cast<int>(j), keys, sinks())) page[i] = s.pages[index];
    }
  }
  // The copy of the row that was looked up as number i.
  DEVICE Copy copy_of_row(int stage, int i) const {
    const bool valid = page[i] >= 0;
    const unsigned char* from = s.k + (valid ? page[i] : 0) * s.k_page + static_cast<int64_t>(within[i]) * s.k_token;
    return copy_of(stage_rows(stage).start + (thread_x() / kLanes + i * kCopied) * Row::kPitch, from, valid);
  }
  // A lane's address for load_matrix_x4 of operands as load_a, load_b_rows and load_b_columns have them.
  DEVICE static uint32_t a_lane(const Row& tile, int row) { return tile.at(row + (lane() & 15), lane() >> 4); }
  DEVICE static uint32_t b_lane(const Row& tile, int row) { return tile.at(row + (lane() & 7) + (lane() >> 4) * 8, lane() >> 3 & 1); }
  struct Step { uint32_t a[kM][4], b[4]; };
  DEVICE static void load_step(Step& f, uint32_t q, uint32_t k, int step) {
    UNROLL for (int m = 0; m < kM; m++) load_matrix_x4(f.a[m], q + m * 16 * Row::kPitch + step * 32);
    load_matrix_x4(f.b, k + step * 32);
  }
  DEVICE static void multiply_step(float (&scores)[kM][2][4], const Step& f) {
    UNROLL for (int m = 0; m < kM; m++) UNROLL for (int n = 0; n < 2; n++) mma_16x8x16<T>(scores[m][n], f.a[m], f.b[2 * n], f.b[2 * n + 1]);
  }
  // Products of this warp's 16 keys with its team's rows; between them it copies the tile that was looked up into the other stage.
  DEVICE void multiply_keys(int stage, float (&scores)[kM][2][4]) const {
    constexpr int kSteps = kLatentD / 16, kUnrolled = 6, kTurns = kSteps / kUnrolled / 2, kEach = kChunks / kTurns;
    static_assert(kRowsEach <= 2 && kTurns * kUnrolled * 2 == kSteps && kEach * kTurns == kChunks && kEach <= kUnrolled);
    uint32_t q = a_lane(Row{shared_start()}, team() * kM * 16), k = b_lane(stage_rows(stage), member() * 16);
    UNROLL for (int m = 0; m < kM; m++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) scores[m][n][e] = 0;
    Step at[2];
    load_step(at[0], q, k, 0);
    UNROLL for (int i = 0; i < 2; i++) {
      Copy copy = copy_of_row(stage ^ 1, i < kRowsEach ? i : 0);
      ROLLED for (int turn = 0; turn < kTurns; turn++, q += kUnrolled * 32, k += kUnrolled * 32) {
        UNROLL for (int step = 0; step < kUnrolled; step++) {
          if (step + 1 < kUnrolled || i == 0 || turn + 1 < kTurns) load_step(at[(step + 1) % 2], q, k, step + 1);
          if (i < kRowsEach && step < kEach) copy.chunk(step);
          multiply_step(scores, at[step % 2]);
        }
        copy.skip(kEach);
      }
    }
  }
  // Scores in units of ln 2, hidden ones -infinity. The same bits whether a tile has hidden keys or not: fmaf of 0 is rounded as it is.
  DEVICE void score(int first, float (&scores)[kM][2][4]) const {
    const float cap = static_cast<float>(rules.softcap), scale = static_cast<float>(rules.scale), factor = scale * kLog2E;
    const float inner = cap > 0 ? scale / cap : factor;
    const auto each = [&](auto f) {
      UNROLL for (int m = 0; m < kM; m++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) scores[m][n][e] = f(scores[m][n][e]);
    };
    each([&](float x) { return fmaf(x, inner, 0.0f); });
    if (cap > 0) each([&](float x) { return cap * tanhf(x) * kLog2E; });
    if (first >= all.begin && first + kKeys <= (all.end < keys.end ? all.end : keys.end)) return;
    UNROLL for (int m = 0; m < kM; m++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const int row = first_row + row_of(m, u);
        const Range seen = row < s.rows() ? visible_keys(rules, s, row / s.group) : Range{0, 0};
        UNROLL for (int n = 0; n < 2; n++) {
          UNROLL for (int e = 2 * u; e < 2 * u + 2; e++) {
            const int key = first + member() * 16 + n * 8 + lane() % 4 * 2 + e % 2;
            if (!is_seen(key, seen, sinks())) scores[m][n][e] = -INFINITY;  // the tile lies within the block's part
          }
        }
      }
    }
  }
  DEVICE Shared<Vec16> tops_of(int row) const { return shared<Vec16>(row * Row::kPitch + kBehind, 1); }
  DEVICE void share_tops(const float (&scores)[kM][2][4]) const {
    UNROLL for (int m = 0; m < kM; m++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const float(&x)[2][4] = scores[m];
        const float own = row_max(fmaxf(fmaxf(x[0][2 * u], x[0][2 * u + 1]), fmaxf(x[1][2 * u], x[1][2 * u + 1])));
        if (lane() % 4 == 0) shared<float>(row_of(m, u) * Row::kPitch + kBehind, kTeam)[member()] = own;
      }
    }
  }
  // The team agrees on the largest score of each row; weights into shared memory.
  DEVICE void weigh(const float (&scores)[kM][2][4]) {
    share_tops(scores);
    sync_block();
    UNROLL for (int m = 0; m < kM; m++) {
      float shrink[2];
      UNROLL for (int u = 0; u < 2; u++) {
        const int row = row_of(m, u);
        const Vec16 tops = tops_of(row)[0];
        float high = top[m][u], part = 0;
        UNROLL for (int w = 0; w < kTeam; w++) high = fmaxf(high, bits_float(tops.words[w]));
        const float base = high == -INFINITY ? 0.0f : high;
        shrink[u] = exp2_approx(top[m][u] - base);
        top[m][u] = high;
        UNROLL for (int n = 0; n < 2; n++) {
          const float low = exp2_approx(scores[m][n][2 * u] - base), next = exp2_approx(scores[m][n][2 * u + 1] - base);
          part += low + next;
          shared<uint32_t>(weight_at(row, member() * 2 + n) + lane() % 4 * 4, 1)[0] = pack2<T>(low, next);
        }
        sum[m][u] = sum[m][u] * shrink[u] + part;
      }
      if (ballot(shrink[0] != 1 || shrink[1] != 1))
        UNROLL for (int n = 0; n < kWide; n++) UNROLL for (int e = 0; e < 4; e++) acc[m][n][e] *= shrink[e / 2];
    }
    sync_block();
  }
  DEVICE void multiply_values(int stage) {
    const uint32_t values = a_lane(stage_rows(stage), 0) + member() * kSlice * 2;
    UNROLL for (int k = 0; k < kKeys / 16; k++) {
      uint32_t a[kM][4];
      UNROLL for (int m = 0; m < kM; m++)
        load_matrix_x4(a[m], shared_start() + weight_at((team() * kM + m) * 16 + (lane() & 15), 2 * k + (lane() >> 4)));
      UNROLL for (int n = 0; n < kSlice / 16; n++) {
        uint32_t b[4];
        load_matrix_x4_transposed(b, values + k * 16 * Row::kPitch + n * 32);
        UNROLL for (int m = 0; m < kM; m++) {
          mma_16x8x16<T>(acc[m][2 * n], a[m], b[0], b[1]);
          mma_16x8x16<T>(acc[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  static constexpr int kScanned = kKeys / kLatentWarps, kScanners = 32 / kScanned;  // rows of a warp, lanes of a row
  DEVICE Shared<uint32_t> marks(int w) const { return shared<uint32_t>(kQBytes + w * Row::kPitch + kBehind, 1); }
  // Where rows see different keys: clears the values of keys that have any which is not finite. Their weights are there. Returns whether
  // there are any; bit j % kScanned * kScanners of mark j / kScanned tells of key j.
  DEVICE bool clear_odd_values(int stage) const {
    const int row = thread_x() / kScanners, own = thread_x() % kScanners;
    const Shared<Vec16> values = shared<Vec16>(kQBytes + stage * kStage + row * Row::kPitch, kLatentDv / 8);
    bool odd = false;
    ROLLED for (int c = own; c < kLatentDv / 8; c += kScanners) {
      const Vec16 words = values[c];
      UNROLL for (int w = 0; w < 4; w++) {
        const Pair x = unpack2<T>(words.words[w]);
        odd = odd || !(fabsf(x.low) < INFINITY && fabsf(x.high) < INFINITY);
      }
    }
    UNROLL for (int step = 1; step < kScanners; step *= 2) {
      const bool other = shuffle_xor(odd ? 1 : 0, step) != 0;  // every lane shuffles
      odd = odd || other;
    }
    if (odd)
      for (int c = own; c < kLatentDv / 8; c += kScanners) values[c] = Vec16{};
    const uint32_t bits = ballot(odd);
    if (lane() == 0) marks(warp())[0] = bits;
    sync_block();
    uint32_t any = 0;
    UNROLL for (int w = 0; w < kLatentWarps; w++) any |= marks(w)[0];
    return any != 0;
  }
  DEVICE void add_odd_values(int first) {
    ROLLED for (int j = 0; j < kKeys; j++) {
      if (!(marks(j / kScanned)[0] >> j % kScanned * kScanners & 1)) continue;
      const T* value = reinterpret_cast<const T*>(value_at(s, first + j)) + member() * kSlice;
      bool seen[kM][2];
      float weight[kM][2];
      UNROLL for (int m = 0; m < kM; m++) {
        UNROLL for (int u = 0; u < 2; u++) {
          const int row = first_row + row_of(m, u);
          seen[m][u] = row < s.rows() && is_seen(first + j, visible_keys(rules, s, row / s.group), sinks());
          weight[m][u] = to_float(shared<T>(weight_at(row_of(m, u), j / 8) + j % 8 * 2, 1)[0]);
        }
      }
      UNROLL for (int n = 0; n < kWide; n++) {
        UNROLL for (int e = 0; e < 2; e++) {
          const int at = n * 8 + lane() % 4 * 2 + e;
          const float x = member() * kSlice + at < args.out.shape[2] ? to_float(value[at]) : 0.0f;
          UNROLL for (int m = 0; m < kM; m++) UNROLL for (int u = 0; u < 2; u++)
            if (seen[m][u]) acc[m][n][2 * u + e] += weight[m][u] * x;
        }
      }
    }
  }
  DEVICE int seen_from(int tile) const { return skip_hidden(tile, sinks(), keys.begin / kKeys * kKeys); }
  DEVICE void walk() {
    int first = seen_from(first_key), next = seen_from(first + kKeys);
    load_queries();
    look_up(first);
    UNROLL for (int i = 0; i < kRowsEach; i++) {
      const Copy copy = copy_of_row(0, i);
      UNROLL for (int c = 0; c < kChunks; c++) copy.chunk(c);
    }
    copy_async_commit();
    look_up(next);
    ROLLED for (int stage = 0; first < keys.end; stage ^= 1) {
      copy_async_wait<0>();
      sync_block();  // the tile is there, and nobody reads the one before it or its weights any more
      float scores[kM][2][4];
      multiply_keys(stage, scores);
      copy_async_commit();
      const int after = seen_from(next + kKeys);
      look_up(after);
      score(first, scores);
      weigh(scores);
      const bool odd = s.tokens != 1 && clear_odd_values(stage);
      multiply_values(stage);
      if (odd) add_odd_values(first);
      first = next;
      next = after;
    }
    copy_async_wait<0>();
  }

  static constexpr int kEnds = kTeam + 1;  // of a row: the team's sums and the top; then its factor
  DEVICE Shared<float> ends() const { return shared<float>(kWeights, kLatentRows * kEnds); }
  // The sums over all keys of the part: into factors and lse, or behind the partial rows, which begin at `slot`.
  DEVICE void finish_rows(bool whole, int64_t slot, int kv_head) const {
    sync_block();
    UNROLL for (int m = 0; m < kM; m++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const float total = row_sum(sum[m][u]);
        if (lane() % 4 != 0) continue;
        ends()[row_of(m, u) * kEnds + member()] = total;
        if (member() == 0) ends()[row_of(m, u) * kEnds + kTeam] = top[m][u];
      }
    }
    sync_block();
    const int own = thread_x(), row = first_row + own;
    if (own < kLatentRows && row < s.rows()) {
      float total = 0;
      UNROLL for (int w = 0; w < kTeam; w++) total += ends()[own * kEnds + w];
      const float high = ends()[own * kEnds + kTeam];
      if (whole) ends()[own * kEnds] = finish_row(args, s, row, high, total, true);
      else *reinterpret_cast<Two*>(partial_row(args, s, slot, kv_head, row) + args.out.shape[2]) = Two{high, total};
    }
    sync_block();
  }
  // Four neighbours of a row to a lane: pairs of lanes exchange halves, so that the even one has them of tile n, the odd one of n + 1.
  DEVICE Vec16 neighbours(int m, int u, int n) const {
    const bool odd = lane() % 2 != 0;
    const float low = shuffle_xor(odd ? acc[m][n][2 * u] : acc[m][n + 1][2 * u], 1);
    const float high = shuffle_xor(odd ? acc[m][n][2 * u + 1] : acc[m][n + 1][2 * u + 1], 1);
    if (odd) return {{float_bits(low), float_bits(high), float_bits(acc[m][n + 1][2 * u]), float_bits(acc[m][n + 1][2 * u + 1])}};
    return {{float_bits(acc[m][n][2 * u]), float_bits(acc[m][n][2 * u + 1]), float_bits(low), float_bits(high)}};
  }
  DEVICE void store(const Part& part, int kv_head) {
    const bool whole = part.count == 1;
    const int64_t slot = whole ? 0 : first_slot(args, s) + part.index;
    const int column = member() * kSlice + lane() % 2 * 8 + lane() % 4 / 2 * 4;  // of a lane's first four neighbours
    const int left = static_cast<int>(args.out.shape[2]) - column;
    finish_rows(whole, slot, kv_head);
    UNROLL for (int m = 0; m < kM; m++) {
      UNROLL for (int u = 0; u < 2; u++) {
        const int row = first_row + row_of(m, u);
        const bool real = row < s.rows();
        const float factor = whole && real ? ends()[row_of(m, u) * kEnds] : 1.0f;
        T* out = reinterpret_cast<T*>(whole && real ? row_at(args, args.out, s, row) : nullptr) + column;
        float* partial = partial_row(args, s, slot, kv_head, real ? row : 0) + column;
        UNROLL for (int n = 0; n < kWide; n += 2) {
          const Vec16 x = neighbours(m, u, n);
          if (!real || n * 8 >= left) continue;
          if (!whole) {
            store_16(partial + n * 8, x);
            continue;
          }
          const uint32_t low = pack2<T>(bits_float(x.words[0]) * factor, bits_float(x.words[1]) * factor);
          const uint32_t high = pack2<T>(bits_float(x.words[2]) * factor, bits_float(x.words[3]) * factor);
          *reinterpret_cast<Two*>(out + n * 8) = Two{bits_float(low), bits_float(high)};
        }
      }
    }
  }
};

// Grid: tiles of rows of all parts; key heads.
template <class T, int kKeys>
DEVICE void attention_latent(const heed_cuda_attention& args) {
  const LatentWork work = find_latent_work(args, block_x());
  if (work.sequence < 0) return;
  const Sequence s = sequence_of(args, work.sequence, block_y());
  if (s.tokens == 0) return;  // of a table that does not fit
  const int first_row = work.tile * kLatentRows;
  const int last_row = first_row + kLatentRows < s.rows() ? first_row + kLatentRows - 1 : s.rows() - 1;
  const Range early = visible_keys(args.scores, s, first_row / s.group), late = visible_keys(args.scores, s, last_row / s.group);
  const Range seen = {early.begin, late.end};
  const Cut cut = cut_of(seen, s.length, sink_end(args.scores, s), args.part);
  if (work.part >= (s.tokens == 1 ? cut.count() : 1)) return;
  const Part part = s.tokens == 1 ? part_at(cut, seen, work.part) : Part{seen, 0, 1, 0};
  Latent<T, kKeys> latent = {args, args.scores, s, first_row, static_cast<int>(args.q.shape[2] / 8), part.first, part.keys, {late.begin, early.end}};
  UNROLL for (int m = 0; m < latent.kM; m++) {
    UNROLL for (int n = 0; n < latent.kWide; n++) UNROLL for (int e = 0; e < 4; e++) latent.acc[m][n][e] = 0;
    UNROLL for (int u = 0; u < 2; u++) latent.top[m][u] = -INFINITY, latent.sum[m][u] = 0;
  }
  latent.walk();
  latent.store(part, block_y());
}

// Adds up the parts of sequences with one query, in their order. Grid: sequences, key heads, query heads in fours; a warp has a row.
template <class T>
DEVICE void merge_latent(const heed_cuda_attention& args) {
  const Sequence s = sequence_of(args, block_x(), block_y());
  const int row = block_z() * (block_threads() / 32) + warp(), dv = static_cast<int>(args.out.shape[2]);
  if (s.tokens != 1 || row >= s.rows()) return;
  const int count = cut_of(visible_keys(args.scores, s, 0), s.length, sink_end(args.scores, s), args.part).count();
  if (count == 1) return;
  constexpr int kPairs = kLatentDv / 64;  // of a lane
  const float* in = partial_row(args, s, first_slot(args, s), block_y(), row);
  const int64_t step = partial_row(args, s, 1, 0, 0) - partial_row(args, s, 0, 0, 0);
  float top = -INFINITY, sum = 0;
  _Pragma("unroll 8") for (int p = 0; p < count; p++) top = fmaxf(top, in[p * step + dv]);
  const float base = top == -INFINITY ? 0.0f : top;
  Two values[kPairs] = {};
  _Pragma("unroll 2") for (int p = 0; p < count; p++) {
    const float* part = in + p * step;
    const Two end = *reinterpret_cast<const Two*>(part + dv);
    const float weight = exp2_approx(end.low - base);
    sum += end.high * weight;
    UNROLL for (int i = 0; i < kPairs; i++) {
      const int column = i * 64 + lane() * 2;
      if (column >= dv) continue;
      const Two x = *reinterpret_cast<const Two*>(part + column);
      values[i].low += x.low * weight;
      values[i].high += x.high * weight;
    }
  }
  const float factor = finish_row(args, s, row, top, sum, lane() == 0);
  uint32_t* out = reinterpret_cast<uint32_t*>(row_at(args, args.out, s, row));
  UNROLL for (int i = 0; i < kPairs; i++)
    if (i * 64 + lane() * 2 < dv) out[i * 32 + lane()] = pack2<T>(values[i].low * factor, values[i].high * factor);
}

}  // namespace heed
