#pragma once

#include "engine/simd/vector.hpp"

/// exp(-x^2), the error function and the distribution function of the normal law with full relative
/// precision, in the left tail too: a product of an exponential, a ratio and a polynomial, none of which
/// cancels.
namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// (1 + a/2) Phi(-a) exp(a^2/2) as a polynomial in (a - 4)/(a + 4), highest power first: the substitution of
/// Shepherd and Laframboise (Math. Comp. 36, 1981), interpolated at Chebyshev points in 113-bit arithmetic;
/// off by 4.6e-9 (f32) and 2.4e-17 (f64), relative.
template <class T>
inline constexpr T kTail[] = {};
template <>
inline constexpr float kTail<float>[] = {
    8.02639261e-06F, -1.96264882e-05F, -6.49590947e-05F, 0.000243873699F, 0.000174099987F, -0.00224250671F,
    0.0047225724F,   -0.000667633489F, -0.0215535704F,   0.069189541F,    -0.133550599F,   0.283231914F};
template <>
inline constexpr double kTail<double>[] = {
    1.1716455499169556e-10, -2.4412112375640356e-10, -1.499548147572303e-09, 1.719422241416517e-09,
    1.0336940110555873e-08, -2.984219696124562e-09,  -5.265326080436622e-08, -2.7068504280776552e-08,
    2.303732155532534e-07,  3.0639427355610426e-07,  -9.764539111857538e-07, -2.13140680252401e-06,
    4.661912728157346e-06,  1.2941006388794172e-05,  -2.960247690796271e-05, -6.999261738402933e-05,
    0.00025385642573868075, 0.0001765953825006996,   -0.0022474082586981204, 0.004722000998374893,
    -0.0006665166608533882, -0.021553521642079618,   0.06918944503184392,    -0.13355059943749076,
    0.2832319239059068};

/// erf(x) / x as a polynomial in x^2 on [0, 1], found in the same way; off by 1.4e-9 and 8.2e-18.
template <class T>
inline constexpr T kErf[] = {};
template <>
inline constexpr float kErf<float>[] = {7.87587487e-05F, -0.00080168643F, 0.00518908724F, -0.0268542115F,
                                        0.112835944F,    -0.37612626F,    1.12837911F};
template <>
inline constexpr double kErf<double>[] = {
    -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07, 1.6447424703317362e-06,
    -1.492473690741966e-05, 0.00012055294904839707, -0.0008548325975389692,  0.0052239776071164225,
    -0.02686617064323777,   0.11283791670945006,    -0.37612638903183543,    1.1283791670955126};

template <class T, std::size_t Count>
GRADGRAM_INLINE Batch<T> polynomial(const T (&coefficients)[Count], const Batch<T>& at) {
  Batch<T> value = broadcast(coefficients[0]);
  Unroll<1, Count>::run([&](std::size_t i) __attribute__((always_inline)) {
    value = multiply_add(value, at, broadcast(coefficients[i]));
  });
  return value;
}

/// exp(-scale x^2) without the rounding error of the square, which the exponential would multiply by x^2.
template <class T>
GRADGRAM_INLINE Batch<T> gaussian(const Batch<T>& x, T scale) {
  const Batch<T> square = x * x;
#if defined(__FMA__)
  const Batch<T> error = multiply_add(x, x, -square);
#else
  const Batch<T> spread = x * broadcast(T(sizeof(T) == 4 ? 4097.0 : 134217729.0));  // Dekker's splitting
  const Batch<T> high = spread - (spread - x);
  const Batch<T> low = x - high;
  const Batch<T> error = ((high * high - square) + T(2) * high * low) + low * low;
#endif
  const Batch<T> value = xsimd::exp(-scale * square);
  // Where the value is zero, x may be too large for the error to be a number.
  return xsimd::select(value == broadcast(T(0)), value, value - value * (scale * error));
}

/// Phi(-a) exp(a^2 / 2) for a >= 0.
template <class T>
GRADGRAM_INLINE Batch<T> tail_factor(const Batch<T>& distance) {
  // Beyond 64 the exponential is zero in either precision; infinity would make a NaN here.
  const Batch<T> a = xsimd::min(distance, broadcast(T(64)));
  const Batch<T> at = (a - T(4)) / (a + T(4));
  return polynomial(kTail<T>, at) / multiply_add(a, broadcast(T(0.5)), broadcast(T(1)));
}

/// Phi(x), given exp(-x^2 / 2).
template <class T>
GRADGRAM_INLINE Batch<T> normal_distribution(const Batch<T>& x, const Batch<T>& exponential) {
  const Batch<T> tail = tail_factor(xsimd::abs(x)) * exponential;
  return xsimd::select(x < broadcast(T(0)), tail, T(1) - tail);
}

template <class T>
GRADGRAM_INLINE Batch<T> error_function(const Batch<T>& x) {
  const Batch<T> distance = xsimd::abs(x);
  const Batch<T> near = x * polynomial(kErf<T>, Batch<T>(x * x));
  const Batch<T> tail = tail_factor(Batch<T>(distance * T(1.41421356237309504880))) * gaussian(x, T(1));
  const Batch<T> far = T(1) - T(2) * tail;
  return xsimd::select(distance < broadcast(T(1)), near, xsimd::select(x < broadcast(T(0)), -far, far));
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
