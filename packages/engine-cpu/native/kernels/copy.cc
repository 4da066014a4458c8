// out = x in out's dtype. Rows where both operands are contiguous go through vectors; transposes are walked in tiles, because a
// strided row touches a cache line per element.
#include <string.h>

#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "block-inl.h"
#include "convert-inl.h"
#include "nest-inl.h"

namespace heed::HEED_ISA {
namespace {
template <class T> constexpr bool kVectorised = kSame<Acc<T>, float>;  // float, Float16, BFloat16

template <class To, class From>
void ConvertRow(void* to, int64_t to_step, const void* from, int64_t from_step, int64_t n) {
  int64_t i = 0;
  if (to_step == sizeof(To) && from_step == sizeof(From)) {
    To* out = static_cast<To*>(to);
    const From* x = static_cast<const From*>(from);
    if constexpr (kSame<To, From>) {
      memmove(out, x, n * sizeof(To));
      return;
    } else if constexpr (kVectorised<To> && kVectorised<From>) {
      for (; i + Width<float> <= n; i += Width<float>) StoreAs<To>(out + i, LoadAs<From>(x + i));
    } else {
      for (; i < n; i++) out[i] = Convert<To>(x[i]);
    }
  }
  for (; i < n; i++) {
    *Element<To>(to, i * to_step) = Convert<To>(*Element<From>(from, i * from_step));
    HEED_SCALAR;
  }
}
template <class To> RowConverter ConverterTo(int32_t from) {
  static constexpr RowConverter kTable[] = {ConvertRow<To, double>,   ConvertRow<To, float>,   ConvertRow<To, Float16>,
                                            ConvertRow<To, BFloat16>, ConvertRow<To, int32_t>, ConvertRow<To, int64_t>,
                                            ConvertRow<To, uint8_t>,  ConvertRow<To, Bool>};
  return kTable[from];
}

// A tile of a transpose: 32 x 32 elements, read along x's contiguous axis into a buffer and written along out's. Both sides
// then touch whole cache lines once each; tiles of a power-of-two stride, whose lines all fall into one set of the cache, cost
// no more.
constexpr int64_t kTile = 32;

/// Whether x is contiguous along an axis other than the inner one, so that tiles of both axes pay.
template <int N> int TransposedAxis(const Nest<N>& nest, int64_t from_bytes) {
  const int inner = nest.rank - 1;
  if (nest.rank < 2 || Magnitude(nest.strides[inner][1]) <= 2 * from_bytes || nest.shape[inner] < 8) return -1;
  for (int i = 0; i < inner; i++)
    if (Magnitude(nest.strides[i][1]) == from_bytes && nest.shape[i] >= 8) return i;
  return -1;
}
void CopyTransposed(Nest<2> nest, int axis, RowConverter convert, RowConverter read, int64_t bytes) {
  const int inner = nest.rank - 1;
  if (axis != inner - 1) nest.Swap(axis, inner - 1);
  const int64_t rows = nest.shape[inner - 1], columns = nest.shape[inner];
  const int64_t row_to = nest.strides[inner - 1][0], row_from = nest.strides[inner - 1][1];
  const int64_t to_step = nest.strides[inner][0], from_step = nest.strides[inner][1];
  const int64_t down = (rows + kTile - 1) / kTile, across = (columns + kTile - 1) / kTile;
  const int64_t matrices = nest.size / (rows * columns);
  ParallelRange(matrices * down * across, kTaskElements / (kTile * kTile), [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; tile++) {
      int64_t offset[2];
      nest.Seek(tile / (down * across), inner - 1, offset);
      const int64_t row = tile / across % down * kTile, column = tile % across * kTile;
      const int64_t height = rows - row < kTile ? rows - row : kTile,
                    width = columns - column < kTile ? columns - column : kTile;
      char* to = nest.data[0] + offset[0] + row * row_to + column * to_step;
      const char* from = nest.data[1] + offset[1] + row * row_from + column * from_step;
      char buffer[kTile * kTile * 8] __attribute__((aligned(64)));
      for (int64_t j = 0; j < width; j++) read(buffer + j * kTile * bytes, bytes, from + j * from_step, row_from, height);
      for (int64_t i = 0; i < height; i++) convert(to + i * row_to, to_step, buffer + i * bytes, kTile * bytes, width);
    }
  });
}
}  // namespace

RowConverter Converter(int32_t to, int32_t from) {
  switch (to) {
    case 0: return ConverterTo<double>(from);
    case 1: return ConverterTo<float>(from);
    case 2: return ConverterTo<Float16>(from);
    case 3: return ConverterTo<BFloat16>(from);
    case 4: return ConverterTo<int32_t>(from);
    case 5: return ConverterTo<int64_t>(from);
    case 6: return ConverterTo<uint8_t>(from);
  }
  return ConverterTo<Bool>(from);
}

int copy(const heed_copy& p) {
  if (static_cast<uint32_t>(p.out.dtype) > HEED_BOOL || static_cast<uint32_t>(p.x.dtype) > HEED_BOOL)
    return Fail(HEED_UNSUPPORTED, "[copy] no conversion from dtype %d to dtype %d", p.x.dtype, p.out.dtype);
  const RowConverter convert = Converter(p.out.dtype, p.x.dtype);
  const Nest<2> nest = MakeNest({&p.out, &p.x});
  if (nest.size == 0) return HEED_OK;
  const int axis = TransposedAxis(nest, ElementBytes(p.x.dtype));
  if (axis >= 0) {
    CopyTransposed(nest, axis, convert, Converter(p.x.dtype, p.x.dtype), ElementBytes(p.x.dtype));
    return HEED_OK;
  }
  ForEachRow(nest,
             [convert](char* const* data, const int64_t* step, int64_t n) { convert(data[0], step[0], data[1], step[1], n); });
  return HEED_OK;
}
}  // namespace heed::HEED_ISA
