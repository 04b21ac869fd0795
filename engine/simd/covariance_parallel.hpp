#pragma once

#include <cstddef>

#include "engine/simd/covariance.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// Sum over [0, columns) of what the angles are off by: see ParallelPixels. `left_of` gives a register of the
/// left pixels that meet column i: one pixel, or as many.
template <class T, class Left>
GRADGRAM_INLINE double parallel_row(const ParallelPixels<T>& pixels, const Left& left_of) {
  const Batch<T> zero = broadcast(T(0));
  Batch<T> sum = zero;
  for (std::size_t i = 0; i < pixels.columns; i += kLanes<T>) {
    const T* const right = pixels.right + i;
    Batch<T> apart = zero;
    Batch<T> sign = zero;
    Unroll<1, kParallelDirections + 1>::run([&](std::size_t k) __attribute__((always_inline)) {
      const Batch<T> a = left_of(pixels.left + k * pixels.left_stride, i);
      const Batch<T> b = load(right + k * pixels.right_stride);
      apart = xsimd::max(apart, xsimd::abs(Batch<T>(xsimd::abs(a) - xsimd::abs(b))));
      sign = multiply_add(a, b, sign);
    });
    const Mask<T> near = apart < broadcast(pixels.reach);
    if (!xsimd::any(near)) continue;
    const Batch<T> root = left_of(pixels.left, i);
    const Batch<T> other = load(right);
    const Batch<T> product = root * other;
    const Batch<T> mean = xsimd::sqrt(product);
    const Batch<T> gap = xsimd::abs(Batch<T>(root - other));
    const Batch<T> opposite = xsimd::select(sign < zero, Batch<T>(pixels.opposite * product), zero);
    const Batch<T> lost = pixels.rounding * multiply_add(gap, Batch<T>(mean + gap), opposite);
    const Batch<T> least = mean * xsimd::sqrt(Batch<T>(lost + lost));
    const Batch<T> farther = lost / xsimd::max(apart, broadcast(T(1e-30)));
    sum += xsimd::select(near, xsimd::min(least, farther), zero);
  }
  return static_cast<double>(xsimd::hadd(sum));
}

template <class T>
double parallel_pixels(const ParallelPixels<T>& pixels) noexcept {
  if (pixels.equal) {
    return parallel_row(
        pixels, [](const T* left, std::size_t i) __attribute__((always_inline)) { return load(left + i); });
  }
  double total = 0;
  for (std::size_t row = 0; row < pixels.rows && !(total > pixels.enough); row += pixels.row_step) {
    total += parallel_row(
        pixels, [row](const T* left, std::size_t)
                    __attribute__((always_inline)) { return broadcast(left[row]); });
  }
  return total;
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
