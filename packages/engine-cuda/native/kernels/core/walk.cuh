// Where the elements of strided operands lie: a unit is up to walk.width neighbours along the last axis, units are numbered
// row-major, threads take them in turn.
#pragma once
#include "../../abi/heed_cuda_args.h"
#include "../../device/device.h"

namespace heed {
#ifdef __CUDACC__
#define KEEP_LOOP _Pragma("unroll 1")
#else
#define KEEP_LOOP
#endif
/// a / b bit by bit. Slow, but inline: the compiler's 64-bit division is a call, across which a kernel's registers would spill.
DEVICE constexpr uint64_t divide_bits(uint64_t a, uint64_t b) {
  uint64_t quotient = 0, rest = 0;
  KEEP_LOOP for (int bit = 63; bit >= 0; bit--) {
    rest = rest << 1 | (a >> bit & 1);
    if (rest < b) continue;
    rest -= b;
    quotient |= uint64_t{1} << bit;
  }
  return quotient;
}
static_assert(divide_bits(uint64_t{7} << 40, uint64_t{3} << 33) == 298 && divide_bits(41, uint64_t{1} << 36) == 0 &&
              divide_bits((uint64_t{5} << 50) + 4, 5) == uint64_t{1} << 50);
/// a / b of whole numbers that are not negative; 32 bits nearly always suffice.
DEVICE int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return static_cast<int64_t>(divide_bits(static_cast<uint64_t>(a), static_cast<uint64_t>(b)));
}
template <typename T> DEVICE T* elements(const heed_tensor& t) { return static_cast<T*>(t.data); }

/// Element offsets of K operands.
template <int K> struct Offsets {
  int64_t at[K] = {};
  template <typename... Tensors> DEVICE void step(int axis, int64_t index, const Tensors&... operands) {
    int k = 0;
    ((at[k++] += index * operands.strides[axis]), ...);
  }
};
/// Where row `row` of the axes first .. last - 1 of the operands starts. They share a shape, which the first operand has.
template <typename... Tensors>
DEVICE Offsets<1 + sizeof...(Tensors)> seek(int64_t row, int first, int last, const heed_tensor& x, const Tensors&... rest) {
  Offsets<1 + sizeof...(Tensors)> offsets;
  for (int axis = last - 1; axis > first; axis--) {
    const int64_t up = divide(row, x.shape[axis]);
    offsets.step(axis, row - up * x.shape[axis], x, rest...);
    row = up;
  }
  if (last > first) offsets.step(first, row, x, rest...);
  return offsets;
}

template <int K> struct Unit {
  Offsets<K> offsets;  // of its first element
  int64_t row;         // in a flat count of the axes before the last
  int count;           // elements
};
/// Unit `unit` of the axes first .. rank - 1 of the operands.
template <typename... Tensors>
DEVICE Unit<1 + sizeof...(Tensors)> locate(const heed_cuda_walk& walk, int64_t unit, int first, const heed_tensor& x,
                                           const Tensors&... rest) {
  Unit<1 + sizeof...(Tensors)> at;
  const int last = x.rank - 1;
  at.row = last > first ? divide(unit, walk.per_row) : 0;
  at.offsets = seek(at.row, first, last, x, rest...);
  const int64_t start = (unit - at.row * walk.per_row) * walk.width, left = x.shape[last] - start;
  at.offsets.step(last, start, x, rest...);
  at.count = left < walk.width ? static_cast<int>(left) : walk.width;
  return at;
}

DEVICE int64_t first_unit() { return static_cast<int64_t>(block_x()) * block_threads() + thread_x(); }
DEVICE int64_t unit_step() { return static_cast<int64_t>(grid_x()) * block_threads(); }
}  // namespace heed
