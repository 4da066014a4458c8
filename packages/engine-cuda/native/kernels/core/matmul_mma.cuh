// Products of float16 and bfloat16 on tensor cores: mma.m16n8k16 with float32 sums. A block makes a tile of Size x Size; tiles of
// depth 32 of both operands come through shared memory by asynchronous copies, kStages - 1 of them under way.
//
// A tile lies in shared memory as its operand does in memory, and ldmatrix transposes where need be:
//   along depth: 4 chunks of 16 bytes a line; chunk c of line l stands at place c ^ (l / 2 % 4), so that the 8 lines that ldmatrix reads
//     at once (two lines fill the 32 banks) meet no bank twice;
//   along lines: Size / 8 chunks a step of depth; chunk c of step k stands at c ^ (k % 8), for the same reason;
//   neither (any strides): element by element into the form along depth.
#pragma once
#include "matmul.cuh"

namespace heed {
enum class Lies { kAlongDepth, kAlongLines };

/// What a thread loads of an operand's tiles (lines x depth): Count chunks of 8 elements. Chunk i of a thread lies `hop` after chunk
/// i - 1 in memory and Threads * 8 elements in shared memory, where a hop spans a multiple of 8 lines (of depth) and keeps the swizzle.
template <typename T, Lies lies, int Size, int Depth, int Threads> struct ChunkLoads {
  static constexpr int kCount = Size * Depth / 8 / Threads;
  static constexpr int kHop = lies == Lies::kAlongDepth ? Threads / (Depth / 8) : Threads / (Size / 8);  // lines, or steps of depth
  static_assert(kHop % 8 == 0, "a hop must keep the swizzle");
  const T* at;            // this thread's first chunk in the tile that comes next
  int64_t hop, advance;
  int place, depth, count;  // in the tile; chunks whose lines lie inside
  bool async;

  static DEVICE int place_of(int line, int depth) {
    if constexpr (lies == Lies::kAlongDepth) return line * Depth + (depth / 8 ^ line / 2 % 4) * 8;
    else return depth * Size + (line / 8 ^ depth % 8) * 8;
  }
  static DEVICE ChunkLoads make(const T* x, int64_t line_step, int64_t depth_step, int64_t line0, int64_t lines, bool async) {
    constexpr int across = lies == Lies::kAlongDepth ? Depth / 8 : Size / 8;
    const int outer = thread_x() / across, inner = thread_x() % across * 8;
    const int line = lies == Lies::kAlongDepth ? outer : inner, depth = lies == Lies::kAlongDepth ? inner : outer;
    const int64_t left = lines - line0 - line;
    ChunkLoads c = {x + (line0 + line) * line_step + depth * depth_step, kHop * (lies == Lies::kAlongDepth ? line_step : depth_step),
                    Depth * depth_step, place_of(line, depth), depth, 0, async};
    if (left > 0) c.count = lies == Lies::kAlongDepth && left < kHop * kCount ? static_cast<int>(left + kHop - 1) / kHop : kCount;
    return c;
  }
  /// Begins to copy the next tile, of which `left` steps of depth lie inside; zeros elsewhere.
  DEVICE void load(int left, const Shared<T>& tile) {
    if (async) {
      UNROLL for (int i = 0; i < kCount; i++) {
        const bool inside = i < count && depth + (lies == Lies::kAlongDepth ? 0 : i * kHop) < left;
        copy_async_16(tile.address(place + i * Threads * 8), at + i * hop, inside);
      }
    } else if constexpr (lies == Lies::kAlongDepth) {
      KEEP_LOOP for (int i = 0; i < kCount; i++) store_16(&tile[place + i * Threads * 8], collect(i, left));
    }
    at += advance;
  }
  /// A chunk of an operand that lies anyhow, element by element.
  DEVICE Vec16 collect(int i, int left) const {
    Vec16 v = {};
    const int64_t step = advance / Depth;
    UNROLL for (int e = 0; e < 8; e++) {
      const uint32_t bits = i < count && depth + e < left ? at[i * hop + e * step].bits : 0;
      v.words[e / 2] |= bits << (e % 2 * 16);
    }
    return v;
  }
};
/// Whether chunks of 8 along one axis can be copied: each is inside or outside as a whole, and aligned.
template <typename T> DEVICE bool has_chunks(const T* data, int64_t step, int64_t other_step, int64_t length) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && step == 1 && other_step % 8 == 0 && length % 8 == 0;
}

template <typename T, Lies a_lies, Lies b_lies, int Size, int WarpRows, int WarpCols> struct MmaProduct {
  static constexpr int kDepth = 32, kStages = 3, kThreads = Size / WarpRows * (Size / WarpCols) * 32;
  static constexpr int kTileElements = Size * kDepth;
  static constexpr int kRows = WarpRows / 16, kCols = WarpCols / 8;  // fragments of a warp
  using LoadsOfA = ChunkLoads<T, a_lies, Size, kDepth, kThreads>;
  using LoadsOfB = ChunkLoads<T, b_lies, Size, kDepth, kThreads>;

  // Lane l names row l % 8 of matrix l / 8 of the four that ldmatrix reads: of a, lines 0-7 and 8-15 at depth 0-7, then both at
  // 8-15; of b, depth 0-7 and 8-15 of lines 0-7, then of lines 8-15.
  static DEVICE void take_a(const Shared<T>& tile, int line0, int depth0, uint32_t (&r)[4]) {
    const int l = lane();
    if constexpr (a_lies == Lies::kAlongLines)
      load_matrix_x4_transposed(r, tile.address(LoadsOfA::place_of(line0 + l / 8 % 2 * 8, depth0 + l % 8 + l / 16 * 8)));
    else load_matrix_x4(r, tile.address(LoadsOfA::place_of(line0 + l % 16, depth0 + l / 16 * 8)));
  }
  static DEVICE void take_b(const Shared<T>& tile, int line0, int depth0, uint32_t (&r)[4]) {
    const int l = lane();
    if constexpr (b_lies == Lies::kAlongLines)
      load_matrix_x4_transposed(r, tile.address(LoadsOfB::place_of(line0 + l / 16 * 8, depth0 + l % 16)));
    else load_matrix_x4(r, tile.address(LoadsOfB::place_of(line0 + l % 8 + l / 16 * 8, depth0 + l / 8 % 2 * 8)));
  }
  static DEVICE void multiply_tiles(const Shared<T>& a, const Shared<T>& b, float (&sums)[kRows][kCols][4]) {
    const int row0 = warp() / (Size / WarpCols) * WarpRows, col0 = warp() % (Size / WarpCols) * WarpCols;
    UNROLL for (int step = 0; step < kDepth / 16; step++) {
      uint32_t x[kRows][4], y[kCols / 2][4];
      UNROLL for (int i = 0; i < kRows; i++) take_a(a, row0 + i * 16, step * 16, x[i]);
      UNROLL for (int j = 0; j < kCols / 2; j++) take_b(b, col0 + j * 16, step * 16, y[j]);
      UNROLL for (int i = 0; i < kRows; i++)
        UNROLL for (int j = 0; j < kCols; j++)
          mma_16x8x16<T>(sums[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
    }
  }

  /// Sums 0, 1 of a fragment stand at row lane / 4, columns lane % 4 * 2 and the next; sums 2, 3 eight rows below.
  static DEVICE void store(const heed_matmul& p, int64_t matrix, const float (&sums)[kRows][kCols][4]) {
    const Product<T, T> m = product_of<T, T>(p, matrix);  // again: kept through the loop it would cost 20 registers
    const TilePlace at = tile_place(block_x(), m.M, m.N, Size, Size);
    const Finish<float> f = finish_of<float>(p);
    const int64_t row0 = at.row + warp() / (Size / WarpCols) * WarpRows + lane() / 4;
    const int64_t col0 = at.col + warp() % (Size / WarpCols) * WarpCols + lane() % 4 * 2;
    UNROLL for (int i = 0; i < kRows; i++)
      UNROLL for (int half = 0; half < 2; half++)
        UNROLL for (int j = 0; j < kCols; j++) {
          const int64_t row = row0 + i * 16 + half * 8, col = col0 + j * 8;
          if (row >= m.M || col >= m.N) continue;
          T* to = m.out + row * m.out_row + col * m.out_col;
          const float low = finished<T>(p, f, sums[i][j][half * 2], to, col);
          if (col + 1 >= m.N) {
            *to = narrow<T>(low);
            continue;
          }
          const float high = finished<T>(p, f, sums[i][j][half * 2 + 1], to + m.out_col, col + 1);
          if (m.out_col == 1 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
            *reinterpret_cast<uint32_t*>(to) = pack2<T>(low, high);
          } else {
            *to = narrow<T>(low);
            to[m.out_col] = narrow<T>(high);
          }
        }
  }
  static DEVICE Shared<T> tile_of(int step, int operand) {
    return shared<T>(static_cast<uint32_t>((step % kStages * 2 + operand) * kTileElements * 2), kTileElements);
  }
  static DEVICE void run(const heed_matmul& p, int64_t matrix, const Product<T, T>& m, bool a_async, bool b_async) {
    const TilePlace at = tile_place(block_x(), m.M, m.N, Size, Size);
    LoadsOfA from_a = LoadsOfA::make(m.a, m.a_row, m.a_col, at.row, m.M, a_async);
    LoadsOfB from_b = LoadsOfB::make(m.b, m.b_col, m.b_row, at.col, m.N, b_async);
    const int steps = static_cast<int>((m.K + kDepth - 1) / kDepth);
    const int rest = static_cast<int>(m.K - (steps - 1) * int64_t{kDepth});  // of the last tile
    const auto begin = [&](int step) {
      if (step < steps) {
        from_a.load(step + 1 < steps ? kDepth : rest, tile_of(step, 0));
        from_b.load(step + 1 < steps ? kDepth : rest, tile_of(step, 1));
      }
      copy_async_commit();  // an empty group at the end, so that the count of groups stays true
    };
    float sums[kRows][kCols][4] = {};
    sync_block();  // a block that makes one product after the other: everyone is done with the last one's tiles
    for (int step = 0; step < kStages - 1; step++) begin(step);
    for (int step = 0; step < steps; step++) {
      copy_async_wait<kStages - 2>();
      sync_block();  // this step's tiles are there for everyone, and nobody reads those of the step before
      begin(step + kStages - 1);
      multiply_tiles(tile_of(step, 0), tile_of(step, 1), sums);
    }
    copy_async_wait<0>();
    store(p, matrix, sums);
  }
};
template <typename T, int Size, int WarpRows, int WarpCols> DEVICE void matmul_mma(const heed_cuda_matmul& args) {
  constexpr Lies depth = Lies::kAlongDepth, lines = Lies::kAlongLines;
  for (int64_t matrix = block_y(); matrix < args.matrices; matrix += grid_y()) {
    const heed_matmul& p = args.problem;
    const Product<T, T> m = product_of<T, T>(p, matrix);
    const bool a_depth = has_chunks(m.a, m.a_col, m.a_row, m.K), b_depth = has_chunks(m.b, m.b_row, m.b_col, m.K);
    const bool a_lines = !a_depth && has_chunks(m.a, m.a_row, m.a_col, m.M);
    const bool b_lines = !b_depth && has_chunks(m.b, m.b_col, m.b_row, m.N);
    if (a_lines && b_lines) MmaProduct<T, lines, lines, Size, WarpRows, WarpCols>::run(p, matrix, m, true, true);
    else if (a_lines) MmaProduct<T, lines, depth, Size, WarpRows, WarpCols>::run(p, matrix, m, true, b_depth);
    else if (b_lines) MmaProduct<T, depth, lines, Size, WarpRows, WarpCols>::run(p, matrix, m, a_depth, true);
    else MmaProduct<T, depth, depth, Size, WarpRows, WarpCols>::run(p, matrix, m, a_depth, b_depth);
  }
}
}  // namespace heed
