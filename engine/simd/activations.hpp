#pragma once

#include "engine/simd/elementwise.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

template <class T>
GRADGRAM_INLINE Batch<T> error_function(const Batch<T>& x) {
  if constexpr (sizeof(T) == 4) {
    return xsimd::erf(x);
  } else {
    alignas(64) double lanes[kLanes<double>];
    store(lanes, x);
    for (double& lane : lanes) lane = ::erf(lane);
    return load(lanes);
  }
}

template <class T>
GRADGRAM_INLINE Batch<T> complementary_error_function(const Batch<T>& x) {
  if constexpr (sizeof(T) == 4) {
    return xsimd::erfc(x);
  } else {
    alignas(64) double lanes[kLanes<double>];
    store(lanes, x);
    for (double& lane : lanes) lane = ::erfc(lane);
    return load(lanes);
  }
}

/// exp(-x^2 / 2 * scale2) without the rounding error of the square, which the exponential would multiply by
/// x^2.
template <class T>
GRADGRAM_INLINE Batch<T> gaussian(const Batch<T>& x, T scale) {
  const Batch<T> square = x * x;
#if defined(__FMA__)
  const Batch<T> error = multiply_add(x, x, -square);
#else
  const Batch<T> spread = x * broadcast(T(sizeof(T) == 4 ? 4097.0 : 134217729.0));
  const Batch<T> high = spread - (spread - x);
  const Batch<T> low = x - high;
  const Batch<T> error = ((high * high - square) + T(2) * high * low) + low * low;
#endif
  const Batch<T> value = xsimd::exp(-scale * square);
  // Infinite x: the error is NaN, the value is zero.
  return xsimd::select(value == broadcast(T(0)), value, value - value * (scale * error));
}

template <class T>
GRADGRAM_INLINE Batch<T> sigmoid(const Batch<T>& x) {
  return T(1) / (T(1) + xsimd::exp(-x));
}

/// max(x, 0) that lets NaN through and turns -0 into 0.
template <class T>
GRADGRAM_INLINE Batch<T> positive_part(const Batch<T>& x) {
  return xsimd::select(x <= broadcast(T(0)), broadcast(T(0)), x);
}

/// Phi(x), the distribution function of the normal law, with full relative precision in the left tail.
template <class T>
GRADGRAM_INLINE Batch<T> normal_distribution(const Batch<T>& x) {
  return T(0.5) * complementary_error_function(x * T(-0.70710678118654752440));
}

template <class T>
void activate(Activation kind, T slope, const T* x, T* y, std::size_t n) noexcept {
  using B = Batch<T>;
  switch (kind) {
    case Activation::Relu:
      return map(
          y, n, [](const B& v) { return positive_part(v); }, x);
    case Activation::LeakyRelu:
      return map(
          y, n, [=](const B& v) { return B(xsimd::select(v <= broadcast(T(0)), v * slope, v)); }, x);
    case Activation::Tanh:
      return map(
          y, n, [](const B& v) { return xsimd::tanh(v); }, x);
    case Activation::Sigmoid:
      return map(
          y, n, [](const B& v) { return sigmoid(v); }, x);
    case Activation::Erf:
      return map(
          y, n, [](const B& v) { return error_function(v); }, x);
    case Activation::Gelu:
      // -inf * 0 would be NaN; the limit is 0.
      return map(
          y, n,
          [](const B& v) {
            const B phi = normal_distribution(v);
            return B(xsimd::select(phi == broadcast(T(0)), phi, v * phi));
          },
          x);
    case Activation::Softplus:
      return map(
          y, n, [](const B& v) { return positive_part(v) + xsimd::log1p(xsimd::exp(-xsimd::abs(v))); }, x);
    case Activation::Sin:
      return map(
          y, n, [](const B& v) { return xsimd::sin(v); }, x);
  }
}

template <class T>
void activation_chain(Activation kind, T slope, const T* x, const T* y, const T* t, T* out,
                      std::size_t n) noexcept {
  using B = Batch<T>;
  const auto step = [](const B& v, const B& below) {
    const B derivative = xsimd::select(v <= broadcast(T(0)), below, broadcast(T(1)));
    return B(xsimd::select(xsimd::isnan(v), v, derivative));
  };
  switch (kind) {
    case Activation::Relu:
      return map(
          out, n, [&](const B& v, const B& w) { return w * step(v, broadcast(T(0))); }, x, t);
    case Activation::LeakyRelu:
      return map(
          out, n, [&](const B& v, const B& w) { return w * step(v, broadcast(slope)); }, x, t);
    case Activation::Tanh:
      return map(
          out, n, [](const B& value, const B& w) { return w * ((T(1) - value) * (T(1) + value)); }, y, t);
    case Activation::Sigmoid:
      return map(
          out, n, [](const B& value, const B& w) { return w * (value * (T(1) - value)); }, y, t);
    case Activation::Erf:
      return map(
          out, n, [](const B& v, const B& w) { return w * (T(1.12837916709551257390) * gaussian(v, T(1))); },
          x, t);
    case Activation::Gelu:
      return map(
          out, n,
          [](const B& v, const B& w) {
            const B density = T(0.39894228040143267794) * gaussian(v, T(0.5));
            const B weighted = xsimd::select(density == broadcast(T(0)), density, v * density);
            return w * (normal_distribution(v) + weighted);
          },
          x, t);
    case Activation::Softplus:
      return map(
          out, n, [](const B& v, const B& w) { return w * sigmoid(v); }, x, t);
    case Activation::Sin:
      return map(
          out, n, [](const B& v, const B& w) { return w * xsimd::cos(v); }, x, t);
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
