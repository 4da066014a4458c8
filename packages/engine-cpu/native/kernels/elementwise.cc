// Unary and binary elementwise operations: a functor per operation on vectors, one loop for all of them.
#include "../runtime/kernel_table.h"
#include "../runtime/status.h"
#include "block-inl.h"
#include "exp-inl.h"
#include "nest-inl.h"

// libm's pow, bound to its first version: 2.29's only drops the error handling for errno.
extern "C" double pow(double, double) noexcept;
__asm__(".symver pow,pow@GLIBC_2.2.5");

namespace heed::HEED_ISA {
namespace {
template <class T> HEED_INLINE Vec<T> Reciprocal(Vec<T> x) { return Set1(T{1}) / x; }
/// sigmoid(x) from e = exp(-|x|) <= 1: accurate relative to its value for very negative x too.
template <class T> HEED_INLINE Vec<T> Sigmoid(Vec<T> x) {
  const Vec<T> e = Exp<T>(x < Vec<T>{} ? x : -x), one = Set1(T{1});
  return Select<T>(x < Vec<T>{}, e, one) / (one + e);
}
// f(Tag<T>, x) on vectors of T.
constexpr auto kNeg = [](auto, auto x) { return -x; };
constexpr auto kAbs = []<class T>(Tag<T>, Vec<T> x) {
  if constexpr (kIsFloat<T>) return BitCast<Vec<T>>(BitCast<Mask<T>>(x) & ~BitCast<Mask<T>>(Set1(static_cast<T>(-0.0))));
  else return x < 0 ? -x : x;
};
constexpr auto kSquare = [](auto, auto x) { return x * x; };
constexpr auto kExp = []<class T>(Tag<T>, Vec<T> x) { return Exp<T>(x); };
constexpr auto kLog = []<class T>(Tag<T>, Vec<T> x) { return Log<T>(x); };
constexpr auto kSqrt = []<class T>(Tag<T>, Vec<T> x) { return Sqrt<T>(x); };
constexpr auto kRsqrt = []<class T>(Tag<T>, Vec<T> x) { return Reciprocal<T>(Sqrt<T>(x)); };
constexpr auto kReciprocal = []<class T>(Tag<T>, Vec<T> x) { return Reciprocal<T>(x); };
constexpr auto kTanh = []<class T>(Tag<T>, Vec<T> x) { return Tanh<T>(x); };
constexpr auto kSigmoid = []<class T>(Tag<T>, Vec<T> x) { return Sigmoid<T>(x); };
constexpr auto kSilu = []<class T>(Tag<T>, Vec<T> x) { return x * Sigmoid<T>(x); };
struct IsFinite {
  template <class V> auto operator()(auto, V x, V) const { return x - x == 0; }  // inf - inf and NaN - NaN are NaN
};

constexpr auto kAdd = [](auto, auto a, auto b) { return a + b; };
constexpr auto kSub = [](auto, auto a, auto b) { return a - b; };
constexpr auto kMul = [](auto, auto a, auto b) { return a * b; };
constexpr auto kDiv = [](auto, auto a, auto b) { return a / b; };
constexpr auto kMax = [](auto, auto a, auto b) { return (a > b) | (a != a) ? a : b; };  // NaN where either is
constexpr auto kMin = [](auto, auto a, auto b) { return (a < b) | (a != a) ? a : b; };
constexpr auto kPow = []<class T>(Tag<T>, Vec<T> a, Vec<T> b) {
  Vec<T> y;
  for (int i = 0; i < Width<T>; i++) y[i] = static_cast<T>(pow(a[i], b[i]));
  return y;
};
constexpr auto kEqual = [](auto, auto a, auto b) { return a == b; };
constexpr auto kLess = [](auto, auto a, auto b) { return a < b; };
constexpr auto kLessEqual = [](auto, auto a, auto b) { return a <= b; };

/// Stores n lanes masks (-1 or 0) as bool.
template <class Int> HEED_INLINE void DeliverBool(char* p, int64_t step, int64_t n, const Int* x) {
  if (step == 1)
    for (int64_t i = 0; i < n; i++) p[i] = static_cast<char>(x[i] & 1);
  else
    for (int64_t i = 0; i < n; i++) p[i * step] = static_cast<char>(x[i] & 1);
}
/// n bools as lane masks.
template <class Int> HEED_INLINE const Int* FetchMask(const char* p, int64_t step, int64_t n, Int* buffer) {
  if (step == 1)
    for (int64_t i = 0; i < n; i++) buffer[i] = -static_cast<Int>(p[i] != 0);
  else
    for (int64_t i = 0; i < n; i++) buffer[i] = -static_cast<Int>(p[i * step] != 0);
  return buffer;
}
// Operations on contiguous blocks in the arithmetic type: compiled per operation and arithmetic type. The loops below, which
// convert, gather and cut rows into blocks, are compiled per storage type; one pointer call a block lies between the two.
template <class A> using Block1 = void (*)(const A* x, A* out, int64_t n);
template <class A> using Block2 = void (*)(const A* a, const A* b, A* out, int64_t n);
template <class A> using BlockCompare = void (*)(const A* a, const A* b, typename Lanes<A>::Int* out, int64_t n);

template <class A, class Op> void MapBlock(const A* x, A* out, int64_t n) {
  for (int64_t i = 0; i < n; i += Width<A>) Store<A>(out + i, Op{}(Tag<A>{}, Load(x + i)));
}
template <class A, class Op> void ZipBlock(const A* a, const A* b, A* out, int64_t n) {
  for (int64_t i = 0; i < n; i += Width<A>) Store<A>(out + i, Op{}(Tag<A>{}, Load(a + i), Load(b + i)));
}
template <class A, class Op> void CompareBlock(const A* a, const A* b, typename Lanes<A>::Int* out, int64_t n) {
  for (int64_t i = 0; i < n; i += Width<A>) Store<typename Lanes<A>::Int>(out + i, Op{}(Tag<A>{}, Load(a + i), Load(b + i)));
}

template <class T> HEED_NOINLINE int Map(const heed_unary& p, Block1<Acc<T>> block) {
  ForEachRow(MakeNest({&p.out, &p.x}), [block](char* const* data, const int64_t* step, int64_t count) {
    Buffer<Acc<T>> x_buffer, out_buffer;
    ForEachBlock(count, [&](int64_t start, int64_t n) {
      Acc<T>* out = Target<T>(data[0] + start * step[0], step[0], n, out_buffer.at);
      block(Fetch<T>(data[1] + start * step[1], step[1], n, x_buffer.at), out, n);
      Deliver<T>(data[0] + start * step[0], step[0], n, out);
    });
  });
  return HEED_OK;
}
template <class T> HEED_NOINLINE int Zip(const heed_binary& p, Block2<Acc<T>> block) {
  ForEachRow(MakeNest({&p.out, &p.a, &p.b}), [block](char* const* data, const int64_t* step, int64_t count) {
    Buffer<Acc<T>> a_buffer, b_buffer, out_buffer;
    ForEachBlock(count, [&](int64_t start, int64_t n) {
      const Acc<T>* a = Fetch<T>(data[1] + start * step[1], step[1], n, a_buffer.at);
      const Acc<T>* b = Fetch<T>(data[2] + start * step[2], step[2], n, b_buffer.at);
      Acc<T>* out = Target<T>(data[0] + start * step[0], step[0], n, out_buffer.at);
      block(a, b, out, n);
      Deliver<T>(data[0] + start * step[0], step[0], n, out);
    });
  });
  return HEED_OK;
}
template <class T> HEED_NOINLINE int ZipCompare(const heed_binary& p, BlockCompare<Acc<T>> block) {
  ForEachRow(MakeNest({&p.out, &p.a, &p.b}), [block](char* const* data, const int64_t* step, int64_t count) {
    Buffer<Acc<T>> a_buffer, b_buffer;
    Buffer<typename Lanes<Acc<T>>::Int> flags;
    ForEachBlock(count, [&](int64_t start, int64_t n) {
      const Acc<T>* a = Fetch<T>(data[1] + start * step[1], step[1], n, a_buffer.at);
      block(a, Fetch<T>(data[2] + start * step[2], step[2], n, b_buffer.at), flags.at, n);
      DeliverBool(data[0] + start * step[0], step[0], n, flags.at);
    });
  });
  return HEED_OK;
}
template <class T> HEED_NOINLINE int MapIsFinite(const heed_unary& p) {
  using A = Acc<T>;
  ForEachRow(MakeNest({&p.out, &p.x}), [](char* const* data, const int64_t* step, int64_t count) {
    Buffer<A> x_buffer;
    Buffer<typename Lanes<A>::Int> flags;
    ForEachBlock(count, [&](int64_t start, int64_t n) {
      const A* x = Fetch<T>(data[1] + start * step[1], step[1], n, x_buffer.at);
      CompareBlock<A, IsFinite>(x, x, flags.at, n);
      DeliverBool(data[0] + start * step[0], step[0], n, flags.at);
    });
  });
  return HEED_OK;
}
/// out = b ? a : otherwise, by selection.
template <class T> HEED_NOINLINE int ZipMask(const heed_binary& p, Acc<T> otherwise) {
  using A = Acc<T>;
  using Int = typename Lanes<A>::Int;
  ForEachRow(MakeNest({&p.out, &p.a, &p.b}), [otherwise](char* const* data, const int64_t* step, int64_t count) {
    Buffer<A> a_buffer, out_buffer;
    Buffer<Int> mask_buffer;
    const Vec<A> no = Set1(otherwise);
    ForEachBlock(count, [&](int64_t start, int64_t n) {
      const A* a = Fetch<T>(data[1] + start * step[1], step[1], n, a_buffer.at);
      const Int* mask = FetchMask<Int>(data[2] + start * step[2], step[2], n, mask_buffer.at);
      A* out = Target<T>(data[0] + start * step[0], step[0], n, out_buffer.at);
      for (int64_t i = 0; i < n; i += Width<A>) Store<A>(out + i, Select<A>(Load<Int>(mask + i), Load(a + i), no));
      Deliver<T>(data[0] + start * step[0], step[0], n, out);
    });
  });
  return HEED_OK;
}
/// f on bools (bytes).
template <class F> int MapBool(const heed_unary& p, const F& f) {
  ForEachRow(MakeNest({&p.out, &p.x}), [&](char* const* data, const int64_t* step, int64_t n) {
    for (int64_t i = 0; i < n; i++) data[0][i * step[0]] = f(data[1][i * step[1]] != 0);
  });
  return HEED_OK;
}
template <class F> int ZipBool(const heed_binary& p, const F& f) {
  ForEachRow(MakeNest({&p.out, &p.a, &p.b}), [&](char* const* data, const int64_t* step, int64_t n) {
    for (int64_t i = 0; i < n; i++) data[0][i * step[0]] = f(data[1][i * step[1]] != 0, data[2][i * step[2]] != 0);
  });
  return HEED_OK;
}
constexpr int kRefused = HEED_UNSUPPORTED;
int Refuse(const char* kind, int op, int32_t dtype) {
  return Fail(HEED_UNSUPPORTED, "[%s] operation %d is not defined for dtype %d", kind, op, dtype);
}
}  // namespace

int unary(const heed_unary& p) {
  const auto number = [&]<class Op>(Op) {
    return DispatchNumber(p.x.dtype, kRefused, [&]<class T>(Tag<T>) { return Map<T>(p, MapBlock<Acc<T>, Op>); });
  };
  const auto real = [&]<class Op>(Op) {
    return DispatchFloat(p.x.dtype, kRefused, [&]<class T>(Tag<T>) { return Map<T>(p, MapBlock<Acc<T>, Op>); });
  };
  const auto run = [&]() -> int {
    switch (p.op) {
      case HEED_NEG: return number(kNeg);
      case HEED_ABS: return number(kAbs);
      case HEED_EXP: return real(kExp);
      case HEED_LOG: return real(kLog);
      case HEED_SQRT: return real(kSqrt);
      case HEED_RSQRT: return real(kRsqrt);
      case HEED_SQUARE: return number(kSquare);
      case HEED_RECIPROCAL: return real(kReciprocal);
      case HEED_TANH: return real(kTanh);
      case HEED_SIGMOID: return real(kSigmoid);
      case HEED_SILU: return real(kSilu);
      case HEED_IS_FINITE: return DispatchFloat(p.x.dtype, kRefused, [&]<class T>(Tag<T>) { return MapIsFinite<T>(p); });
      case HEED_NOT: return p.x.dtype == HEED_BOOL ? MapBool(p, [](bool x) { return !x; }) : kRefused;
    }
    return kRefused;
  };
  const int status = run();
  return status == kRefused ? Refuse("unary", p.op, p.x.dtype) : status;
}

int binary(const heed_binary& p) {
  const auto number = [&]<class Op>(Op) {
    return DispatchNumber(p.a.dtype, kRefused, [&]<class T>(Tag<T>) { return Zip<T>(p, ZipBlock<Acc<T>, Op>); });
  };
  const auto real = [&]<class Op>(Op) {
    return DispatchFloat(p.a.dtype, kRefused, [&]<class T>(Tag<T>) { return Zip<T>(p, ZipBlock<Acc<T>, Op>); });
  };
  const auto compare = [&]<class Op>(Op) {
    return DispatchNumber(p.a.dtype, kRefused, [&]<class T>(Tag<T>) { return ZipCompare<T>(p, CompareBlock<Acc<T>, Op>); });
  };
  const auto mask = [&](double otherwise) {
    return DispatchFloat(p.a.dtype, kRefused, [&]<class T>(Tag<T>) { return ZipMask<T>(p, static_cast<Acc<T>>(otherwise)); });
  };
  const bool logical = p.a.dtype == HEED_BOOL;
  const auto run = [&]() -> int {
    switch (p.op) {
      case HEED_ADD: return number(kAdd);
      case HEED_SUB: return number(kSub);
      case HEED_MUL: return number(kMul);
      case HEED_DIV: return real(kDiv);
      case HEED_MAX: return number(kMax);
      case HEED_MIN: return number(kMin);
      case HEED_POW: return real(kPow);
      case HEED_EQUAL: return compare(kEqual);
      case HEED_LESS: return compare(kLess);
      case HEED_LESS_EQUAL: return compare(kLessEqual);
      case HEED_AND: return logical ? ZipBool(p, [](bool a, bool b) { return a && b; }) : kRefused;
      case HEED_OR: return logical ? ZipBool(p, [](bool a, bool b) { return a || b; }) : kRefused;
      case HEED_MASK_ZERO: return mask(0);
      case HEED_MASK_NEG_INF: return mask(-__builtin_inf());
    }
    return kRefused;
  };
  const int status = run();
  return status == kRefused ? Refuse("binary", p.op, p.a.dtype) : status;
}
}  // namespace heed::HEED_ISA
