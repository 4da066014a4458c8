#include "races.h"

#include <string.h>

#include <algorithm>

#include "block.h"

namespace heed::emulation {

void Races::Start(uint32_t bytes) {
  if (units_.size() < bytes / kUnit + 1) units_.resize(bytes / kUnit + 1);
  epoch_++;
  run_++;
  pending_count_ = 0;
}

template <class F> void Races::ForUnits(uint32_t offset, uint32_t bytes, const F& f) {
  if (bytes < kUnit) return;
  const uint32_t end = (offset + bytes + kUnit - 1) / kUnit;
  for (uint32_t i = offset / kUnit; i < end; i++) f(units_[i], i * kUnit);
}

void Races::Add(Accesses& accesses) {
  const int index = current_thread->index, warp = index / kWarp;
  if (accesses.epoch != epoch_) {
    accesses.epoch = epoch_;
    accesses.warps = 0;
  }
  if (accesses.warps == 0 || accesses.warp != warp || accesses.warp_epoch != warp_epoch_[warp]) accesses.lanes = 0;
  accesses.warps |= 1u << warp;
  accesses.warp = warp;
  accesses.warp_epoch = warp_epoch_[warp];
  accesses.lanes |= 1u << (index % kWarp);
}

void Races::Against(const Accesses& accesses, uint32_t offset, const char* mine, const char* theirs) {
  if (accesses.epoch != epoch_) return;
  const int index = current_thread->index, warp = index / kWarp;
  if (const uint32_t others = accesses.warps & ~(1u << warp))
    block_.Fault("race: it %s bytes %u and %u of shared memory, which warp %d %s, with no barrier of the block in between", mine, offset,
                 offset + 1, __builtin_ctz(others), theirs);
  if (accesses.warp != warp || accesses.warp_epoch != warp_epoch_[warp]) return;
  if (const uint32_t others = accesses.lanes & ~(1u << (index % kWarp)))
    block_.Fault("race: it %s bytes %u and %u of shared memory, which lane %d of its warp %s, with no sync_warp in between", mine, offset,
                 offset + 1, __builtin_ctz(others), theirs);
}

void Races::NotCopied(uint32_t offset, uint32_t bytes, const char* mine) {
  ForUnits(offset, bytes, [&](const Unit& unit, uint32_t at) {
    if (unit.copy >> 32 == run_ && static_cast<uint32_t>(unit.copy) != 0)
      block_.Fault("race: it %s bytes %u and %u of shared memory, to which an asynchronous copy of thread %u is under way", mine, at,
                   at + 1, static_cast<uint32_t>(unit.copy) - 1);
  });
}

void Races::Touch(uint32_t offset, uint32_t bytes) {
  NotCopied(offset, bytes, "touches");
  for (uint32_t done = 0; done < bytes; done += kPiece) {
    if (pending_count_ == kPending) Settle(kPending / 2);
    Pending& touch = pending_[pending_count_++];
    touch.offset = offset + done;
    touch.bytes = std::min(bytes - done, kPiece);
    memcpy(touch.before, block_.shared + touch.offset, touch.bytes);
  }
}

void Races::Settle(uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    const Pending touch = pending_[i];
    const bool written = memcmp(touch.before, block_.shared + touch.offset, touch.bytes) != 0;
    ForUnits(touch.offset, touch.bytes, [&](Unit& unit, uint32_t at) {
      Against(unit.writes, at, written ? "writes" : "reads", "wrote");
      Against(unit.atomics, at, written ? "writes" : "reads", "changed atomically");
      if (written) Against(unit.reads, at, "writes", "read");
      Add(written ? unit.writes : unit.reads);
    });
  }
  pending_count_ -= count;
  std::copy(pending_ + count, pending_ + count + pending_count_, pending_);
}

void Races::Read(uint32_t offset, uint32_t bytes) {
  Flush();
  NotCopied(offset, bytes, "reads");
  ForUnits(offset, bytes, [&](Unit& unit, uint32_t at) {
    Against(unit.writes, at, "reads", "wrote");
    Against(unit.atomics, at, "reads", "changed atomically");
    Add(unit.reads);
  });
}

void Races::Write(uint32_t offset, uint32_t bytes) {
  Flush();
  NotCopied(offset, bytes, "writes");
  ForUnits(offset, bytes, [&](Unit& unit, uint32_t at) {
    Against(unit.writes, at, "writes", "wrote");
    Against(unit.atomics, at, "writes", "changed atomically");
    Against(unit.reads, at, "writes", "read");
    Add(unit.writes);
  });
}

void Races::Atomic(uint32_t offset, uint32_t bytes) {
  // `&s[i]` was no access of its own.
  if (pending_count_ > 0 && pending_[pending_count_ - 1].offset == offset) pending_count_--;
  Flush();
  NotCopied(offset, bytes, "changes");
  ForUnits(offset, bytes, [&](Unit& unit, uint32_t at) {
    Against(unit.writes, at, "changes atomically", "wrote");
    Against(unit.reads, at, "changes atomically", "read");
    Add(unit.atomics);
  });
}

void Races::CopyStarts(uint32_t offset) {
  Flush();
  ForUnits(offset, 16, [&](Unit& unit, uint32_t at) {
    if (unit.copy >> 32 == run_ && static_cast<uint32_t>(unit.copy) != 0)
      block_.Fault("race: it copies to bytes %u and %u of shared memory, to which a copy of thread %u is under way", at, at + 1,
                   static_cast<uint32_t>(unit.copy) - 1);
    Against(unit.writes, at, "copies to", "wrote");
    Against(unit.atomics, at, "copies to", "changed atomically");
    Against(unit.reads, at, "copies to", "read");
    Add(unit.writes);
    unit.copy = static_cast<uint64_t>(run_) << 32 | static_cast<uint32_t>(current_thread->index + 1);
  });
}

void Races::CopyLands(uint32_t offset) {
  ForUnits(offset, 16, [&](Unit& unit, uint32_t) {
    Add(unit.writes);
    unit.copy = 0;
  });
}

}  // namespace heed::emulation
