#include "matrix.h"

#include <string.h>

#include "races.h"

namespace heed::emulation {
namespace {

struct MatrixRow {
  uint32_t* r;
  const unsigned char* row;  // of 8 elements
};

void Load(void** operands) {
  for (int lane = 0; lane < kWarp; lane++)
    for (int i = 0; i < 4; i++)
      memcpy(&static_cast<MatrixRow*>(operands[lane])->r[i],
             static_cast<MatrixRow*>(operands[8 * i + lane / 4])->row + lane % 4 * 4, 4);
}
void LoadTransposed(void** operands) {
  for (int i = 0; i < 4; i++) {
    uint16_t matrix[8][8];
    for (int k = 0; k < 8; k++) memcpy(matrix[k], static_cast<MatrixRow*>(operands[8 * i + k])->row, 16);
    for (int lane = 0; lane < kWarp; lane++) {
      const int column = lane / 4, row = lane % 4 * 2;
      static_cast<MatrixRow*>(operands[lane])->r[i] =
          matrix[row][column] | static_cast<uint32_t>(matrix[row + 1][column]) << 16;
    }
  }
}

struct Fragments {
  float* c;
  const uint32_t* a;
  uint32_t b0, b1;
};

// With row = lane / 4 and column = 2 (lane % 4), a lane holds, two columns (rows of b) per register:
//   a: (row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8);  b: (column, row), (column + 8, row);
//   c: (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1).
template <Half type> INLINE void Multiply(void** operands) {
  alignas(32) uint32_t a[16][8], b[8][8];  // pairs along k: a [row, pair], b [pair, column]
  for (int lane = 0; lane < kWarp; lane++) {
    const Fragments& f = *static_cast<Fragments*>(operands[lane]);
    const int row = lane / 4, pair = lane % 4;
    a[row][pair] = f.a[0];
    a[row + 8][pair] = f.a[1];
    a[row][pair + 4] = f.a[2];
    a[row + 8][pair + 4] = f.a[3];
    b[pair][row] = f.b0;
    b[pair + 4][row] = f.b1;
  }
  Eight even[8], odd[8];  // rows of b
  for (int pair = 0; pair < 8; pair++)
    Widen<type>(*reinterpret_cast<const EightBits*>(b[pair]), even[pair], odd[pair]);
  alignas(32) float c[16][8];
  for (int i = 0; i < 16; i++) {
    Eight low, high;
    Widen<type>(*reinterpret_cast<const EightBits*>(a[i]), low, high);
    MultiplyRow(low, high, even, odd, *reinterpret_cast<Eight*>(c[i]));
  }
  for (int lane = 0; lane < kWarp; lane++) {
    float* out = static_cast<Fragments*>(operands[lane])->c;
    const int row = lane / 4, column = lane % 4 * 2;
    out[0] += c[row][column];
    out[1] += c[row][column + 1];
    out[2] += c[row + 8][column];
    out[3] += c[row + 8][column + 1];
  }
}

using Complete = void (*)(void** operands);
template <Half type> void MultiplyPortable(void** operands) { Multiply<type>(operands); }
#ifdef __x86_64__
template <Half type> __attribute__((target("avx2"))) void MultiplyAvx2(void** operands) { Multiply<type>(operands); }
#endif
template <Half type> Complete BestMultiply() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) return MultiplyAvx2<type>;
#endif
  return MultiplyPortable<type>;
}

}  // namespace

void LoadMatrix(uint32_t (&r)[4], uint32_t row, bool transposed, Site site) {
  Block& block = *current_thread->block;
  MatrixRow mine = {r, block.SharedAt(row, 16, 16, "load_matrix_x4")};
  if (block.races) block.races->Read(row - kSharedStart, 16);
  if (transposed)
    block.Collective(Op::kLoadMatrixTransposed, site, &mine, LoadTransposed);
  else
    block.Collective(Op::kLoadMatrix, site, &mine, Load);
}

void MultiplyAccumulate(Half type, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
  static const Complete float16 = BestMultiply<Half::kFloat16>(), bfloat16 = BestMultiply<Half::kBfloat16>();
  Fragments mine = {c, a, b0, b1};
  current_thread->block->Collective(Op::kMma, site, &mine, type == Half::kBfloat16 ? bfloat16 : float16);
}

}  // namespace heed::emulation
