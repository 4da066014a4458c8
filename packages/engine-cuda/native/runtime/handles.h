// Handles that the caller holds: numbers that are never given twice, so that a stale one is found out instead of read.
#pragma once
#include <stdint.h>

#include <memory>
#include <unordered_map>
#include <vector>

namespace heed {
/// The next number; all kinds share one sequence, so a handle of another kind is unknown too.
uint64_t NextHandle();

template <class T>
class Handles {
 public:
  uint64_t Add(std::unique_ptr<T> object) {
    const uint64_t handle = NextHandle();
    objects_[handle] = std::move(object);
    return handle;
  }
  /// The object, or null.
  T* Find(uint64_t handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second.get();
  }
  T* Find(const void* handle) const { return Find(reinterpret_cast<uint64_t>(handle)); }
  /// Takes it out; null when there is none.
  std::unique_ptr<T> Remove(uint64_t handle) {
    const auto found = objects_.find(handle);
    if (found == objects_.end()) return nullptr;
    std::unique_ptr<T> object = std::move(found->second);
    objects_.erase(found);
    return object;
  }
  std::unique_ptr<T> Remove(const void* handle) { return Remove(reinterpret_cast<uint64_t>(handle)); }
  size_t Count() const { return objects_.size(); }
  /// Handles of the objects for which `which` holds.
  template <class Which>
  std::vector<uint64_t> Select(const Which& which) const {
    std::vector<uint64_t> found;
    for (const auto& [handle, object] : objects_)
      if (which(*object)) found.push_back(handle);
    return found;
  }

 private:
  std::unordered_map<uint64_t, std::unique_ptr<T>> objects_;
};
}  // namespace heed
