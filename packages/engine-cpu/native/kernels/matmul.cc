// Matrix products: few rows (a decode step) straight from B at the speed of memory, the rest packed and blocked.
#include "../runtime/kernel_table.h"
#include "../runtime/parallel.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "matmul-few-inl.h"

namespace heed::HEED_ISA {
namespace {
HEED_INLINE int64_t Min64(int64_t a, int64_t b) { return a < b ? a : b; }

/// Rows of a task at most, bytes of its sums, and bytes of B's rows that it takes side by side if they fit: L2 holds the sums, the
/// packed block of B and the rows of A that stream past.
constexpr int64_t kRowBlock = 576, kSumBytes = int64_t{256} << 10, kWideBytes = 1024;
/// Columns of a task of a product of few rows: a multiple of the step, and sums of eight rows that fit L1.
constexpr int64_t kPieceStep = 64, kPieceMost = 512;
/// Elements of B that a task of a product of few rows reads at least: starting a thread's task costs about a microsecond.
constexpr int64_t kFewElements = 32768;
/// Bytes of A packed at a time; more rows go in further passes, which pack B again.
constexpr int64_t kPackedBytes = int64_t{32} << 20;

/// One product of the batch, all three matrices still in their storage types.
template <class SA, class SB> struct Product {
  int64_t m, n, k;
  Matrix<const SA> a;
  Matrix<const SB> b;
  Matrix<SA> out;
  Matrix<const SA> bias;  // one row, or null
  Finish<Acc<SA>> finish;
  /// How the packed rows of A are read.
  Walk Walks() const { return a.row == 1 && a.col != 1 ? Walk::kDown : Walk::kAcross; }
};

/// Packed rows of A. Read across, block k0 starts at k0 * padded and a tile of kTileRows rows at its first row *
/// RoundUp(depth, Width) in there. Read down (A's columns are dense, as in a product with a transposed operand), element (r, k) stands
/// at k * padded + r, which packs and multiplies without transposing.
template <class SA, class SB>
void PackRows(const Product<SA, SB>& p, int64_t begin, int64_t rows, int64_t padded, Acc<SA>* packed) {
  if (p.Walks() == Walk::kDown) {
    const Matrix<const SA> down = {p.a.data + begin, p.a.col, 1};
    constexpr int64_t piece = 32;
    ParallelFor(Divide(p.k, piece), [&](int64_t t, int) {
      Pack<SA>(down.At(t * piece, 0), Min64(piece, p.k - t * piece), rows, packed + t * piece * padded, padded);
    });
    return;
  }
  const int64_t tiles = Divide(rows, kTileRows);
  ParallelFor(tiles, [&](int64_t t, int) {
    const int64_t r = t * kTileRows, high = Min64(kTileRows, rows - r);
    for (int64_t k = 0; k < p.k; k += kBlockDepth) {
      const int64_t depth = Min64(kBlockDepth, p.k - k), stride = RoundUp(depth, Width<Acc<SA>>);
      Acc<SA>* to = packed + k * padded + r * stride;
      Pack<SA>(p.a.At(begin + r, k), high, depth, to, stride);
      if (high & 1) memset(to + high * stride, 0, sizeof(Acc<SA>) * stride);  // tiles have an even number of rows
    }
  });
}

/// A block of B as panels of kTileCols columns, each with room for kBlockDepth rows. Dense rows are read a few at a time across all
/// panels: a panel alone would take 64 bytes of every row with AVX2, a new page each time.
template <class T, class SB> void PackPanels(Matrix<const SB> b, int64_t depth, int64_t cols, T* panels) {
  const int64_t step = b.row == 1 ? depth : 8;
  for (int64_t k = 0; k < depth; k += step)
    for (int64_t j = 0; j < cols; j += kTileCols<T>)
      Pack<SB>(b.At(k, j), Min64(step, depth - k), Min64(kTileCols<T>, cols - j),
               panels + j * kBlockDepth + k * kTileCols<T>, kTileCols<T>);
}
/// out[begin + row .. + rows][column .. + cols] from packed rows that start at row `row` of the packed block; scratch has room for
/// cols rounded up to whole panels times RoundUp(rows, 2) + kBlockDepth.
template <Walk walk, class SA, class SB>
void MultiplyPanels(const Product<SA, SB>& p, const Acc<SA>* packed, int64_t padded, int64_t begin, int64_t row,
                    int64_t rows, int64_t column, int64_t cols, Acc<SA>* scratch) {
  using T = Acc<SA>;
  constexpr int64_t n = kTileCols<T>;
  const int64_t room = RoundUp(rows, 2);
  T* panels = scratch + room * RoundUp(cols, n);
  for (int64_t k = 0; k < p.k; k += kBlockDepth) {
    constexpr bool across = walk == Walk::kAcross;
    const int64_t depth = Min64(kBlockDepth, p.k - k), stride = across ? RoundUp(depth, Width<T>) : padded;
    const int64_t to_row = across ? stride : 1;
    PackPanels<T, SB>(p.b.At(k, column), depth, cols, panels);
    const T* a = packed + k * padded + row * to_row;
    for (int64_t j = 0; j < cols; j += n) {
      const int64_t vecs = Divide(Min64(n, cols - j), Width<T>);
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const TileProduct<T> tile = {a + r * to_row, stride, panels + j * kBlockDepth, n, depth, scratch + j * room + r * n, n};
        if (k == 0) RunTile<T, walk, false>(tile, Min64(kTileRows, rows - r), vecs);
        else RunTile<T, walk, true>(tile, Min64(kTileRows, rows - r), vecs);
      }
    }
  }
  if (p.k == 0) memset(scratch, 0, sizeof(T) * room * RoundUp(cols, n));
  for (int64_t j = 0; j < cols; j += n) {
    if (p.bias.data != nullptr) Pack<SA>(p.bias.At(0, column + j), 1, Min64(n, cols - j), panels, 0);
    StoreSums<SA>(scratch + j * room, n, rows, Min64(n, cols - j), p.finish, p.bias.data == nullptr ? nullptr : panels,
                  p.out.At(begin + row, column + j));
  }
}

template <class SA, class SB> int MultiplyMany(const Product<SA, SB>& p) {
  using T = Acc<SA>;
  const int64_t depth = RoundUp(p.k, Width<T>) + Width<T>;
  int64_t pass = kPackedBytes / (depth * int64_t{sizeof(T)}) / kRowBlock * kRowBlock;
  if (pass < kRowBlock) pass = kRowBlock;
  const bool down = p.Walks() == Walk::kDown;
  const int64_t most = Min64(pass, p.m), padded = RoundUp(most, down ? Width<T> : 2);
  T* packed = static_cast<T*>(SharedScratch(0, sizeof(T) * padded * depth));
  if (packed == nullptr)
    return Fail(HEED_OUT_OF_MEMORY, "[matmul] no memory to pack %lld rows of %lld", (long long)most, (long long)p.k);
  bool failed = false;
  for (int64_t begin = 0; begin < p.m; begin += pass) {
    const int64_t rows = Min64(pass, p.m - begin);
    PackRows(p, begin, rows, padded, packed);
    // Equal row blocks: each packs B anew.
    int64_t block = RoundUp(Divide(rows, Divide(rows, kRowBlock)), kTileRows), wide = kTileCols<T>;
    // Dense columns are streams already; dense rows are read in longer pieces.
    const int64_t most_wide = p.b.row == 1 ? wide : Min64(kWideBytes, kSumBytes / block) / int64_t{sizeof(T)};
    while (2 * wide <= most_wide) wide *= 2;
    // Every thread should find work: narrower groups of panels first, then fewer rows.
    const auto tasks = [&] { return Divide(p.n, wide) * Divide(rows, block); };
    while (wide > kTileCols<T> && tasks() < 4 * Threads()) wide /= 2;
    while (block > 8 * kTileRows && tasks() < 2 * Threads()) block = RoundUp(block / 2, kTileRows);
    const int64_t blocks = Divide(rows, block);
    ParallelFor(tasks(), [&](int64_t task, int) {
      const int64_t row = task % blocks * block, high = Min64(block, rows - row), column = task / blocks * wide;
      T* scratch = static_cast<T*>(ThreadScratch(sizeof(T) * wide * (RoundUp(high, 2) + kBlockDepth)));
      if (scratch == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      const int64_t cols = Min64(wide, p.n - column);
      if (down) MultiplyPanels<Walk::kDown>(p, packed, padded, begin, row, high, column, cols, scratch);
      else MultiplyPanels<Walk::kAcross>(p, packed, padded, begin, row, high, column, cols, scratch);
    });
  }
  return failed ? Fail(HEED_OUT_OF_MEMORY, "[matmul] no memory for a thread's panel") : HEED_OK;
}

/// Few rows, and a B that the kernel can read in place.
template <class SA, class SB> int MultiplyFew(const Product<SA, SB>& p, FewKernel<SB> kernel) {
  using T = Acc<SA>;
  const int64_t rows = FewRoom(p.m), a_row = RoundUp(p.k, Width<T>);
  T* a = static_cast<T*>(SharedScratch(0, sizeof(T) * rows * a_row + 64));
  if (a == nullptr)
    return Fail(HEED_OUT_OF_MEMORY, "[matmul] no memory to pack %lld rows of %lld", (long long)p.m, (long long)p.k);
  Pack<SA>(p.a, p.m, p.k, a, a_row);
  memset(a + p.m * a_row, 0, sizeof(T) * (rows - p.m) * a_row);
  int64_t piece = RoundUp(Divide(p.n, 4 * Threads()), kPieceStep);
  piece = Min64(kPieceMost, piece > kFewElements / (p.k + 1) ? piece : RoundUp(kFewElements / (p.k + 1), kPieceStep));
  bool failed = false;
  ParallelFor(Divide(p.n, piece), [&](int64_t task, int) {
    const int64_t column = task * piece, cols = Min64(piece, p.n - column);
    T* sums = static_cast<T*>(ThreadScratch(sizeof(T) * (rows + 1) * piece));
    if (sums == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    kernel(a, a_row, p.m, p.b.At(0, column), p.k, cols, sums, piece);
    T* bias = sums + rows * piece;
    if (p.bias.data != nullptr) Pack<SA>(p.bias.At(0, column), 1, cols, bias, 0);
    StoreSums<SA>(sums, piece, p.m, cols, p.finish, p.bias.data == nullptr ? nullptr : bias, p.out.At(0, column));
  });
  return failed ? Fail(HEED_OUT_OF_MEMORY, "[matmul] no memory for a thread's sums") : HEED_OK;
}

/// One product, or the whole batch in parallel where single products are small.
template <class SA, class SB> int Run(const heed_matmul& p) {
  using T = Acc<SA>;
  const int rank = p.out.rank;
  const heed_tensor* operands[3] = {&p.a, &p.b, &p.out};
  // Batch axes aligned at the right; an axis that an operand lacks or has once is broadcast.
  int64_t shape[HEED_MAX_RANK], stride[3][HEED_MAX_RANK], batch = 1;
  int axes = 0;
  for (int i = 0; i < rank - 2; i++) {
    if (p.out.shape[i] == 1) continue;
    shape[axes] = p.out.shape[i];
    batch *= shape[axes];
    for (int o = 0; o < 3; o++) {
      const int at = i - rank + operands[o]->rank;
      stride[o][axes] = at < 0 || operands[o]->shape[at] == 1 ? 0 : operands[o]->strides[at];
    }
    axes++;
  }
  Product<SA, SB> one;
  one.m = p.out.shape[rank - 2];
  one.n = p.out.shape[rank - 1];
  one.k = p.a.shape[p.a.rank - 1];
  if (batch == 0 || one.m == 0 || one.n == 0) return HEED_OK;
  one.a = {static_cast<const SA*>(p.a.data), p.a.strides[p.a.rank - 2], p.a.strides[p.a.rank - 1]};
  one.b = {static_cast<const SB*>(p.b.data), p.b.strides[p.b.rank - 2], p.b.strides[p.b.rank - 1]};
  one.out = {static_cast<SA*>(p.out.data), p.out.strides[rank - 2], p.out.strides[rank - 1]};
  one.finish = {T(p.alpha), T(p.beta)};
  one.bias = {static_cast<const SA*>(p.bias.data), 0, p.bias.data == nullptr ? 0 : p.bias.strides[p.bias.rank - 1]};
  // A batch axis over which B is shared and whose steps continue the rows is more rows: [B, S, K] x [K, N] is one product.
  while (axes > 0 && stride[1][axes - 1] == 0) {
    const int last = axes - 1;
    if (one.m == 1) {
      one.a.row = stride[0][last];
      one.out.row = stride[2][last];
    } else if (stride[0][last] != one.m * one.a.row || stride[2][last] != one.m * one.out.row) {
      break;
    }
    one.m *= shape[last];
    batch /= shape[last];
    axes--;
  }
  int status = HEED_OK;
  const auto item = [&](int64_t index) {
    Product<SA, SB> each = one;
    for (int axis = axes - 1; axis >= 0; axis--) {
      const int64_t i = index % shape[axis];
      index /= shape[axis];
      each.a.data += i * stride[0][axis];
      each.b.data += i * stride[1][axis];
      each.out.data += i * stride[2][axis];
    }
    const FewKernel<SB> kernel = FewKernelFor<SB>(each.m, each.b);
    const int result = kernel != nullptr ? MultiplyFew(each, kernel) : MultiplyMany(each);
    if (result != HEED_OK) __atomic_store_n(&status, result, __ATOMIC_RELAXED);
  };
  // Products that cannot feed every thread run side by side; a product inside a task runs on its thread alone.
  const bool small = double(one.m) * double(one.n) * double(one.k) < 1e6 * Threads();
  if (batch > 1 && (small || batch >= 4 * Threads())) ParallelFor(batch, [&](int64_t i, int) { item(i); });
  else
    for (int64_t i = 0; i < batch; i++) item(i);
  return status == HEED_OK ? HEED_OK : Fail(status, "[matmul] no memory for packed operands");
}
}  // namespace

int matmul(const heed_matmul& p) {
  const int status = DispatchFloat(p.a.dtype, HEED_UNSUPPORTED, [&](auto a) {
    using SA = typename decltype(a)::type;
    if (p.a.dtype == p.b.dtype) return Run<SA, SA>(p);
    if (p.a.dtype == HEED_FLOAT32 && p.b.dtype == HEED_FLOAT16) return Run<float, Float16>(p);
    if (p.a.dtype == HEED_FLOAT32 && p.b.dtype == HEED_BFLOAT16) return Run<float, BFloat16>(p);
    return int{HEED_UNSUPPORTED};
  });
  if (status != HEED_UNSUPPORTED) return status;
  return Fail(HEED_UNSUPPORTED, "[matmul] no product of dtypes %d and %d: convert one operand", p.a.dtype, p.b.dtype);
}
}  // namespace heed::HEED_ISA
