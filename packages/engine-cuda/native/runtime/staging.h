// Pinned host memory: a ring that uploads pass through, so that a caller's memory is free when the call returns, and the blocks that
// downloads arrive in.
#pragma once
#include <stdint.h>

#include <vector>

#include "driver.h"

namespace heed {
struct Context;

struct Pinned {
  void* data = nullptr;
  uint64_t bytes = 0;
};

class Staging {
 public:
  explicit Staging(Context& context) : context_(context) {}
  void Close();

  int32_t Upload(CUdeviceptr to, const void* from, uint64_t bytes);
  /// A block of at least `bytes`.
  int32_t Take(uint64_t bytes, Pinned* memory);
  void Return(Pinned memory);
  /// The same for one that the stream may still be writing or reading.
  void ReturnLater(Pinned memory, CUevent event);
  /// Frees the blocks kept for reuse.
  void Trim();

 private:
  // Four of 4 MiB: a full one is on its way while the next is filled. PCIe 5 moves one in 80 us.
  static constexpr int kChunks = 4;
  static constexpr uint64_t kChunkBytes = 4ull << 20;
  static constexpr uint64_t kKeepAtMost = 64ull << 20;
  struct Chunk {
    Pinned memory;
    CUevent event = nullptr;
    uint64_t used = 0;
    bool sent = false;  // full, and the event marks its end
  };
  struct Later {
    Pinned memory;
    CUevent event;
  };
  int32_t Room(Chunk** chunk);
  void Sweep();

  Context& context_;
  Chunk chunks_[kChunks];
  int current_ = 0;
  std::vector<Pinned> kept_;
  uint64_t kept_bytes_ = 0;
  std::vector<Later> later_;
};
}  // namespace heed
