// int32 and int64 as element types of the same templates that storage.h serves for floats.
#pragma once
#include "storage.h"

namespace heed::HEED_ISA {
template <> struct Lanes<int32_t> {
  typedef int32_t V __attribute__((vector_size(kVecBytes)));
  typedef int32_t U __attribute__((vector_size(kVecBytes), aligned(4), may_alias));
  using I = V;
  using Int = int32_t;
  static constexpr int kCount = kVecBytes / 4;
};
template <> struct Lanes<int64_t> {
  typedef int64_t V __attribute__((vector_size(kVecBytes)));
  typedef int64_t U __attribute__((vector_size(kVecBytes), aligned(8), may_alias));
  using I = V;
  using Int = int64_t;
  static constexpr int kCount = kVecBytes / 8;
};
HEED_INLINE int32_t ToFloat(int32_t x) { return x; }
HEED_INLINE int64_t ToFloat(int64_t x) { return x; }
template <> HEED_ALWAYS_INLINE int32_t FromFloat<int32_t>(int32_t x) { return x; }
template <> HEED_ALWAYS_INLINE int64_t FromFloat<int64_t>(int64_t x) { return x; }
template <> HEED_ALWAYS_INLINE Vec<int32_t> LoadAs<int32_t>(const int32_t* p) { return Load(p); }
template <> HEED_ALWAYS_INLINE Vec<int64_t> LoadAs<int64_t>(const int64_t* p) { return Load(p); }
template <> HEED_ALWAYS_INLINE void StoreAs<int32_t>(int32_t* p, Vec<int32_t> x) { Store(p, x); }
template <> HEED_ALWAYS_INLINE void StoreAs<int64_t>(int64_t* p, Vec<int64_t> x) { Store(p, x); }

template <class T> constexpr bool kIsFloat = static_cast<Acc<T>>(0.5) != static_cast<Acc<T>>(0);
template <class A, class B> constexpr bool kSame = false;
template <class A> constexpr bool kSame<A, A> = true;

/// DispatchFloat, int32 and int64 included.
template <class F> HEED_INLINE int DispatchNumber(int32_t dtype, int otherwise, const F& f) {
  if (dtype == 4) return f(Tag<int32_t>{});
  if (dtype == 5) return f(Tag<int64_t>{});
  return DispatchFloat(dtype, otherwise, f);
}
}  // namespace heed::HEED_ISA
