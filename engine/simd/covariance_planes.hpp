#pragma once

#include <cstddef>
#include <cstring>

#include "engine/simd/covariance.hpp"
#include "engine/simd/vector.hpp"

/// The arc-cosine recursion on planes of equal offset.
namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// acos(1 - u) / sqrt(u (2 - u)) on [0, 1], of least largest relative error: 4.3e-7 and 2.3e-13. (kArcCosine
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
    0.9999999999997655428,     0.33333333345197263274,  0.13333332339945181813,    0.05714318493030328944,
    0.025391165833622229592,   0.011602849979105380362, 0.0049285421148319085898,  0.0043483780098954101265,
    -0.0049751606926244258563, 0.015160761233794531853, -0.024870848852302333914,  0.03122447616143299202,
    -0.026991108791482308783,  0.015807131780590903178, -0.0055714567693107878964, 0.0009317550054815523447};

/// Stands for a radius that is known only when it runs.
inline constexpr std::size_t kAnyRadius = ~std::size_t{0};

template <class T, std::size_t Radius, bool Obtuse, bool First, bool Last>
void plane_cells(const PlaneStep<T>& step) noexcept {
  constexpr std::size_t kTerms = sizeof(kPlaneArcCosine<T>) / sizeof(T);
  const T* __restrict const delta_in = step.delta;
  const T* __restrict const theta_in = step.theta;
  T* __restrict const out_delta = step.out_delta;
  T* __restrict const out_theta = step.out_theta;
  const std::ptrdiff_t reach =
      Radius == kAnyRadius ? static_cast<std::ptrdiff_t>(step.radius) : static_cast<std::ptrdiff_t>(Radius);
  Batch<T> weights[kTerms];
  Unroll<0, kTerms>::run([&](std::size_t k) __attribute__((always_inline)) {
    weights[k] = broadcast(kPlaneArcCosine<T>[k] * step.ratio);
  });
  const Batch<T> ratio = broadcast(step.ratio);
  const Batch<T> zero = broadcast(T(0));
  Batch<T> delta_sum = zero;
  Batch<T> theta_sum = zero;
  const auto across = [&](const T* at) __attribute__((always_inline)) {
    if constexpr (Radius == 0) return load(at);
    if constexpr (Radius == 1) return Batch<T>(load(at) + (load(at - 1) + load(at + 1)));
    Batch<T> sum = load(at - reach);
    for (std::ptrdiff_t k = 1 - reach; k <= reach; ++k) sum += load(at + k);
    return sum;
  };
  for (std::size_t i = 0; i < step.cells; i += kLanes<T>) {
    const Batch<T> left = load(step.left_root + i);
    const Batch<T> right = load(step.right_root + i);
    const Batch<T> gap = left - right * T(0.5);
    const Batch<T> square = gap * gap;
    const Batch<T> rest = across(delta_in + i) - square;
    const Batch<T> product = load(step.left_inverse + i) * load(step.right_inverse + i);
    Batch<T> u = xsimd::max(Batch<T>(rest * product), zero);
    if constexpr (Obtuse) u = xsimd::min(u, broadcast(T(2)));
    const Batch<T> cosine = T(1) - u;
    const Batch<T> sine = xsimd::sqrt(multiply_add(u, cosine, u));
    const Batch<T> argument = Obtuse ? Batch<T>(xsimd::min(u, Batch<T>(T(2) - u))) : u;
    Batch<T> sum = weights[kTerms - 1];
    Unroll<1, kTerms>::run([&](std::size_t k) __attribute__((always_inline)) {
      sum = multiply_add(sum, argument, weights[kTerms - 1 - k]);
    });
    Batch<T> angle = sine * sum;  // times the ratio
    if constexpr (Obtuse) {
      angle = xsimd::select(u > broadcast(T(1)), T(3.14159265358979323846) * ratio - angle, angle);
    }
    const Batch<T> covariance = left * right;  // where the cosine is 1
    const Batch<T> turned = multiply_add(cosine, angle, u) - ratio * sine;
    const Batch<T> after = multiply_add(covariance, turned, square);
    const Batch<T> live = load(step.live + i);
    const Batch<T> slope = live - angle;
    Batch<T> theta = covariance * cosine;
    if constexpr (!First) theta += across(theta_in + i);
    theta *= slope;
    if constexpr (Last) {
      delta_sum = multiply_add(live, after, delta_sum);
      theta_sum += theta;
    } else {
      store(out_delta + i, after);
      store(out_theta + i, theta);
    }
  }
  if constexpr (Last) {
    alignas(64) T lanes[kLanes<T>];
    delta_sum.store_aligned(lanes);
    for (const T lane : lanes) step.sums[0] += static_cast<double>(lane);
    theta_sum.store_aligned(lanes);
    for (const T lane : lanes) step.sums[1] += static_cast<double>(lane);
  }
}

template <class T, std::size_t Radius, bool Obtuse>
void plane_cells_of(const PlaneStep<T>& step) noexcept {
  const bool first = step.theta == nullptr;
  const bool last = step.sums != nullptr;
  if (first) {
    last ? plane_cells<T, Radius, Obtuse, true, true>(step)
         : plane_cells<T, Radius, Obtuse, true, false>(step);
  } else {
    last ? plane_cells<T, Radius, Obtuse, false, true>(step)
         : plane_cells<T, Radius, Obtuse, false, false>(step);
  }
}

template <class T>
void plane_step(const PlaneStep<T>& step) noexcept {
  if (step.radius == 1) {
    step.obtuse ? plane_cells_of<T, 1, true>(step) : plane_cells_of<T, 1, false>(step);
  } else {
    step.obtuse ? plane_cells_of<T, kAnyRadius, true>(step) : plane_cells_of<T, kAnyRadius, false>(step);
  }
}

template <class T>
void plane_rows(const PlaneRows<T>& what) noexcept {
  const Batch<T> factor = broadcast(what.factor);
  if (what.count == 3 && what.left_squares + what.right_squares == 0 && what.factor == T(1)) {
    const T* const a = what.rows[0];
    const T* const b = what.rows[1];
    const T* const c = what.rows[2];
    for (std::size_t i = 0; i < what.cells; i += kLanes<T>) {
      store(what.out + i, Batch<T>(load(a + i) + (load(b + i) + load(c + i))));
    }
    return;
  }
  for (std::size_t i = 0; i < what.cells; i += kLanes<T>) {
    Batch<T> sum = broadcast(T(0));
    for (std::size_t k = 0; k < what.count; ++k) sum += load(what.rows[k] + i);
    for (std::size_t k = 0; k < what.left_squares + what.right_squares; ++k) {
      const Batch<T> root = load(what.squares[k] + i) * (k < what.left_squares ? T(1) : T(0.5));
      sum = multiply_add(root, root, sum);
    }
    store(what.out + i, Batch<T>(factor * sum));
  }
}

template <class T>
void plane_input(const T* left, std::size_t left_stride, const T* right, std::size_t right_stride,
                 std::size_t channels, T* out, std::size_t cells) noexcept {
  for (std::size_t i = 0; i < cells; i += kLanes<T>) {
    Batch<T> sum = broadcast(T(0));
    for (std::size_t c = 0; c < channels; ++c) {
      const Batch<T> difference = load(left + c * left_stride + i) - load(right + c * right_stride + i);
      sum = multiply_add(difference, difference, sum);
    }
    store(out + i, sum);
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
