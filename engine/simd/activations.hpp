#pragma once

#include "engine/simd/elementwise.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/simd/normal_law.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

template <class T>
GRADGRAM_INLINE Batch<T> sigmoid(const Batch<T>& x) {
  return T(1) / (T(1) + xsimd::exp(-x));
}

/// max(x, 0) that lets NaN through and turns -0 into 0.
template <class T>
GRADGRAM_INLINE Batch<T> positive_part(const Batch<T>& x) {
  return xsimd::select(x <= broadcast(T(0)), broadcast(T(0)), x);
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
            const B phi = normal_distribution(v, gaussian(v, T(0.5)));
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
            const B exponential = gaussian(v, T(0.5));
            // Infinity times zero would be NaN; the limit is 0.
            const B weighted = xsimd::select(exponential == broadcast(T(0)), exponential, v * exponential);
            return w * multiply_add(weighted, broadcast(T(0.39894228040143267794)),
                                    normal_distribution(v, exponential));
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
