// Rows by index. An index that is out of range reads as a row of NaN (of zeros where the dtype has none) and adds nothing: the host
// does not see indices on a device, and an address out of range would end the context.
#pragma once
#include "copy.cuh"

namespace heed {
DEVICE int64_t index_at(const heed_tensor& indices, int64_t i) {
  const int64_t at = i * indices.strides[0];
  return indices.dtype == HEED_INT64 ? elements<int64_t>(indices)[at] : elements<int32_t>(indices)[at];
}
template <typename Raw> DEVICE Raw absent(int32_t dtype) { return dtype <= HEED_BFLOAT16 ? static_cast<Raw>(~Raw{0}) : Raw{0}; }

/// out [n, rest...], x [R, rest...]: rest has at least one axis.
template <typename Raw, int N> DEVICE void gather_units(const heed_cuda_gather& args) {
  const heed_gather& p = args.problem;
  const int last = p.out.rank - 1;
  const int64_t per_index = divide(args.walk.units, p.out.shape[0]);
  for (int64_t unit = first_unit(); unit < args.walk.units; unit += unit_step()) {
    const int64_t i = divide(unit, per_index), index = index_at(p.indices, i);
    const Unit<2> at = locate(args.walk, unit - i * per_index, 1, p.out, p.x);
    Raw x[N];
    if (index >= 0 && index < p.x.shape[0]) {
      load_elements(elements<Raw>(p.x) + index * p.x.strides[0] + at.offsets.at[1], p.x.strides[last], at.count, x);
    } else {
      UNROLL for (int k = 0; k < N; k++) x[k] = absent<Raw>(p.x.dtype);
    }
    store_elements(elements<Raw>(p.out) + i * p.out.strides[0] + at.offsets.at[0], p.out.strides[last], at.count, x);
  }
}
template <typename Raw> DEVICE void gather(const heed_cuda_gather& args) {
  if (args.walk.width == 1) gather_units<Raw, 1>(args);
  else gather_units<Raw, vector_width<Raw>>(args);
}

/// Whether any of the indices begin .. end - 1 is `index`. Collective.
DEVICE bool occurs(const heed_tensor& indices, int64_t begin, int64_t end, int64_t index) {
  for (int64_t j = begin; j < end; j += 32)
    if (ballot(j + lane() < end && index_at(indices, j + lane()) == index) != 0) return true;
  return false;
}
/// A warp takes an index i and 32 units of a row. If i is the first of its value, it adds up all rows of that value, in ascending
/// order and with one rounding; otherwise another warp does. Reading the indices n^2 / 32 times in all costs less than the rows,
/// which are read once, up to some 10^5 indices, and needs neither memory nor atomics, whose order would change the sum.
template <typename T, int N> DEVICE void scatter_add_rows(const heed_cuda_scatter_add& args) {
  const heed_scatter_add& p = args.problem;
  const int last = p.out.rank - 1;
  const int64_t count = p.indices.shape[0], pieces = divide(args.row.units + 31, 32), warps = block_threads() / 32;
  const int64_t x_step = p.x.strides[last], out_step = p.out.strides[last];
  for (int64_t task = block_x() * warps + warp(); task < count * pieces; task += grid_x() * warps) {
    const int64_t i = divide(task, pieces), index = index_at(p.indices, i), unit = (task - i * pieces) * 32 + lane();
    if (index < 0 || index >= p.out.shape[0] || occurs(p.indices, 0, i, index)) continue;
    Unit<2> at = locate(args.row, unit < args.row.units ? unit : 0, 1, p.out, p.x);
    if (unit >= args.row.units) at.count = 0;
    T* to = elements<T>(p.out) + index * p.out.strides[0] + at.offsets.at[0];
    const T* from = elements<T>(p.x) + at.offsets.at[1];
    Acc<T> sum[N];
    load_wide<T>(to, out_step, at.count, sum);
    for (int64_t j = i; j < count; j += 32) {
      const uint32_t same = ballot(j + lane() < count && index_at(p.indices, j + lane()) == index);
      for (int k = 0; same >> k != 0; k++) {
        if ((same >> k & 1) == 0) continue;
        Acc<T> x[N];
        load_wide<T>(from + (j + k) * p.x.strides[0], x_step, at.count, x);
        UNROLL for (int e = 0; e < N; e++) sum[e] = add(sum[e], x[e]);
        if (k == 31) break;  // a shift by 32 is not defined
      }
    }
    store_narrow<T>(to, out_step, at.count, sum);
  }
}
template <typename T> DEVICE void scatter_add(const heed_cuda_scatter_add& args) {
  if (args.row.width == 1) scatter_add_rows<T, 1>(args);
  else scatter_add_rows<T, vector_width<T>>(args);
}
}  // namespace heed
