#pragma once

#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// out[i] = f(in[i]...) a register at a time; the last elements go through the same f, so that a value does
/// not depend on where it stands.
template <class T, class Function, class... Inputs>
GRADGRAM_INLINE void map(T* out, std::size_t n, const Function& function, const Inputs*... inputs) {
  constexpr std::size_t kLane = kLanes<T>;
  std::size_t i = 0;
  for (; i + kLane <= n; i += kLane) store(out + i, Batch<T>(function(load(inputs + i)...)));
  if (i < n) store_first(out + i, Batch<T>(function(load_first(inputs + i, n - i)...)), n - i);
}

template <class T>
void add(const T* a, const T* b, T* out, std::size_t n) noexcept {
  map(
      out, n, [](const Batch<T>& left, const Batch<T>& right) { return left + right; }, a, b);
}

template <class T>
void axpy(T alpha, const T* x, T* y, std::size_t n) noexcept {
  const Batch<T> factor = broadcast(alpha);
  map(
      y, n, [&](const Batch<T>& a, const Batch<T>& b) { return multiply_add(factor, a, b); }, x,
      static_cast<const T*>(y));
}

/// Eight registers of partial sums hide the latency of the additions (4 cycles, 2 a cycle).
template <class T>
double dot(const T* x, const T* y, std::size_t n) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  constexpr std::size_t kParts = sizeof(T) == 4 ? 2 : 1;  // registers of double for one of T
  constexpr std::size_t kSums = 8;
  constexpr std::size_t kStep = kSums / kParts * kLane;
  Batch<double> sum[kSums];
  Unroll<0, kSums>::run([&](std::size_t at) __attribute__((always_inline)) { sum[at] = broadcast(0.0); });
  const auto add_products = [&](std::size_t at, const Batch<T>& a, const Batch<T>& b)
      __attribute__((always_inline)) {
    if constexpr (kParts == 2) {
      const Widened left = widen(a);
      const Widened right = widen(b);
      sum[2 * at] = multiply_add(left.low, right.low, sum[2 * at]);
      sum[2 * at + 1] = multiply_add(left.high, right.high, sum[2 * at + 1]);
    } else {
      sum[at] = multiply_add(a, b, sum[at]);
    }
  };
  std::size_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    Unroll<0, kSums / kParts>::run([&](std::size_t at) __attribute__((always_inline)) {
      add_products(at, load(x + i + at * kLane), load(y + i + at * kLane));
    });
  }
  for (; i + kLane <= n; i += kLane) add_products(0, load(x + i), load(y + i));
  if (i < n) add_products(0, load_first(x + i, n - i), load_first(y + i, n - i));
  Unroll<0, kSums / 2>::run([&](std::size_t at)
                                __attribute__((always_inline)) { sum[at] += sum[at + kSums / 2]; });
  alignas(64) double lanes[kLanes<double>];
  store(lanes, (sum[0] + sum[2]) + (sum[1] + sum[3]));
  double total = 0;
  for (const double lane : lanes) total += lane;
  return total;
}

template <class T>
double fma_peak(std::size_t iterations, T* sink) noexcept {
  constexpr std::size_t kChains = 12;
  // Tends to 1, so that nothing overflows or becomes subnormal.
  const Batch<T> factor = broadcast(static_cast<T>(*sink * 0 + T(0.5)));
  Batch<T> sum[kChains];
  Unroll<0, kChains>::run([&](std::size_t at)
                              __attribute__((always_inline)) { sum[at] = broadcast(static_cast<T>(at)); });
  for (std::size_t i = 0; i < iterations; ++i) {
    Unroll<0, kChains>::run([&](std::size_t at) __attribute__((always_inline)) {
      sum[at] = multiply_add(sum[at], factor, factor);
    });
  }
  Batch<T> total = sum[0];
  Unroll<1, kChains>::run([&](std::size_t at) __attribute__((always_inline)) { total += sum[at]; });
  alignas(64) T lanes[kLanes<T>];
  store(lanes, total);
  *sink = lanes[0];
  return 2.0 * static_cast<double>(kChains * kLanes<T>) * static_cast<double>(iterations);
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
