// The memory of the emulated device: allocations of host memory with poison around them.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <shared_mutex>
#include <string>
#include <vector>

namespace heed::emulation {

/// All allocations of a device. Safe from several host threads.
class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// Bytes aligned to 256, filled with 0xff (NaN in every float), or null when there is no memory. Zero bytes are an allocation too.
  void* Allocate(size_t bytes);
  /// Frees what Allocate gave. Empty, or words when it is not such an address or when something was written around it.
  std::string Free(void* p);
  /// Empty, or which allocation has been written past an end.
  std::string CheckEnds() const;
  /// Whether the bytes lie in one allocation. While a launch runs (the launcher holds `mutex`).
  bool Holds(const void* p, size_t bytes) const;
  /// The allocation next to an address, in words.
  std::string Near(const void* p) const;
  size_t BytesInUse() const;

  /// Shared by launches, held alone by Allocate and Free.
  mutable std::shared_mutex mutex;

 private:
  struct Allocation {
    unsigned char* data;
    size_t bytes;
  };
  const Allocation* Below(const void* p) const;

  std::vector<Allocation> allocations_;  // by address
  size_t in_use_ = 0;
};

}  // namespace heed::emulation
