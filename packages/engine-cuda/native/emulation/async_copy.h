// cp.async: copies of 16 bytes that land when their thread waits for their group, and not before. Until then the destination holds
// NaN; the source is read either when the copy starts or when it lands, drawn at random, so that a source which changes meanwhile shows.
#pragma once
#include <stdint.h>

#include <vector>

namespace heed::emulation {

/// The copies of one thread that are under way.
class AsyncCopies {
 public:
  /// Starts a copy of 16 bytes to a shared address, zeros where !valid (the source is then not looked at).
  void Start(uint32_t to, const void* from, bool valid);
  /// Closes the group of the copies since the last Commit; an empty group counts.
  void Commit() { groups_.push_back(static_cast<uint32_t>(copies_.size())); }
  /// Lands the oldest groups until at most `left` are under way.
  void Wait(uint32_t left) {
    while (groups_.size() - first_group_ > left) Land();
  }
  /// Copies that nobody has waited for.
  uint32_t UnderWay() const { return static_cast<uint32_t>(copies_.size()) - landed_; }
  void Clear();

 private:
  struct Copy {
    uint32_t to;  // offset in shared memory
    bool read;    // bytes holds the source
    const void* from;
    unsigned char bytes[16];
  };
  void Land();

  std::vector<Copy> copies_;      // in the order they started
  std::vector<uint32_t> groups_;  // the number of copies before the end of each group
  uint32_t landed_ = 0;           // copies
  uint32_t first_group_ = 0;      // that has not landed
};

}  // namespace heed::emulation
