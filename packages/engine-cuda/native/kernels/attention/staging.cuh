// Rows on their way from memory to shared memory.
#pragma once
#include "../../device/device.h"

namespace heed {

// A warp copies kRows rows of at most kRow bytes that lie token_bytes apart; past `bytes` of each come zeros. A lane copies the same 16
// bytes of every few rows, so that its address advances by a constant.
template <int kRow, int kPitch, int kRows>
DEVICE void copy_rows(uint32_t to, const unsigned char* from, int token_bytes, int bytes) {
  constexpr int kChunks = kRow / 16, kAtOnce = 32 / kChunks;
  static_assert(kAtOnce * kChunks == 32 && kRows % kAtOnce == 0, "every lane copies the same number of rows");
  const int row = lane() / kChunks, chunk = lane() % kChunks;
  const bool valid = chunk * 16 < bytes;
  from += static_cast<int64_t>(row) * token_bytes + (valid ? chunk * 16 : 0);
  to += row * kPitch + chunk * 16;
  UNROLL for (int i = 0; i < kRows / kAtOnce; i++, from += kAtOnce * token_bytes) copy_async_16(to + i * kAtOnce * kPitch, from, valid);
}

}  // namespace heed
