// Products by multiply-add on tiles in shared memory: float64 and float32 of any strides, b of float32 in any float of at most 32
// bits. A block makes a tile of Size x Size with 256 threads of Each x Each sums; depth goes in tiles of Depth, the next of which is loaded
// into registers while this one is multiplied. Terms are added in ascending k.
#pragma once
#include "matmul.cuh"

namespace heed {
/// What a thread loads of an operand's tiles, Count elements each: neighbouring threads neighbouring elements of whichever axis is dense.
template <typename S, int Size, int Depth, int Threads> struct TileLoads {
  static constexpr int kCount = Size * Depth / Threads;
  const S* at;              // its first element, in the tile that comes next
  int64_t hop, advance;     // from one of its elements to the next; from a tile to the next
  int line, depth, line_hop, depth_hop;
  int lines;                // of the tile that lie inside the operand

  static DEVICE TileLoads make(const S* x, int64_t line_step, int64_t depth_step, int64_t line0, int64_t all_lines) {
    TileLoads t;
    const bool depth_first = depth_step == 1;
    t.line = depth_first ? thread_x() / Depth : thread_x() % Size;
    t.depth = depth_first ? thread_x() % Depth : thread_x() / Size;
    t.line_hop = depth_first ? Threads / Depth : 0;
    t.depth_hop = depth_first ? 0 : Threads / Size;
    t.hop = t.line_hop * line_step + t.depth_hop * depth_step;
    t.advance = Depth * depth_step;
    t.at = x + (line0 + t.line) * line_step + t.depth * depth_step;
    t.lines = all_lines - line0 < Size ? static_cast<int>(all_lines - line0) : Size;
    return t;
  }
  /// The next tile's elements, of which `left` steps of depth lie inside; zeros elsewhere.
  template <typename T> DEVICE void fetch(int left, T (&to)[kCount]) {
    UNROLL for (int i = 0; i < kCount; i++) {
      const bool inside = line + i * line_hop < lines && depth + i * depth_hop < left;
      to[i] = inside ? static_cast<T>(widen(at[i * hop])) : T(0);
    }
    at += advance;
  }
  template <typename T> DEVICE void put(const Shared<T>& tile, int pitch, const T (&from)[kCount]) const {
    UNROLL for (int i = 0; i < kCount; i++) tile[(depth + i * depth_hop) * pitch + line + i * line_hop] = from[i];
  }
};

template <typename T, typename B, int Size, int Each, int Depth> struct TileProduct {
  static constexpr int kThreads = 256, kAcross = Size / Each;
  static constexpr int kPitch = Size + 4;  // rows of 16-byte multiples; the stores of a column then spread over the banks
  static_assert(kAcross * kAcross == kThreads, "a thread for each square of sums");
  using LoadsOfA = TileLoads<T, Size, Depth, kThreads>;
  using LoadsOfB = TileLoads<B, Size, Depth, kThreads>;

  /// Each lines in strips of 4, a strip every 4 * kAcross: a warp then reads neighbouring vectors.
  static DEVICE int line_of(int thread, int i) { return i / 4 * 4 * kAcross + thread * 4 + i % 4; }
  static DEVICE void take(const Shared<T>& tile, int depth, int thread, T (&x)[Each]) {
    UNROLL for (int strip = 0; strip < Each / 4; strip++) {
      const Vector<T, 4> v = *reinterpret_cast<const Vector<T, 4>*>(&tile[depth * kPitch + line_of(thread, strip * 4)]);
      UNROLL for (int i = 0; i < 4; i++) x[strip * 4 + i] = v.at[i];
    }
  }
  static DEVICE void multiply_tiles(const Shared<T>& a, const Shared<T>& b, T (&sums)[Each][Each]) {
    UNROLL for (int k = 0; k < Depth; k++) {
      T x[Each], y[Each];
      take(a, k, thread_x() / kAcross, x);
      take(b, k, thread_x() % kAcross, y);
      UNROLL for (int i = 0; i < Each; i++)
        UNROLL for (int j = 0; j < Each; j++) sums[i][j] += x[i] * y[j];
    }
  }
  static DEVICE void store(const heed_matmul& p, const Product<T, B>& m, TilePlace at, const T (&sums)[Each][Each]) {
    const Finish<T> f = finish_of<T>(p);
    UNROLL for (int i = 0; i < Each; i++)
      UNROLL for (int j = 0; j < Each; j++) {
        const int64_t row = at.row + line_of(thread_x() / kAcross, i), col = at.col + line_of(thread_x() % kAcross, j);
        if (row >= m.M || col >= m.N) continue;
        T* to = m.out + row * m.out_row + col * m.out_col;
        *to = finished<T>(p, f, sums[i][j], to, col);
      }
  }
  static DEVICE int steps_left(int64_t left) { return left < Depth ? static_cast<int>(left) : Depth; }
  static DEVICE void run(const heed_matmul& p, int64_t matrix) {
    const Product<T, B> m = product_of<T, B>(p, matrix);
    const TilePlace at = tile_place(block_x(), m.M, m.N, Size, Size);
    const Shared<T> a = shared<T>(0, Depth * kPitch), b = shared<T>(Depth * kPitch * sizeof(T), Depth * kPitch);
    LoadsOfA from_a = LoadsOfA::make(m.a, m.a_row, m.a_col, at.row, m.M);
    LoadsOfB from_b = LoadsOfB::make(m.b, m.b_col, m.b_row, at.col, m.N);
    T sums[Each][Each] = {}, next_a[LoadsOfA::kCount], next_b[LoadsOfB::kCount];
    from_a.fetch(steps_left(m.K), next_a);
    from_b.fetch(steps_left(m.K), next_b);
    for (int64_t left = m.K; left > 0; left -= Depth) {
      sync_block();  // everyone is done with the tiles
      from_a.put(a, kPitch, next_a);
      from_b.put(b, kPitch, next_b);
      sync_block();
      if (left > Depth) {
        from_a.fetch(steps_left(left - Depth), next_a);
        from_b.fetch(steps_left(left - Depth), next_b);
      }
      multiply_tiles(a, b, sums);
    }
    store(p, m, at, sums);
  }
};
template <typename T, typename B, int Size, int Each, int Depth> DEVICE void matmul_tiles(const heed_cuda_matmul& args) {
  for (int64_t matrix = block_y(); matrix < args.matrices; matrix += grid_y())
    TileProduct<T, B, Size, Each, Depth>::run(args.problem, matrix);
}
template <int Size, int Each, int Depth> DEVICE void matmul_tiles_float32(const heed_cuda_matmul& args) {
  switch (args.problem.b.dtype) {
    case HEED_FLOAT16: return matmul_tiles<float, f16, Size, Each, Depth>(args);
    case HEED_BFLOAT16: return matmul_tiles<float, bf16, Size, Each, Depth>(args);
    default: return matmul_tiles<float, float, Size, Each, Depth>(args);
  }
}
}  // namespace heed
