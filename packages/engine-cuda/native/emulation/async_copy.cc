#include "async_copy.h"

#include <string.h>

#include "block.h"
#include "races.h"

namespace heed::emulation {
namespace {
constexpr uint32_t kForget = 64;  // landed copies, at most, that are kept before a thread whose queue never empties drops them
}  // namespace

void AsyncCopies::Start(uint32_t to, const void* from, bool valid) {
  Block& block = *current_thread->block;
  unsigned char* destination = block.SharedAt(to, 16, 16, "copy_async_16");
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) block.Fault("copy_async_16: source %p is not a multiple of 16", from);
  const uint32_t offset = static_cast<uint32_t>(destination - block.shared);
  if (block.races) block.races->CopyStarts(offset);
  memset(destination, 0xff, 16);
  Copy copy = {offset, true, from, {}};
  if (valid) {
    block.CheckPointer(from, 16, "copy_async_16");
    copy.read = block.random.Next() & 1;
    if (copy.read) memcpy(copy.bytes, from, 16);
  }
  copies_.push_back(copy);
}

void AsyncCopies::Land() {
  Block& block = *current_thread->block;
  const uint32_t end = groups_[first_group_++];
  for (; landed_ < end; landed_++) {
    const Copy& copy = copies_[landed_];
    memcpy(block.shared + copy.to, copy.read ? copy.bytes : copy.from, 16);
    if (block.races) block.races->CopyLands(copy.to);
  }
  if (landed_ < kForget && landed_ != copies_.size()) return;
  copies_.erase(copies_.begin(), copies_.begin() + landed_);
  groups_.erase(groups_.begin(), groups_.begin() + first_group_);
  for (uint32_t& group : groups_) group -= landed_;
  landed_ = first_group_ = 0;
}

void AsyncCopies::Clear() {
  copies_.clear();
  groups_.clear();
  landed_ = first_group_ = 0;
}

}  // namespace heed::emulation
