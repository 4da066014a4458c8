// Blocks of a strided row in the arithmetic type. Kernels compute on contiguous Acc<T> arrays of at most kBlock elements; where
// a row already is one (float, unit stride, whole vectors) it is used in place, else it is converted or gathered into a buffer
// that stays in L1. Computation runs over whole vectors: what a buffer holds beyond n is computed too and never stored.
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
template <class T> HEED_INLINE T* Element(void* p, int64_t bytes) {
  return reinterpret_cast<T*>(static_cast<char*>(p) + bytes);
}

/// Whether n elements `step` bytes apart can be computed on where they are.
template <class T> HEED_INLINE bool InPlace(int64_t step, int64_t n) {
  return kSame<T, Acc<T>> && step == sizeof(T) && n % Width<Acc<T>> == 0;
}
/// n elements of T, `step` bytes apart, in the arithmetic type and contiguous: in place, or in the buffer.
template <class T> HEED_NOINLINE const Acc<T>* Fetch(const void* p, int64_t step, int64_t n, Acc<T>* buffer) {
  constexpr int64_t W = Width<Acc<T>>;
  if (InPlace<T>(step, n)) return static_cast<const Acc<T>*>(p);
  int64_t i = 0;
  if (step == sizeof(T)) {
    for (; i + W <= n; i += W) Store<Acc<T>>(buffer + i, LoadAs(static_cast<const T*>(p) + i));
  } else if (step == 0) {
    const Vec<Acc<T>> x = Set1(ToFloat(*static_cast<const T*>(p)));
    for (; i < n; i += W) Store<Acc<T>>(buffer + i, x);
  }
  for (; i < n; i++) {
    buffer[i] = ToFloat(*Element<T>(p, i * step));
    HEED_SCALAR;
  }
  return buffer;
}
/// Where to compute n results for T elements `step` bytes apart: in place, or in the buffer, which Deliver then stores.
template <class T> HEED_INLINE Acc<T>* Target(void* p, int64_t step, int64_t n, Acc<T>* buffer) {
  return InPlace<T>(step, n) ? static_cast<Acc<T>*>(p) : buffer;
}
/// Rounds n results once to T and stores them `step` bytes apart; nothing to do where they were computed in place.
template <class T> HEED_NOINLINE void Deliver(void* p, int64_t step, int64_t n, const Acc<T>* x) {
  constexpr int64_t W = Width<Acc<T>>;
  if (static_cast<const void*>(x) == p) return;
  int64_t i = 0;
  if (step == sizeof(T))
    for (; i + W <= n; i += W) StoreAs<T>(static_cast<T*>(p) + i, Load(x + i));
  for (; i < n; i++) {
    *Element<T>(p, i * step) = FromFloat<T>(x[i]);
    HEED_SCALAR;
  }
}
/// f(start, length) over the blocks of a row of n.
template <class F> HEED_INLINE void ForEachBlock(int64_t n, const F& f) {
  for (int64_t i = 0; i < n; i += kBlock) f(i, n - i < kBlock ? n - i : kBlock);
}
}  // namespace heed::HEED_ISA
