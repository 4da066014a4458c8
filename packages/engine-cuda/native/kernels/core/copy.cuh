// Copies: of one dtype by its size alone, through tiles in shared memory where a transpose would touch a sector for each element;
// of two dtypes with a conversion.
#pragma once
#include "convert.cuh"
#include "walk.cuh"

namespace heed {
DEVICE int bytes_of(int32_t dtype) {
  if (dtype == HEED_FLOAT64 || dtype == HEED_INT64) return 8;
  if (dtype == HEED_FLOAT32 || dtype == HEED_INT32) return 4;
  return dtype >= HEED_UINT8 ? 1 : 2;
}
template <typename Raw, int N> DEVICE void move_units(const heed_cuda_copy_units& args) {
  const heed_copy& p = args.problem;
  const int last = p.out.rank - 1;
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const Unit<2> at = locate(args.walk, unit, 0, p.out, p.x);
    Raw x[N];
    load_elements(elements<Raw>(p.x) + at.offsets.at[1], p.x.strides[last], at.count, x);
    store_elements(elements<Raw>(p.out) + at.offsets.at[0], p.out.strides[last], at.count, x);
  }
}
template <typename Raw> DEVICE void move(const heed_cuda_copy_units& args) {
  if (args.walk.width == 1) move_units<Raw, 1>(args);
  else move_units<Raw, vector_width<Raw>>(args);
}

constexpr int kTile = 32, kTileRows = 8;  // 256 threads walk 8 rows at a time
/// Rows of a tile are one element longer than 32, so that its columns, too, lie in different banks.
template <typename Raw> DEVICE void transpose(const heed_cuda_transpose& args) {
  const heed_copy& p = args.problem;
  const int column_axis = p.out.rank - 1, row_axis = column_axis - 1;
  const int fast = thread_x() % kTile, slow = thread_x() / kTile;
  const Shared<Raw> tile = shared<Raw>(0, kTile * (kTile + 1));
  for (int64_t index = block_x(); index < args.tiles; index += grid_x()) {
    const int64_t matrix = divide(index, args.down * args.across), within = index - matrix * args.down * args.across;
    const int64_t down = divide(within, args.across), row = down * kTile, column = (within - down * args.across) * kTile;
    const Offsets<2> start = seek(matrix, 0, row_axis, p.out, p.x);
    const Raw* from = elements<Raw>(p.x) + start.at[1];
    Raw* to = elements<Raw>(p.out) + start.at[0];
    for (int i = slow; i < kTile; i += kTileRows)
      if (row + fast < p.out.shape[row_axis] && column + i < p.out.shape[column_axis])
        tile[i * (kTile + 1) + fast] = from[(row + fast) * p.x.strides[row_axis] + (column + i) * p.x.strides[column_axis]];
    sync_block();
    for (int i = slow; i < kTile; i += kTileRows)
      if (row + i < p.out.shape[row_axis] && column + fast < p.out.shape[column_axis])
        to[(row + i) * p.out.strides[row_axis] + (column + fast) * p.out.strides[column_axis]] = tile[fast * (kTile + 1) + i];
    sync_block();
  }
}

/// Among the floats of at most 32 bits.
template <typename From, typename To, int N> DEVICE void convert_units(const heed_cuda_copy_units& args) {
  const heed_copy& p = args.problem;
  const int last = p.out.rank - 1;
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const Unit<2> at = locate(args.walk, unit, 0, p.out, p.x);
    float x[N];
    load_wide<From>(elements<From>(p.x) + at.offsets.at[1], p.x.strides[last], at.count, x);
    store_narrow<To>(elements<To>(p.out) + at.offsets.at[0], p.out.strides[last], at.count, x);
  }
}
template <typename From, typename To> DEVICE void convert(const heed_cuda_copy_units& args) {
  if (args.walk.width == 1) convert_units<From, To, 1>(args);
  else convert_units<From, To, 8>(args);
}
/// Between any two dtypes.
template <int N> DEVICE void convert_any(const heed_cuda_copy_units& args) {
  const heed_copy& p = args.problem;
  const int last = p.out.rank - 1;
  const bool real = is_float_dtype(p.x.dtype);
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const Unit<2> at = locate(args.walk, unit, 0, p.out, p.x);
    Wide x[N];
    load_any(p.x, at.offsets.at[1], p.x.strides[last], at.count, x);
    store_any(p.out, at.offsets.at[0], p.out.strides[last], at.count, x, real);
  }
}
}  // namespace heed
