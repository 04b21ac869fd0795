#pragma once

#include <limits>

#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// Where the part of a window that lies inside the image begins and ends, along one axis, in the window.
struct Clip {
  std::size_t begin, end;
};
GRADGRAM_INLINE Clip clip(std::size_t start, std::size_t pad, std::size_t kernel, std::size_t in) {
  const std::size_t begin = start < pad ? pad - start : 0;
  const std::size_t end = in + pad <= start ? 0 : in + pad - start;
  return {begin, end < kernel ? end : kernel};
}

/// Calls body(offset of a pixel in the image, place in the window) for the pixels of window (y, x) inside the
/// image.
template <class T>
struct Window {
  std::size_t channels, in_row, kernel_w;
  Clip rows, columns;
  std::size_t first;  ///< offset of the first pixel, in elements
  T first_place;
  GRADGRAM_INLINE Window(const ConvGeometry& g, std::size_t y, std::size_t x)
      : channels(g.c_in),
        in_row(g.in_w * g.c_in),
        kernel_w(g.kernel_w),
        rows(clip(y * g.stride_h, g.pad_top, g.kernel_h, g.in_h)),
        columns(clip(x * g.stride_w, g.pad_left, g.kernel_w, g.in_w)),
        first((y * g.stride_h + rows.begin - g.pad_top) * in_row +
              (x * g.stride_w + columns.begin - g.pad_left) * channels),
        first_place(static_cast<T>(rows.begin * kernel_w + columns.begin)) {}
  template <class Body>
  GRADGRAM_INLINE void each(const Body& body) const {
    std::size_t row = first;
    for (std::size_t a = rows.begin; a < rows.end; ++a, row += in_row) {
      std::size_t pixel = row;
      for (std::size_t b = columns.begin; b < columns.end; ++b, pixel += channels) {
        body(pixel, broadcast(static_cast<T>(a * kernel_w + b)));
      }
    }
  }
};

/// Calls body(first channel, count) for every register of channels; the last may be cut.
template <class T, class Body>
GRADGRAM_INLINE void each_register(std::size_t channels, const Body& body) {
  for (std::size_t c = 0; c < channels; c += kLanes<T>) {
    body(c, channels - c < kLanes<T> ? channels - c : kLanes<T>);
  }
}
template <class T>
GRADGRAM_INLINE Batch<T> load_some(const T* source, std::size_t count) {
  return count == kLanes<T> ? load(source) : load_first(source, count);
}
template <class T>
GRADGRAM_INLINE void store_some(T* target, const Batch<T>& value, std::size_t count) {
  if (count == kLanes<T>) {
    store(target, value);
  } else {
    store_first(target, value, count);
  }
}

template <class T>
void max_pool(const ConvGeometry& g, bool rectify, const T* in, T* out, T* chosen) noexcept {
  using B = Batch<T>;
  const std::size_t channels = g.c_in;
  for (std::size_t y = 0; y < g.out_h; ++y) {
    for (std::size_t x = 0; x < g.out_w; ++x, out += channels, chosen += channels) {
      const Window<T> window(g, y, x);
      each_register<T>(
          channels, [&](std::size_t c, std::size_t count) __attribute__((always_inline)) {
            // With `rectify` a window has to exceed 0 to be alive. Otherwise the first pixel is taken as it
            // is.
            B best = rectify ? broadcast(T(0)) : load_some(in + window.first + c, count);
            B place = broadcast(rectify ? T(-1) : window.first_place);
            auto broken = xsimd::isnan(best);
            window.each([&](std::size_t pixel, const B& here) __attribute__((always_inline)) {
              const B next = load_some(in + pixel + c, count);
              const auto larger = next > best;  // false where one of them is NaN
              best = xsimd::select(larger, next, best);
              place = xsimd::select(larger, here, place);
              broken = broken || xsimd::isnan(next);
            });
            if (xsimd::any(broken)) {
              const B nan = broadcast(std::numeric_limits<T>::quiet_NaN());
              best = xsimd::select(broken, nan, best);
              place = xsimd::select(broken, nan, place);
            }
            store_some(out + c, best, count);
            store_some(chosen + c, place, count);
          });
    }
  }
}

template <class T>
void max_pool_chain(const ConvGeometry& g, const T* cotangent, const T* chosen, bool accumulate,
                    T* in) noexcept {
  using B = Batch<T>;
  const std::size_t channels = g.c_in;
  for (std::size_t y = 0; y < g.out_h; ++y) {
    for (std::size_t x = 0; x < g.out_w; ++x, cotangent += channels, chosen += channels) {
      const Window<T> window(g, y, x);
      each_register<T>(
          channels, [&](std::size_t c, std::size_t count) __attribute__((always_inline)) {
            const B value = load_some(cotangent + c, count);
            const B place = load_some(chosen + c, count);
            const B others = xsimd::select(xsimd::isnan(place), place, broadcast(T(0)));
            window.each([&](std::size_t pixel, const B& here) __attribute__((always_inline)) {
              T* const target = in + pixel + c;
              B share = xsimd::select(place == here, value, others);
              if (accumulate) share = share + load_some(static_cast<const T*>(target), count);
              store_some(target, share, count);
            });
          });
    }
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
