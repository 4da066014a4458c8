// Dynamic shared memory as kernels see it: every index is checked.
#pragma once
#include <stdint.h>

#include "block.h"
#include "races.h"

namespace heed::emulation {

/// An aligned access through a pointer to global or shared memory: within shared memory where it starts there, and followed there.
inline void CheckLoad(const void* p, uint32_t bytes, const char* what) {
  Block& block = *current_thread->block;
  block.CheckPointer(p, bytes, what);
  if (!block.InShared(p)) return;
  const uint32_t offset = static_cast<uint32_t>(static_cast<const unsigned char*>(p) - block.shared);
  block.SharedAt(kSharedStart + offset, bytes, bytes, what);
  if (block.races) block.races->Read(offset, bytes);
}
inline void CheckStore(void* p, uint32_t bytes, const char* what) {
  Block& block = *current_thread->block;
  block.CheckPointer(p, bytes, what);
  if (!block.InShared(p)) return;
  const uint32_t offset = static_cast<uint32_t>(static_cast<unsigned char*>(p) - block.shared);
  block.SharedAt(kSharedStart + offset, bytes, bytes, what);
  if (block.races) block.races->Write(offset, bytes);
}

}  // namespace heed::emulation

namespace heed {

/// `count` elements of dynamic shared memory. The build for a device has no checks; it also has a pointer, which kernels don't use.
template <typename T> struct Shared {
  T& operator[](int i) const {
    if (static_cast<unsigned>(i) >= static_cast<unsigned>(count_)) [[unlikely]]
      emulation::current_thread->block->Fault("shared<%d bytes>[%d] of %d elements", static_cast<int>(sizeof(T)), i, count_);
    if (races_) [[unlikely]]
      races_->Touch(start_ - emulation::kSharedStart + static_cast<uint32_t>(i) * sizeof(T), sizeof(T));
    return data_[i];
  }
  /// For copy_async_16 and load_matrix_x4, which check it.
  uint32_t address(int i) const { return start_ + static_cast<uint32_t>(i * static_cast<int>(sizeof(T))); }

  T* data_;
  uint32_t start_;
  int count_;
  emulation::Races* races_;
};

/// The part of dynamic shared memory that starts at `byte`.
template <typename T> inline Shared<T> shared(uint32_t byte, int count) {
  emulation::Block& block = *emulation::current_thread->block;
  if (count < 0) block.Fault("shared(%u, %d): a negative count", byte, count);
  const uint64_t bytes = static_cast<uint64_t>(count) * sizeof(T);
  const uint32_t address = emulation::kSharedStart + byte;
  unsigned char* data = block.SharedAt(address, bytes > ~0u ? ~0u : static_cast<uint32_t>(bytes), alignof(T), "shared");
  return {reinterpret_cast<T*>(data), address, count, block.races};
}

}  // namespace heed
