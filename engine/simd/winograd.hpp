#pragma once

#include "engine/simd/gather_product.hpp"
#include "engine/simd/gram.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

/// The transforms of Winograd's F(2x2, 3x3) (Lavin and Gray, 2015): Y = A^T [(G g G^T) o (B^T d B)] A for
/// windows d of 4 x 4 inputs, kernels g of 3 x 3 and 2 x 2 outputs Y, and the adjoints of those of Y and g. A
/// register holds channels.
namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// Of a square of Side x Side registers every column, then every row, by transform(four or so numbers, their
/// images).
template <class T, std::size_t In, std::size_t Out, class Transform>
GRADGRAM_INLINE void both_axes(const Batch<T>* in, Batch<T>* out, const Transform& transform) {
  Batch<T> half[Out * In];
  Unroll<0, In>::run([&](std::size_t column) __attribute__((always_inline)) {
    Batch<T> from[In], to[Out];
    Unroll<0, In>::run([&](std::size_t i) __attribute__((always_inline)) { from[i] = in[i * In + column]; });
    transform(from, to);
    Unroll<0, Out>::run([&](std::size_t i) __attribute__((always_inline)) { half[i * In + column] = to[i]; });
  });
  Unroll<0, Out>::run([&](std::size_t row)
                          __attribute__((always_inline)) { transform(half + row * In, out + row * Out); });
}

/// B^T.
template <class T>
GRADGRAM_INLINE void transform_input(const Batch<T>* d, Batch<T>* v) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}
/// G.
template <class T>
GRADGRAM_INLINE void transform_weights(const Batch<T>* g, Batch<T>* u) {
  const Batch<T> half = broadcast(T(0.5));
  const Batch<T> ends = half * (g[0] + g[2]);
  const Batch<T> middle = half * g[1];
  u[0] = g[0];
  u[1] = ends + middle;
  u[2] = ends - middle;
  u[3] = g[2];
}
/// G^T.
template <class T>
GRADGRAM_INLINE void transform_gradient(const Batch<T>* u, Batch<T>* g) {
  const Batch<T> half = broadcast(T(0.5));
  const Batch<T> ends = half * (u[1] + u[2]);
  g[0] = u[0] + ends;
  g[1] = half * (u[1] - u[2]);
  g[2] = ends + u[3];
}
/// A^T.
template <class T>
GRADGRAM_INLINE void transform_output(const Batch<T>* m, Batch<T>* y) {
  y[0] = m[0] + m[1] + m[2];
  y[1] = m[1] - m[2] - m[3];
}
/// A.
template <class T>
GRADGRAM_INLINE void transform_cotangent(const Batch<T>* y, Batch<T>* m) {
  m[0] = y[0];
  m[1] = y[0] + y[1];
  m[2] = y[0] - y[1];
  m[3] = broadcast(T(0)) - y[1];
}

/// body(number of the tile among `count`, its image, its row and column in the grid).
template <class Body>
GRADGRAM_INLINE void each_tile(const WinogradGrid& grid, const Body& body) {
  const std::size_t size = grid.across * grid.down;
  std::size_t image = grid.first / size;
  std::size_t y = grid.first % size / grid.across;
  std::size_t x = grid.first % grid.across;
  for (std::size_t t = 0; t < grid.count; ++t) {
    body(t, image, y, x);
    if (++x < grid.across) continue;
    x = 0;
    if (++y < grid.down) continue;
    y = 0;
    ++image;
  }
}

template <class T>
void winograd_input(const WinogradInput<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  each_tile(job.grid, [&](std::size_t t, std::size_t image, std::size_t y, std::size_t x) {
    const T* const from = job.plane + image * job.image + 2 * y * job.row + 2 * x * job.pixel;
    T* const to = job.out + t * job.channels;
    for (std::size_t c = 0; c < job.channels; c += kLane) {
      Batch<T> d[16], v[16];
      Unroll<0, 16>::run([&](std::size_t i) __attribute__((always_inline)) {
        d[i] = load(from + i / 4 * job.row + i % 4 * job.pixel + c);
      });
      both_axes<T, 4, 4>(d, v, transform_input<T>);
      Unroll<0, 16>::run([&](std::size_t i)
                             __attribute__((always_inline)) { store(to + i * job.component + c, v[i]); });
    }
  });
}

template <class T>
void winograd_weights(const WinogradWeights<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  const Batch<T> scale = broadcast(job.scale);
  const std::size_t taps = job.c_in * job.c_out;
  const std::size_t component = winograd_component<T>(job.transposed ? job.c_out : job.c_in, job.columns);
  const auto transform = [&](const T* from, std::size_t step, T* to) __attribute__((always_inline)) {
    Batch<T> g[9], u[16];
    Unroll<0, 9>::run([&](std::size_t t)
                          __attribute__((always_inline)) { g[t] = scale * load(from + t * step); });
    both_axes<T, 3, 4>(g, u, transform_weights<T>);
    Unroll<0, 16>::run([&](std::size_t at)
                           __attribute__((always_inline)) { store(to + at * component, u[at]); });
  };
  // The pieces that are read are short and far apart: the next ones are fetched meanwhile.
  if (!job.transposed) {
    for (std::size_t i = 0; i < job.c_in; ++i) {
      for (std::size_t k = 0; k < job.columns; k += kLane) {
        const T* const from = job.weights + i * job.c_out + job.first + k;
        const T* const next = from + (i + 1 < job.c_in ? job.c_out : 0);
        Unroll<0, 9>::run([&](std::size_t t)
                              __attribute__((always_inline)) { __builtin_prefetch(next + t * taps); });
        transform(from, taps, job.out + i * job.columns + k);
      }
    }
    return;
  }
  alignas(64) T squares[9 * kLane * kLane];  // [tap turned around][k][i]
  for (std::size_t i = 0; i < job.columns; i += kLane) {
    for (std::size_t k = 0; k < job.c_out; k += kLane) {
      const T* const from = job.weights + (job.first + i) * job.c_out + k;
      const T* const next = from + (k + kLane < job.c_out ? kLane : 0);
      for (std::size_t t = 0; t < 9; ++t) {
        Batch<T> x[kLane];
        Unroll<0, kLane>::run([&](std::size_t r) __attribute__((always_inline)) {
          x[r] = load(from + t * taps + r * job.c_out);
          __builtin_prefetch(next + t * taps + r * job.c_out);
        });
        transpose<T, kLane>(x);
        T* const to = squares + (8 - t) * kLane * kLane;
        Unroll<0, kLane>::run([&](std::size_t r)
                                  __attribute__((always_inline)) { store(to + r * kLane, x[r]); });
      }
      for (std::size_t r = 0; r < kLane; ++r) {
        transform(static_cast<const T*>(squares) + r * kLane, kLane * kLane,
                  job.out + (k + r) * job.columns + i);
      }
    }
  }
}

template <class T>
void winograd_output(const WinogradOutput<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  const std::size_t line = job.out_w * job.pixel;
  each_tile(job.grid, [&](std::size_t t, std::size_t image, std::size_t ty, std::size_t tx) {
    const T* const from = job.products + t * job.columns;
    T* const to = job.out + image * job.out_h * line + 2 * ty * line + 2 * tx * job.pixel;
    const bool below = 2 * ty + 1 < job.out_h;
    const bool right = 2 * tx + 1 < job.out_w;
    for (std::size_t c = 0; c < job.columns; c += kLane) {
      Batch<T> m[16], y[4];
      Unroll<0, 16>::run([&](std::size_t i)
                             __attribute__((always_inline)) { m[i] = load(from + i * job.component + c); });
      both_axes<T, 4, 2>(m, y, transform_output<T>);
      const auto put = [&](std::size_t i) __attribute__((always_inline)) {
        T* const target = to + i / 2 * line + i % 2 * job.pixel + c;
        Batch<T> sum = y[i];
        if (job.accumulate) {
          sum = load(static_cast<const T*>(target)) + sum;
        } else if (job.start != nullptr) {
          sum = sum + broadcast(job.start_scale) * load(job.start + c);
        }
        store(target, job.rectify ? positive_part(sum) : sum);
      };
      put(0);
      if (right) put(1);
      if (below) put(2);
      if (right && below) put(3);
    }
  });
}

template <class T>
void winograd_cotangent(const WinogradCotangent<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  const std::size_t line = job.out_w * job.pixel;
  each_tile(job.grid, [&](std::size_t t, std::size_t image, std::size_t ty, std::size_t tx) {
    const T* const from = job.cotangent + image * job.out_h * line + 2 * ty * line + 2 * tx * job.pixel;
    T* const to = job.out + t * job.columns;
    const bool below = 2 * ty + 1 < job.out_h;
    const bool right = 2 * tx + 1 < job.out_w;
    for (std::size_t c = 0; c < job.columns; c += kLane) {
      const Batch<T> zero = broadcast(T(0));
      const Batch<T> y[4] = {load(from + c), right ? load(from + job.pixel + c) : zero,
                             below ? load(from + line + c) : zero,
                             right && below ? load(from + line + job.pixel + c) : zero};
      Batch<T> m[16];
      both_axes<T, 2, 4>(y, m, transform_cotangent<T>);
      Unroll<0, 16>::run([&](std::size_t i)
                             __attribute__((always_inline)) { store(to + i * job.component + c, m[i]); });
    }
  });
}

template <class T>
void winograd_gradient(const WinogradGradient<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  for (std::size_t i = 0; i < job.c_in; ++i) {
    for (std::size_t k = 0; k < job.columns; k += kLane) {
      Batch<T> u[16], g[9];
      const T* const from = job.products + i * job.columns + k;
      Unroll<0, 16>::run([&](std::size_t at)
                             __attribute__((always_inline)) { u[at] = load(from + at * job.component); });
      both_axes<T, 4, 3>(u, g, transform_gradient<T>);
      T* const to = job.gradient + i * job.c_out + k;
      Unroll<0, 9>::run([&](std::size_t t) __attribute__((always_inline)) {
        T* const target = to + t * job.tap;
        store(target, job.accumulate ? Batch<T>(load(static_cast<const T*>(target)) + g[t]) : g[t]);
      });
    }
  }
}

template <class T, std::size_t Vectors>
void winograd_product_rows(const WinogradProducts<T>& job) noexcept {
  constexpr std::size_t kStep = kRows<Vectors>;
  constexpr std::size_t kWidth = Vectors * kLanes<T>;
  constexpr std::size_t kComponent = winograd_component<T>(kStep, kWidth);
  alignas(64) T products[16 * kComponent];
  alignas(64) T zeros[kWidth] = {};
  std::ptrdiff_t rows[kStep];
  for (std::size_t r = 0; r < kStep; ++r) rows[r] = static_cast<std::ptrdiff_t>(r * kWidth);
  for (std::size_t i = 0; i < job.inputs; i += kStep) {
    const std::size_t count = job.inputs - i < kStep ? job.inputs - i : kStep;
    for (std::size_t c = 0; c < 16; ++c) {
      const Panel<T> panel{.x = job.windows + c * job.window_component,
                           .x_base = job.channel + i,
                           .x_offset = job.tile,
                           .v = job.cotangents + c * job.cotangent_component,
                           .v_stride = kWidth,
                           .out = products + c * kComponent,
                           .out_base = rows,
                           .depth = job.tiles,
                           .last_columns = kLanes<T>,
                           .start = zeros,
                           .rectify = false};
      if (count == kStep) {
        tile<T, kStep, Vectors>(panel, 0);
      } else {
        last_tile<T, kStep - 1, Vectors>(panel, 0, count);
      }
    }
    winograd_gradient<T>({.products = products,
                          .component = kComponent,
                          .c_in = count,
                          .columns = kWidth,
                          .gradient = job.gradient + i * job.row,
                          .c_out = job.row,
                          .accumulate = job.accumulate,
                          .tap = job.tap});
  }
}

template <class T, std::size_t Vectors = kPanelVectors>
void winograd_products(const WinogradProducts<T>& job) noexcept {
  if constexpr (Vectors > 0) {
    if (job.columns == Vectors * kLanes<T>) return winograd_product_rows<T, Vectors>(job);
    winograd_products<T, Vectors - 1>(job);
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
