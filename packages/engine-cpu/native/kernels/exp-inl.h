// Vector exp2, exp, tanh and log for float and double, at most 2 ulp from the true value. Written here because libm's own were
// re-versioned in glibc 2.27 and 2.29 (the library's ceiling is 2.17) and because a call per lane costs ten times as much.
//   2^x = 2^n * 2^f, n = round(x), |f| <= 1/2; e^x = 2^n * e^r, r = x - n ln 2. Both polynomials interpolate at Chebyshev nodes;
//   their relative errors are 5.1e-9 (degree 6, float) and 8.5e-18 (degree 11, double).
// tanh after Cephes (Moshier, 1992), log after fdlibm's e_log.c (Sun Microsystems, 1993): the published coefficients.
#pragma once
#include "../simd/vec.h"

namespace heed::HEED_ISA {
template <class T> struct ExpLimits;
template <> struct ExpLimits<float> {
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLow2 = -160, kHigh2 = 130;  // beyond these 2^x is 0 and inf
  static constexpr float kLowE = -110, kHighE = 90;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // high part has 9 bits: n * high is exact
};
template <> struct ExpLimits<double> {
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLow2 = -1100, kHigh2 = 1030;
  static constexpr double kLowE = -760, kHighE = 712;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
};

/// c[0] + c[1] x + ... by Horner's rule.
template <class T, int N> HEED_INLINE Vec<T> Polynomial(Vec<T> x, const T (&c)[N]) {
  Vec<T> y = Set1(c[N - 1]);
  HEED_UNROLL for (int i = N - 2; i >= 0; i--) y = Fma(y, x, Set1(c[i]));
  return y;
}
HEED_INLINE Vec<float> Exp2Fraction(Vec<float> f) {
  static constexpr float c[] = {1.0f,           6.931471880e-01f, 2.402265076e-01f, 5.550357093e-02f,
                                9.618082539e-03f, 1.339087485e-03f, 1.545317289e-04f};
  return Polynomial<float>(f, c);
}
HEED_INLINE Vec<double> Exp2Fraction(Vec<double> f) {
  static constexpr double c[] = {1.0,
                                 6.93147180559945286227e-01,
                                 2.40226506959100971628e-01,
                                 5.55041086648215969968e-02,
                                 9.61812910760687089784e-03,
                                 1.33335581464169268887e-03,
                                 1.54035304417650875317e-04,
                                 1.52527338298515962212e-05,
                                 1.32154425702246489945e-06,
                                 1.01780624364127647807e-07,
                                 7.07258948839634482131e-09,
                                 4.45496248463321249881e-10};
  return Polynomial<double>(f, c);
}
HEED_INLINE Vec<float> ExpFraction(Vec<float> r) {
  static constexpr float c[] = {1.0f,           1.000000011f,     5.000000013e-01f, 1.666650520e-01f,
                                4.166646493e-02f, 8.369155668e-03f, 1.393364999e-03f};
  return Polynomial<float>(r, c);
}
HEED_INLINE Vec<double> ExpFraction(Vec<double> r) {
  static constexpr double c[] = {1.0,
                                 1.0,
                                 5.00000000000000555112e-01,
                                 1.66666666666666712926e-01,
                                 4.16666666665730656138e-02,
                                 8.33333333332613584998e-03,
                                 1.38888889325147800793e-03,
                                 1.98412698748206265580e-04,
                                 2.48015043137855412385e-05,
                                 2.75572554002064223398e-06,
                                 2.76263710656963543201e-07,
                                 2.51052170047207447321e-08};
  return Polynomial<double>(r, c);
}
/// y * 2^n for y in [1/2, 2] and n = shifted - magic within the limits above; rounds once, into the subnormals too.
template <class T> HEED_INLINE Vec<T> ScaleByPower(Vec<T> y, Vec<T> shifted) {
  using L = ExpLimits<T>;
  const Mask<T> n = BitCast<Mask<T>>(shifted) - BitCast<Mask<T>>(Set1(L::kMagic));
  // Two factors, because 2^n alone leaves the exponent's range: n = -149 is a float, 2^-149 with bias 127 has no normal form.
  const Mask<T> half = n >> 1, rest = n - half;
  return y * BitCast<Vec<T>>((half + L::kBias) << L::kMantissa) * BitCast<Vec<T>>((rest + L::kBias) << L::kMantissa);
}

/// 2^x. -inf gives 0, beyond the range inf, NaN stays NaN.
template <class T> HEED_INLINE Vec<T> Exp2(Vec<T> x) {
  using L = ExpLimits<T>;
  x = Min(Set1(L::kHigh2), Max(Set1(L::kLow2), x));  // this order of operands passes NaN through
  const Vec<T> shifted = x + Set1(L::kMagic);
  return ScaleByPower<T>(Exp2Fraction(x - (shifted - Set1(L::kMagic))), shifted);
}
/// 2^x for x <= 0, in one scaling step: what softmax needs. Below AVX-512, everything under 2^-125 (float; 2^-1021 for double) is
/// 0. NaN stays NaN.
#if defined(__AVX512F__)
// vscalef handles the range itself, 2^-inf included: its table has scalef(NaN, -inf) = 0.
template <class T> HEED_INLINE Vec<T> Exp2NotPositive(Vec<T> x) {
  if constexpr (sizeof(T) == 4) {
    const __m512 n = _mm512_maskz_roundscale_ps(0xffff, (__m512)x, 8);
    return (Vec<T>)_mm512_maskz_scalef_ps(0xffff, (__m512)Exp2Fraction(x - (Vec<T>)n), n);
  } else {
    const __m512d n = _mm512_maskz_roundscale_pd(0xff, (__m512d)x, 8);
    return (Vec<T>)_mm512_maskz_scalef_pd(0xff, (__m512d)Exp2Fraction(x - (Vec<T>)n), n);
  }
}
#else
template <class T> HEED_INLINE Vec<T> Exp2NotPositive(Vec<T> x) {
  using L = ExpLimits<T>;
  const Vec<T> low = Set1(static_cast<T>(2 - L::kBias));
  const Mask<T> zero = x < low;
  const Vec<T> shifted = x + Set1(L::kMagic);
  const Vec<T> y = Exp2Fraction(x - (shifted - Set1(L::kMagic)));
  const Mask<T> n = BitCast<Mask<T>>(shifted) - BitCast<Mask<T>>(Set1(L::kMagic));
  return Select<T>(zero, Vec<T>{}, y * BitCast<Vec<T>>((n + L::kBias) << L::kMantissa));
}
#endif
/// e^x. -inf gives 0, beyond the range inf, NaN stays NaN.
template <class T> HEED_INLINE Vec<T> Exp(Vec<T> x) {
  using L = ExpLimits<T>;
  x = Min(Set1(L::kHighE), Max(Set1(L::kLowE), x));
  const Vec<T> shifted = Fma(x, Set1(static_cast<T>(1.44269504088896340736)), Set1(L::kMagic));
  const Vec<T> n = shifted - Set1(L::kMagic);
  const Vec<T> r = Fma(n, Set1(-L::kLn2Low), Fma(n, Set1(-L::kLn2High), x));
  return ScaleByPower<T>(ExpFraction(r), shifted);
}

/// (tanh(x) - x) / x as a function of z = x^2, for |x| < 0.625.
HEED_INLINE Vec<float> TanhSmall(Vec<float> z) {
  static constexpr float c[] = {-3.33332819422e-1f, 1.33314422036e-1f, -5.37397155531e-2f, 2.06390887954e-2f,
                                -5.70498872745e-3f};
  return z * Polynomial<float>(z, c);
}
HEED_INLINE Vec<double> TanhSmall(Vec<double> z) {
  static constexpr double p[] = {-1.61468768441708447952e3, -9.92877231001918586564e1, -9.64399179425052238628e-1};
  static constexpr double q[] = {4.84406305325125486048e3, 2.23548839060100448583e3, 1.12811678491632931402e2, 1.0};
  return z * Polynomial<double>(z, p) / Polynomial<double>(z, q);
}
/// tanh(x); NaN stays NaN, the sign of zero is kept.
template <class T> HEED_INLINE Vec<T> Tanh(Vec<T> x) {
  const Mask<T> sign = BitCast<Mask<T>>(Set1(static_cast<T>(-0.0)));
  const Vec<T> y = BitCast<Vec<T>>(BitCast<Mask<T>>(x) & ~sign);
  const Vec<T> large = Set1(T{1}) - Set1(T{2}) / (Exp<T>(y + y) + Set1(T{1}));
  const Vec<T> magnitude = Select<T>(y < Set1(static_cast<T>(0.625)), Fma(y, TanhSmall(y * y), y), large);
  return BitCast<Vec<T>>(BitCast<Mask<T>>(magnitude) | (BitCast<Mask<T>>(x) & sign));
}

/// (log(1 + f) - f + f^2 / 2) / s - f^2 / 2 of fdlibm, as a function of z = s^2, s = f / (2 + f).
HEED_INLINE Vec<float> LogSeries(Vec<float> z) {
  static constexpr float c[] = {0.66666662693f, 0.40000972152f, 0.28498786688f, 0.24279078841f};
  return z * Polynomial<float>(z, c);
}
HEED_INLINE Vec<double> LogSeries(Vec<double> z) {
  static constexpr double c[] = {6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
                                 2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
                                 1.479819860511658591e-01};
  return z * Polynomial<double>(z, c);
}
/// ln x. 0 gives -inf, a negative number NaN, inf stays inf, NaN stays NaN; subnormal numbers are exact too.
template <class T> HEED_INLINE Vec<T> Log(Vec<T> x) {
  using L = ExpLimits<T>;
  using Int = typename Lanes<T>::Int;
  const T infinity = static_cast<T>(__builtin_inf());
  const Vec<T> smallest = BitCast<Vec<T>>(Mask<T>{} + (Int{1} << L::kMantissa));
  const Mask<T> subnormal = x < smallest;
  const T up = sizeof(T) == 4 ? static_cast<T>(8388608.0) : static_cast<T>(4503599627370496.0);  // 2^kMantissa
  const Mask<T> bits = BitCast<Mask<T>>(Select<T>(subnormal, x * Set1(up), x));
  // m in [sqrt(1/2), sqrt(2)): subtract the bits of sqrt(1/2) first, so that the exponent steps there.
  const Int root = sizeof(T) == 4 ? static_cast<Int>(0x3f3504f3) : static_cast<Int>(0x3fe6a09e667f3bcd);
  const Mask<T> steps = (bits - root) >> L::kMantissa;
  const Vec<T> m = BitCast<Vec<T>>(bits - (steps << L::kMantissa));
  const Mask<T> exponent = steps - (subnormal & Int{L::kMantissa});
  // int -> T by the same magic number: AVX2 has no conversion of int64.
  const Vec<T> k = BitCast<Vec<T>>(exponent + BitCast<Mask<T>>(Set1(L::kMagic))) - Set1(L::kMagic);
  const Vec<T> f = m - Set1(T{1}), s = f / (f + Set1(T{2})), half = f * f * Set1(static_cast<T>(0.5));
  const Vec<T> tail = Fma(s, half + LogSeries(s * s), k * Set1(L::kLn2Low));
  const Vec<T> y = Fma(k, Set1(L::kLn2High), f - (half - tail));
  const Vec<T> nan = Set1(static_cast<T>(__builtin_nan("")));
  const Vec<T> edge = Select<T>(x == Vec<T>{}, Set1(-infinity), Select<T>(x < Vec<T>{}, nan, x));  // 0, below 0, inf or NaN
  return Select<T>((x > Vec<T>{}) & (x < Set1(infinity)), y, edge);
}
}  // namespace heed::HEED_ISA
