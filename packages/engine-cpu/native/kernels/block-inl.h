// Blocks of a strided row in the arithmetic type. Kernels compute on contiguous Acc<T> arrays of at most kBlock elements; where a
// row already is one (float, unit stride) it is used in place, else it is converted or gathered into a buffer that stays in L1.
#pragma once
#include "../simd/integer.h"

namespace heed::HEED_ISA {
constexpr int64_t kBlock = 512;
template <class T> struct Buffer {
  T at[kBlock] __attribute__((aligned(kVecBytes)));
};

template <class T> HEED_INLINE const T* Element(const void* p, int64_t bytes) {
  return reinterpret_cast<const T*>(static_cast<const char*>(p) + bytes);
}
template <class T> HEED_INLINE T* Element(void* p, int64_t bytes) { return reinterpret_cast<T*>(static_cast<char*>(p) + bytes); }

/// n elements of T, `step` bytes apart, in the arithmetic type and contiguous: in place, or in the buffer.
template <class T> HEED_INLINE const Acc<T>* Fetch(const void* p, int64_t step, int64_t n, Acc<T>* buffer) {
  if (step == sizeof(T)) {
    if constexpr (kSame<T, Acc<T>>) {
      return static_cast<const T*>(p);
    } else {
      const T* from = static_cast<const T*>(p);
      for (int64_t i = 0; i < n; i += Width<Acc<T>>) StoreFirst<Acc<T>>(buffer + i, LoadFirstAs(from + i, n - i), n - i);
      return buffer;
    }
  }
  if (step == 0) {
    const Acc<T> x = ToFloat(*static_cast<const T*>(p));
    for (int64_t i = 0; i < n; i++) buffer[i] = x;
  } else {
    for (int64_t i = 0; i < n; i++) buffer[i] = ToFloat(*Element<T>(p, i * step));
  }
  return buffer;
}
/// Where to compute n results for T elements `step` bytes apart: in place, or in the buffer, which Deliver then stores.
template <class T> HEED_INLINE Acc<T>* Target(void* p, int64_t step, Acc<T>* buffer) {
  if constexpr (kSame<T, Acc<T>>) return step == sizeof(T) ? static_cast<T*>(p) : buffer;
  return buffer;
}
/// Rounds n results once to T and stores them `step` bytes apart; nothing to do where they were computed in place.
template <class T> HEED_INLINE void Deliver(void* p, int64_t step, int64_t n, const Acc<T>* x) {
  if (static_cast<const void*>(x) == p) return;
  if (step == sizeof(T)) {
    T* to = static_cast<T*>(p);
    for (int64_t i = 0; i < n; i += Width<Acc<T>>) StoreFirstAs<T>(to + i, LoadFirst(x + i, n - i), n - i);
  } else {
    for (int64_t i = 0; i < n; i++) *Element<T>(p, i * step) = FromFloat<T>(x[i]);
  }
}
}  // namespace heed::HEED_ISA
