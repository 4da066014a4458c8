#include "memory.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <mutex>

namespace heed::emulation {
namespace {

// Bytes of poison before and after each allocation: 0xff, so that what is read past an end is NaN as well.
constexpr size_t kEnd = 256;

// The first of kEnd bytes that is not poison, or -1.
int Written(const unsigned char* end) {
  static const std::vector<unsigned char> poison(kEnd, 0xff);
  if (memcmp(end, poison.data(), kEnd) == 0) return -1;
  int i = 0;
  while (end[i] == 0xff) i++;
  return i;
}

std::string Describe(const unsigned char* data, size_t bytes) {
  const int after = Written(data + bytes), before = Written(data - kEnd);
  const std::string what = "the allocation of " + std::to_string(bytes) + " bytes";
  if (after >= 0) return what + " was written past its end, at byte " + std::to_string(bytes + after);
  if (before >= 0) return what + " was written before its start, at byte -" + std::to_string(kEnd - before);
  return {};
}

}  // namespace

Memory::~Memory() {
  for (const Allocation& a : allocations_) free(a.data - kEnd);
}

const Memory::Allocation* Memory::Below(const void* p) const {
  auto after = std::upper_bound(allocations_.begin(), allocations_.end(), p,
                                [](const void* q, const Allocation& a) { return q < a.data; });
  return after == allocations_.begin() ? nullptr : &*(after - 1);
}

void* Memory::Allocate(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  const size_t total = (bytes + 2 * kEnd + kEnd - 1) / kEnd * kEnd;
  std::unique_lock lock(mutex);
  try {
    allocations_.reserve(allocations_.size() + 1);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  unsigned char* start = static_cast<unsigned char*>(aligned_alloc(kEnd, total));
  if (!start) return nullptr;
  memset(start, 0xff, total);
  const Allocation made = {start + kEnd, bytes};
  allocations_.insert(std::upper_bound(allocations_.begin(), allocations_.end(), made,
                                       [](const Allocation& a, const Allocation& b) { return a.data < b.data; }),
                      made);
  in_use_ += bytes;
  return made.data;
}

std::string Memory::Free(void* p) {
  std::unique_lock lock(mutex);
  const Allocation* found = Below(p);
  if (!found || found->data != p) return "freed an address that is not an allocation's";
  const std::string words = Describe(found->data, found->bytes);
  in_use_ -= found->bytes;
  free(found->data - kEnd);
  allocations_.erase(allocations_.begin() + (found - allocations_.data()));
  return words;
}

std::string Memory::CheckEnds() const {
  std::shared_lock lock(mutex);
  for (const Allocation& a : allocations_) {
    std::string words = Describe(a.data, a.bytes);
    if (!words.empty()) return words;
  }
  return {};
}

bool Memory::Holds(const void* p, size_t bytes) const {
  const Allocation* found = Below(p);
  if (!found) return false;
  const size_t offset = static_cast<const unsigned char*>(p) - found->data;
  return offset <= found->bytes && bytes <= found->bytes - offset;
}

std::string Memory::Near(const void* p) const {
  const Allocation* found = Below(p);
  if (!found) return "it lies before all of them";
  return "it is byte " + std::to_string(static_cast<const unsigned char*>(p) - found->data) + " from the start of one of " +
         std::to_string(found->bytes);
}

size_t Memory::BytesInUse() const {
  std::shared_lock lock(mutex);
  return in_use_;
}

}  // namespace heed::emulation
