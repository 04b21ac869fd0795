#pragma once

#include <cstddef>
#include <cstring>

#include "engine/simd/covariance.hpp"
#include "engine/simd/vector.hpp"

/// The arc-cosine recursion on planes of equal offset.
namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// acos(1 - u) / sqrt(u (2 - u)) on [0, 1], of least largest relative error: 4.3e-7 and 6.5e-15. (kArcCosine
/// is finer: one entry there may be the result, here 10^5 and more are averaged, over which the error
/// oscillates.)
template <class T>
inline constexpr T kPlaneArcCosine[] = {0};
template <>
inline constexpr float kPlaneArcCosine<float>[] = {0.999999566772F,   0.333387469123F,    0.132236733663F,
                                                   0.0654765779212F,  -0.00502045910854F, 0.0696742449352F,
                                                   -0.0520390915783F, 0.0270806045546F};
template <>
inline constexpr double kPlaneArcCosine<double>[] = {
    0.99999999999999347804,     0.33333333333751480545,   0.13333333288898697803,   0.057142875810817840161,
    0.025396412900783996267,    0.011549540161997695466,  0.0052791319767396960238, 0.0027869623089867527991,
    -0.00016154413172236116322, 0.0049014588637190393683, -0.01033141903295684771,  0.019499859529321315198,
    -0.026425063722177307436,   0.026741382002717385977,  -0.019321484730102496112, 0.0095449813673016865445,
    -0.0028866726684873829904,  0.0004132399314521006488};

/// Registers of cells that go through a layer together, stage by stage: one chain of a root and a polynomial
/// after the other would fill the scheduler with instructions that wait.
inline constexpr std::size_t kPlaneUnroll = 2;

/// Stands for a radius that is known only when it runs.
inline constexpr std::size_t kAnyRadius = ~std::size_t{0};

/// sum of at[k * step], |k| <= radius.
template <std::size_t Radius, class T>
GRADGRAM_INLINE Batch<T> window(const T* at, std::ptrdiff_t step, std::ptrdiff_t radius) {
  if constexpr (Radius == 0) {
    return load(at);
  } else if constexpr (Radius == 1) {
    return load(at) + (load(at - step) + load(at + step));
  } else {
    Batch<T> sum = load(at - radius * step);
    for (std::ptrdiff_t k = 1 - radius; k <= radius; ++k) sum += load(at + k * step);
    return sum;
  }
}

/// sqrt(z) for z > 1e-35, within 1e-7 relative. The estimate and a Newton step take a third of the time of
/// the instruction.
template <class T>
GRADGRAM_INLINE Batch<T> plane_root(const Batch<T>& z) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const Batch<T> y = _mm512_rsqrt14_ps(z);
    const Batch<T> root = z * y;
    const Batch<T> half = y * T(0.5);
    const Batch<T> error = z - root * root;
    return multiply_add(error, half, root);
  }
#endif
  return xsimd::sqrt(z);
}

/// Stands for 1 - cos 0, so that its root has an inverse; the angle is below 1e-15 and below 1e-150.
template <class T>
inline constexpr T kLeastVersine = sizeof(T) == 4 ? T(1e-30) : T(1e-300);

/// The sums down the columns run `ahead` cells before the nonlinearity, in the same loop: one waits for
/// memory, the other for arithmetic. As far ahead as windows reach, so that the results may be written
/// over what the sums have read.
template <class T, std::size_t Radius, bool Obtuse, bool First, bool Last>
void plane_cells(const PlaneRun<T>& run) noexcept {
  constexpr std::size_t kTerms = sizeof(kPlaneArcCosine<T>) / sizeof(T);
  const auto rows_reach = static_cast<std::ptrdiff_t>(run.radius_rows);
  const auto reach = static_cast<std::ptrdiff_t>(run.radius_columns);
  const auto stride = static_cast<std::ptrdiff_t>(run.stride);
  T* const delta = run.delta;
  T* const theta = run.theta;
  T* const delta_sums = run.delta_sums;
  T* const theta_sums = run.theta_sums;
  const T* const left_root = run.left_root;
  const T* const left_inverse = run.left_inverse;
  const T* const right_root = run.right_root;
  const T* const right_inverse = run.right_inverse;
  const T* const lives = run.live;
  Batch<T> weights[kTerms];
  Unroll<0, kTerms>::run([&](std::size_t k) __attribute__((always_inline)) {
    weights[k] = broadcast(kPlaneArcCosine<T>[k] * run.ratio);
  });
  const Batch<T> ratio = broadcast(run.ratio);
  const Batch<T> twice_bias = broadcast(T(2) * run.bias);
  const Batch<T> least = broadcast(kLeastVersine<T>);
  Batch<T> delta_sum = broadcast(T(0));
  Batch<T> theta_sum = broadcast(T(0));
  const auto down = [&](std::size_t i) __attribute__((always_inline)) {
    store(delta_sums + i, window<Radius>(delta + i, stride, rows_reach));
    if constexpr (!First || Obtuse) store(theta_sums + i, window<Radius>(theta + i, stride, rows_reach));
  };
  const std::size_t cells = run.rows * run.stride;
  const std::size_t widest = run.radius_rows * run.stride + run.radius_columns;
  const std::size_t ahead = (widest + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  for (std::size_t i = 0; i < ahead; i += kLanes<T>) down(i);
  for (std::size_t begin = 0; begin < cells; begin += kPlaneUnroll * kLanes<T>) {
    Batch<T> square[kPlaneUnroll], covariance[kPlaneUnroll], u[kPlaneUnroll], sine[kPlaneUnroll];
    Batch<T> angle[kPlaneUnroll];
    Unroll<0, kPlaneUnroll>::run([&](std::size_t k) __attribute__((always_inline)) {
      const std::size_t i = begin + k * kLanes<T>;
      down(i + ahead);
      const Batch<T> left = load(left_root + i);
      const Batch<T> right = load(right_root + i);
      const Batch<T> gap = left - right * T(0.5);
      square[k] = gap * gap;
      covariance[k] = left * right;  // where the cosine is 1
      const Batch<T> rest = window<Radius>(delta_sums + i, 1, reach) - square[k];
      const Batch<T> product = load(left_inverse + i) * load(right_inverse + i);
      u[k] = xsimd::max(Batch<T>(rest * product), least);
      if constexpr (Obtuse) u[k] = xsimd::min(u[k], broadcast(T(2)));
    });
    // One less the absolute value of the cosine.
    Batch<T> argument[kPlaneUnroll];
    Unroll<0, kPlaneUnroll>::run([&](std::size_t k) __attribute__((always_inline)) {
      argument[k] = u[k];
      if constexpr (Obtuse && First) {
        const std::size_t i = begin + k * kLanes<T>;
        const Batch<T> rest = window<Radius>(theta_sums + i, 1, reach) + (twice_bias - square[k]);
        const Batch<T> product = load(left_inverse + i) * load(right_inverse + i);
        const Batch<T> opposite = xsimd::max(Batch<T>(rest * product), least);
        argument[k] = xsimd::select(u[k] > broadcast(T(1)), opposite, u[k]);
      } else if constexpr (Obtuse) {
        argument[k] = xsimd::max(xsimd::min(u[k], Batch<T>(T(2) - u[k])), least);
      }
      sine[k] = plane_root<T>(multiply_add(argument[k], Batch<T>(T(1) - argument[k]), argument[k]));
      angle[k] = weights[kTerms - 1];
    });
    Unroll<1, kTerms>::run([&](std::size_t t) __attribute__((always_inline)) {
      Unroll<0, kPlaneUnroll>::run([&](std::size_t k) __attribute__((always_inline)) {
        angle[k] = multiply_add(angle[k], argument[k], weights[kTerms - 1 - t]);
      });
    });
    Unroll<0, kPlaneUnroll>::run([&](std::size_t k) __attribute__((always_inline)) {
      angle[k] = sine[k] * angle[k];  // times the ratio
      if constexpr (Obtuse) {
        angle[k] =
            xsimd::select(u[k] > broadcast(T(1)), T(3.14159265358979323846) * ratio - angle[k], angle[k]);
      }
    });
    Unroll<0, kPlaneUnroll>::run([&](std::size_t k) __attribute__((always_inline)) {
      const std::size_t i = begin + k * kLanes<T>;
      const Batch<T> cosine = T(1) - u[k];
      const Batch<T> turned = multiply_add(cosine, angle[k], u[k]) - ratio * sine[k];
      const Batch<T> after = multiply_add(covariance[k], turned, square[k]);
      const Batch<T> live = load(lives + i);
      Batch<T> tangent = covariance[k] * cosine;
      if constexpr (!First) tangent += window<Radius>(theta_sums + i, 1, reach);
      tangent *= live - angle[k];
      if constexpr (Last) {
        delta_sum = multiply_add(live, after, delta_sum);
        theta_sum += tangent;
      } else {
        store(delta + i, after);
        store(theta + i, tangent);
      }
    });
  }
  if constexpr (Last) {
    alignas(64) T lanes[kLanes<T>];
    delta_sum.store_aligned(lanes);
    for (const T lane : lanes) run.sums[0] += static_cast<double>(lane);
    theta_sum.store_aligned(lanes);
    for (const T lane : lanes) run.sums[1] += static_cast<double>(lane);
  } else {
    const auto frames = [&](std::ptrdiff_t begin) {
      for (std::ptrdiff_t i = begin; i < begin + static_cast<std::ptrdiff_t>(run.frame_rows) * stride;
           i += kLanes<T>) {
        const Batch<T> left = load(left_root + i);
        const Batch<T> right = load(right_root + i) * T(0.5);
        store(delta + i, multiply_add(left, left, Batch<T>(right * right)));
        store(theta + i, broadcast(T(0)));
      }
    };
    // Those above may run over into the first row: it is kept.
    const Batch<T> first_delta = load(delta);
    const Batch<T> first_theta = load(theta);
    frames(-static_cast<std::ptrdiff_t>(run.frame_rows) * stride);
    store(delta, first_delta);
    store(theta, first_theta);
    frames(static_cast<std::ptrdiff_t>(cells));
  }
}

template <class T, std::size_t Radius, bool Obtuse, bool First>
void plane_cells_of(const PlaneRun<T>& run) noexcept {
  run.sums != nullptr ? plane_cells<T, Radius, Obtuse, First, true>(run)
                      : plane_cells<T, Radius, Obtuse, First, false>(run);
}
template <class T, std::size_t Radius>
void plane_cells_of(const PlaneRun<T>& run) noexcept {
  if (run.first) {
    plane_cells_of<T, Radius, true, true>(run);
  } else if (run.obtuse) {
    plane_cells_of<T, Radius, true, false>(run);
  } else {
    plane_cells_of<T, Radius, false, false>(run);
  }
}

template <class T>
void plane_layer(const PlaneRun<T>& run) noexcept {
  if (run.factor != T(1)) {
    const auto frames = static_cast<std::ptrdiff_t>(run.frame_rows * run.stride);
    const Batch<T> factor = broadcast(run.factor);
    const std::ptrdiff_t end = static_cast<std::ptrdiff_t>(run.rows * run.stride) + frames;
    for (std::ptrdiff_t i = -frames; i < end; i += kLanes<T>) {
      store(run.delta + i, Batch<T>(factor * load(run.delta + i)));
      store(run.theta + i, Batch<T>(factor * load(run.theta + i)));
    }
  }
  if (run.radius_rows == 1 && run.radius_columns == 1) {
    plane_cells_of<T, 1>(run);
  } else {
    plane_cells_of<T, kAnyRadius>(run);
  }
}

template <class T>
void plane_input(const T* left, std::size_t left_stride, const T* right, std::size_t right_stride,
                 std::size_t channels, T* differences, T* sums, std::size_t cells) noexcept {
  for (std::size_t i = 0; i < cells; i += kLanes<T>) {
    Batch<T> difference = broadcast(T(0));
    Batch<T> sum = broadcast(T(0));
    for (std::size_t c = 0; c < channels; ++c) {
      const Batch<T> a = load(left + c * left_stride + i);
      const Batch<T> b = load(right + c * right_stride + i);
      difference = multiply_add(Batch<T>(a - b), Batch<T>(a - b), difference);
      sum = multiply_add(Batch<T>(a + b), Batch<T>(a + b), sum);
    }
    store(differences + i, difference);
    store(sums + i, sum);
  }
}

template <class T>
void plane_layout(const T* image, T scale, const PlaneLayout& layout, T* line, T* out) noexcept {
  // The line: columns before the image, the image, columns after it.
  const std::ptrdiff_t begin = layout.first < layout.second ? layout.first : layout.second;
  const auto before = static_cast<std::size_t>(begin < 0 ? -begin : 0);
  const auto offset = static_cast<std::ptrdiff_t>(before);
  const std::size_t reach =
      layout.first_columns > layout.second_columns ? layout.first_columns : layout.second_columns;
  const Batch<T> zero = broadcast(T(0));
  for (std::size_t i = 0; i < before + layout.width + reach; i += kLanes<T>) store(line + i, zero);
  for (std::size_t y = 0; y < layout.height; ++y) {
    const T* const row = image + y * layout.width;
    std::size_t x = 0;
    for (; x + kLanes<T> <= layout.width; x += kLanes<T>) {
      store(line + before + x, Batch<T>(scale * load(row + x)));
    }
    for (; x < layout.width; ++x) line[before + x] = scale * row[x];
    const T* const first = line + (layout.first + offset);
    const T* const second = line + (layout.second + offset);
    for (x = 0; x < layout.first_columns; x += kLanes<T>) store(out + x, load(first + x));
    out += layout.first_columns;
    for (x = 0; x < layout.second_columns; x += kLanes<T>) store(out + x, load(second + x));
    out += layout.second_columns;
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
