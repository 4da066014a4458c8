#include "races.h"

#include <string.h>

#include <algorithm>

#include "block.h"

namespace heed::emulation {

void Races::Start(uint32_t bytes, int threads) {
  const uint32_t units = bytes / kUnit + 1, pieces = bytes / kPiece + 1;
  warps_ = reads_.warps = atomics_.warps = (threads + kWarp - 1) / kWarp;
  if (units_.size() < units) units_.resize(units);
  if (pieces_.size() < pieces) pieces_.resize(pieces);
  const size_t of_units = static_cast<size_t>(units) * warps_, of_pieces = static_cast<size_t>(pieces) * warps_;
  if (reads_.at.size() < of_units) reads_.at.resize(of_units);
  if (product_reads_.size() < of_pieces) product_reads_.resize(of_pieces);
  for (int i = 0; i < threads; i++) published_[i].clear();
  run_++;
  pending_count_ = 0;
  time_ = 0;
  BlockMet();
}

void Races::BlockMet() {
  met_ = time_++;
  for (int warp = 0; warp < warps_; warp++) {
    std::fill_n(clocks_[warp].at, warps_, met_);
    clocks_[warp].at[warp] = time_;
    lanes_met_[warp] = met_;
  }
}

void Races::Release(int warp, Clock& into) {
  for (int i = 0; i < warps_; i++) into.at[i] = std::max(into.at[i], clocks_[warp].at[i]);
  clocks_[warp].at[warp] = ++time_;
}
void Races::Acquire(int warp, const Clock& from) {
  for (int i = 0; i < warps_; i++) clocks_[warp].at[i] = std::max(clocks_[warp].at[i], from.at[i]);
  lanes_met_[warp] = std::max(lanes_met_[warp], from.at[warp]);
}

int Races::Lane() { return current_thread->index % kWarp; }
int Races::Warp() { return current_thread->index / kWarp; }

Races::Unit& Races::UnitAt(uint32_t i) {
  Unit& unit = units_[i];
  if (unit.run != run_) {
    unit = {};
    unit.run = run_;
  }
  return unit;
}
Races::Piece& Races::PieceAt(uint32_t offset) {
  Piece& piece = pieces_[offset / kPiece];
  if (piece.run != run_) {
    piece = {};
    piece.run = run_;
  }
  return piece;
}

template <class F> void Races::ForUnits(uint32_t offset, uint32_t bytes, const F& f) {
  if (bytes < kUnit) return;
  const uint32_t end = (offset + bytes + kUnit - 1) / kUnit;
  for (uint32_t i = offset / kUnit; i < end; i++) f(UnitAt(i), i * kUnit);
}

void Races::Add(uint32_t& warps, Accesses& accesses, uint32_t offset) {
  const int warp = Warp();
  Access& access = accesses.Of(offset / kUnit)[warp];
  if (!(warps >> warp & 1) || access.time != Time(warp)) access = {Time(warp), 0};
  access.lanes |= 1u << Lane();
  warps |= 1u << warp;
}
// What was done before the write comes before all that comes behind the write.
void Races::AddWrite(Unit& unit, uint32_t offset) {
  unit.writer = current_thread->index;
  unit.write_time = Time(Warp());
  unit.readers = unit.changers = 0;
  Changed(unit, offset);
}
void Races::Changed(Unit& unit, uint32_t offset) {
  unit.changer = current_thread->index;
  unit.changed = now_;
  PieceAt(offset).open = 0;
}

void Races::OtherWarp(int warp, uint32_t offset, const char* mine, const char* theirs) {
  block_.Fault("race: it %s bytes %u and %u of shared memory, which warp %d %s, with no barrier of the block or of both warps in between",
               mine, offset, offset + 1, warp, theirs);
}
void Races::OtherLane(int lane, uint32_t offset, const char* mine, const char* theirs) {
  block_.Fault("race: it %s bytes %u and %u of shared memory, which lane %d of its warp %s, with no sync_warp in between", mine, offset,
               offset + 1, lane, theirs);
}

void Races::AgainstWrite(const Unit& unit, uint32_t offset, const char* mine) {
  if (unit.writer < 0 || unit.writer == current_thread->index) return;
  const int warp = unit.writer / kWarp;
  if (warp != Warp()) {
    if (!After(warp, unit.write_time)) OtherWarp(warp, offset, mine, "wrote");
  } else if (unit.write_time > lanes_met_[warp]) {
    OtherLane(unit.writer % kWarp, offset, mine, "wrote");
  }
}
void Races::Against(uint32_t warps, Accesses& accesses, uint32_t offset, const char* mine, const char* theirs) {
  const Access* of = accesses.Of(offset / kUnit);
  const int me = Warp();
  for (uint32_t left = warps & ~(1u << me); left; left &= left - 1) {
    const int warp = __builtin_ctz(left);
    if (!After(warp, of[warp].time)) OtherWarp(warp, offset, mine, theirs);
  }
  if (!(warps >> me & 1) || of[me].time <= lanes_met_[me]) return;
  if (const uint32_t others = of[me].lanes & ~(1u << Lane())) OtherLane(__builtin_ctz(others), offset, mine, theirs);
}

// For writes, before they are added. What a warp's own products have read its lanes may write: all have waited.
void Races::NotMultiplied(uint32_t offset, uint32_t bytes, const char* mine) {
  for (uint32_t at = offset & ~(kPiece - 1); at < offset + bytes; at += kPiece) {
    const Piece& piece = PieceAt(at);
    const uint32_t from = std::max(at, offset);
    if (piece.products > 0)
      block_.Fault("race: it %s bytes %u and %u of shared memory, which a warpgroup product under way reads", mine, from, from + 1);
    const uint32_t* times = &product_reads_[static_cast<size_t>(at / kPiece) * warps_];
    for (uint32_t left = piece.readers & ~(1u << Warp()); left; left &= left - 1) {
      const int warp = __builtin_ctz(left);
      if (!After(warp, times[warp])) OtherWarp(warp, from, mine, "read");
    }
  }
}

void Races::NotCopied(uint32_t offset, uint32_t bytes, const char* mine) {
  ForUnits(offset, bytes, [&](const Unit& unit, uint32_t at) {
    if (unit.copier >= 0)
      block_.Fault("race: it %s bytes %u and %u of shared memory, to which an asynchronous copy of thread %d is under way", mine, at,
                   at + 1, unit.copier);
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
    if (written) NotMultiplied(touch.offset, touch.bytes, "writes");
    ForUnits(touch.offset, touch.bytes, [&](Unit& unit, uint32_t at) {
      AgainstWrite(unit, at, written ? "writes" : "reads");
      AgainstAtomics(unit, at, written ? "writes" : "reads");
      if (!written) return Add(unit.readers, reads_, at);
      AgainstReads(unit, at, "writes");
      AddWrite(unit, at);
    });
  }
  pending_count_ -= count;
  std::copy(pending_ + count, pending_ + count + pending_count_, pending_);
}

void Races::Read(uint32_t offset, uint32_t bytes) {
  Flush();
  NotCopied(offset, bytes, "reads");
  ForUnits(offset, bytes, [&](Unit& unit, uint32_t at) {
    AgainstWrite(unit, at, "reads");
    AgainstAtomics(unit, at, "reads");
    Add(unit.readers, reads_, at);
  });
}

void Races::Write(uint32_t offset, uint32_t bytes) {
  Flush();
  NotCopied(offset, bytes, "writes");
  NotMultiplied(offset, bytes, "writes");
  ForUnits(offset, bytes, [&](Unit& unit, uint32_t at) {
    AgainstWrite(unit, at, "writes");
    AgainstAtomics(unit, at, "writes");
    AgainstReads(unit, at, "writes");
    AddWrite(unit, at);
  });
}

void Races::Atomic(uint32_t offset, uint32_t bytes) {
  // `&s[i]` was no access of its own.
  if (pending_count_ > 0 && pending_[pending_count_ - 1].offset == offset) pending_count_--;
  Flush();
  if (atomics_.at.size() < reads_.at.size()) atomics_.at.resize(reads_.at.size());
  NotCopied(offset, bytes, "changes");
  NotMultiplied(offset, bytes, "changes atomically");
  ForUnits(offset, bytes, [&](Unit& unit, uint32_t at) {
    AgainstWrite(unit, at, "changes atomically");
    AgainstReads(unit, at, "changes atomically");
    Add(unit.changers, atomics_, at);
    Changed(unit, at);
  });
}

void Races::UseBarrier(uint32_t offset, uint32_t bytes) {
  Flush();
  ForUnits(offset, bytes, [&](const Unit& unit, uint32_t at) { AgainstWrite(unit, at, "uses the barrier in"); });
}

void Races::CopyStarts(uint32_t offset) {
  Flush();
  NotMultiplied(offset, 16, "copies to");
  ForUnits(offset, 16, [&](Unit& unit, uint32_t at) {
    if (unit.copier >= 0)
      block_.Fault("race: it copies to bytes %u and %u of shared memory, to which a copy of thread %d is under way", at, at + 1,
                   unit.copier);
    AgainstWrite(unit, at, "copies to");
    AgainstAtomics(unit, at, "copies to");
    AgainstReads(unit, at, "copies to");
    AddWrite(unit, at);
    unit.copier = current_thread->index;
  });
}

void Races::CopyLands(uint32_t offset) {
  ForUnits(offset, 16, [&](Unit& unit, uint32_t at) {
    AddWrite(unit, at);
    unit.copier = -1;
  });
}

void Races::Publish() {
  Flush();
  published_[current_thread->index].push_back({++now_, Time(Warp())});
}

// The first publish_shared by the thread that changed the unit last, behind the change; null: none.
const Races::Published* Races::PublishedBehind(const Unit& unit) const {
  const std::vector<Published>& all = published_[unit.changer];
  const Published* first = nullptr;
  for (size_t i = all.size(); i > 0 && all[i - 1].now > unit.changed; i--) first = &all[i - 1];
  return first;
}

void Races::ProductStarts(uint32_t offset) {
  Piece& piece = PieceAt(offset);
  piece.products++;
  const int warp = Warp();
  if (piece.open >> warp & 1) return;
  NotCopied(offset, kPiece, "multiplies by");
  bool to_all = true;
  ForUnits(offset, kPiece, [&](const Unit& unit, uint32_t at) {
    AgainstWrite(unit, at, "multiplies by");
    AgainstAtomics(unit, at, "multiplies by");
    if (unit.changer < 0) return;
    const Published* published = PublishedBehind(unit);
    if (!published || (unit.changer / kWarp != warp && !After(unit.changer / kWarp, published->time)))
      block_.Fault("race: it multiplies by bytes %u and %u of shared memory, which thread %d wrote or copied and did not publish "
                   "(publish_shared, then a barrier)", at, at + 1, unit.changer);
    to_all = to_all && published->time <= met_;
  });
  piece.open |= to_all ? ~0u : 1u << warp;
}

void Races::ProductLands(uint32_t offset) {
  Piece& piece = PieceAt(offset);
  piece.readers |= 1u << Warp();
  product_reads_[static_cast<size_t>(offset / kPiece) * warps_ + Warp()] = Time(Warp());
  piece.products--;
}

}  // namespace heed::emulation
