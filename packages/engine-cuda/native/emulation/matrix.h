// ldmatrix and mma, with the fragments of the PTX ISA (9.7.14, warp-level matrix instructions). Collective.
#pragma once
#include <stdint.h>

#include "block.h"
#include "widen.h"

namespace heed::emulation {

/// ldmatrix.m8n8.x4.b16: lane l gives the address of row l % 8 of matrix l / 8 and receives of each matrix i, in r[i], the elements
/// (l / 4, 2 (l % 4)) and the one after; of its transpose where `transposed`.
void LoadMatrix(uint32_t (&r)[4], uint32_t row, bool transposed, Site site);

/// mma.m16n8k16: c [16, 8] += a [16, 16] b [16, 8], the products and sums in float32. Rows and columns that a lane holds: see matrix.cc.
void MultiplyAccumulate(Half type, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site);

}  // namespace heed::emulation
