#pragma once

#include "engine/simd/covariance_cosines.hpp"
#include "engine/simd/covariance_planes.hpp"
#include "engine/simd/covariance_tables.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// Coefficients of P in acos(1 - u) / sqrt(u (2 - u)) = 1 + u P(u) on [0, 1], by interpolation at Chebyshev
/// nodes: relative error 3.7e-8 and 1.0e-16. (The nearest singularity is c = -1, so that each term gains a
/// factor 5.8.)
template <class T>
inline constexpr T kArcCosine[] = {0};
template <>
inline constexpr float kArcCosine<float>[] = {0.333333363655F,  0.133328435801F,   0.0572714832332F,
                                              0.0241140988772F, 0.0178409227089F,  -0.0116120731765F,
                                              0.0282145883407F, -0.0199459572771F, 0.00825140587922F};
template <>
inline constexpr double kArcCosine<double>[] = {
    0.33333333333333325387,    0.13333333333339686402,    0.057142857134433603311,
    0.025396825839095790643,   0.011543999293819312431,   0.0053282120859492571236,
    0.0024840861785160470992,  0.0011882766077472986242,  0.00045003461515304358834,
    0.00070970872191762304699, -0.0013235381522544643209, 0.003682706774751962782,
    -0.006954063617292925538,  0.01038759721436498704,    -0.01176820386280016077,
    0.010042083210580844756,   -0.006232023418520249777,  0.0026701545572652320151,
    -0.0007079495375970412607, 0.000088896483036184140656};

/// sum_k table[k] u^k for a table of known length, unrolled.
template <std::size_t Count, class T>
GRADGRAM_INLINE Batch<T> polynomial(const T (&table)[Count], const Batch<T>& u) {
  Batch<T> sum = broadcast(table[Count - 1]);
  Unroll<1, Count>::run([&](std::size_t k) __attribute__((always_inline)) {
    sum = multiply_add(sum, u, broadcast(table[Count - 1 - k]));
  });
  return sum;
}

/// The angle between two directions with cosine c = 1 - u, u in [0, 2], and its sine. Exact at u = 0; the
/// argument of the root is the one that is clamped, by way of u.
template <class T>
struct Angle {
  Batch<T> cosine, sine, angle;
};
template <class T>
GRADGRAM_INLINE Angle<T> angle_of(const Batch<T>& u) {
  constexpr T kPi = T(3.14159265358979323846);
  const Batch<T> opposite = T(2) - u;
  const Batch<T> sine = xsimd::sqrt(u * opposite);
  const Batch<T> small = xsimd::min(u, opposite);
  const Batch<T> acute = multiply_add(sine * small, polynomial(kArcCosine<T>, small), sine);
  return {T(1) - u, sine, xsimd::select(u > broadcast(T(1)), kPi - acute, acute)};
}
template <class T>
GRADGRAM_INLINE Batch<T> clamp_versine(const Batch<T>& u) {
  return xsimd::min(xsimd::max(u, broadcast(T(0))), broadcast(T(2)));
}
/// asin(s), |s| <= 1 up to rounding.
template <class T>
GRADGRAM_INLINE Batch<T> arc_sine(const Batch<T>& s) {
  return T(1.57079632679489661923) - angle_of(clamp_versine(Batch<T>(T(1) - s))).angle;
}

/// Calls entry(delta, theta, row, column) -> {delta, theta} for a register of entries at a time, rounded up.
template <class T>
struct Entry {
  Batch<T> delta, theta;
};
template <class T, class Function>
GRADGRAM_INLINE void each_entry(const CovarianceBlock<T>& block, const Function& function) {
  for (std::size_t r = 0; r < block.rows; ++r) {
    T* const delta = block.delta + r * block.stride;
    if (block.theta == nullptr) {
      for (std::size_t i = 0; i < block.columns; i += kLanes<T>) {
        store(delta + i, function(load(delta + i), broadcast(T(0)), r, i).delta);
      }
    } else {
      T* const theta = block.theta + r * block.stride;
      for (std::size_t i = 0; i < block.columns; i += kLanes<T>) {
        const Entry<T> out = function(load(delta + i), load(theta + i), r, i);
        store(delta + i, out.delta);
        store(theta + i, out.theta);
      }
    }
  }
}

/// 1 - cosine, from delta = (r_l - r_r)^2 / 2 + r_l r_r (1 - cosine); 0 where a variance is.
template <class T>
GRADGRAM_INLINE Batch<T> versine(const CovarianceBlock<T>& block, const Batch<T>& delta, std::size_t r,
                                 std::size_t i) {
  const Batch<T> gap = broadcast(block.left_factor[r]) - load(block.right_factor + i);
  const Batch<T> rest = delta - gap * (gap * T(0.5));
  return clamp_versine(Batch<T>(rest * (broadcast(block.left_inverse[r]) * load(block.right_inverse + i))));
}
template <class T>
GRADGRAM_INLINE Batch<T> mean_of(const T* left, const T* right, std::size_t r, std::size_t i) {
  return T(0.5) * (broadcast(left[r]) + load(right + i));
}

/// Delta of the post-activations with covariance `value`. Equal pre-activations stay equal: rounding must not
/// tell them apart, since later layers may magnify that.
template <class T>
GRADGRAM_INLINE Batch<T> delta_after(const CovarianceBlock<T>& block, const Batch<T>& before,
                                     const Batch<T>& value, std::size_t r, std::size_t i) {
  const Batch<T> zero = broadcast(T(0));
  const Batch<T> after = mean_of(block.left_moment, block.right_moment, r, i) - value;
  return xsimd::select(before == zero, zero, Batch<T>(xsimd::max(after, zero)));
}

template <class T>
void covariance_affine(const CovarianceBlock<T>& block, T weight, T theta_weight,
                       T covariance_weight) noexcept {
  const T half = covariance_weight / 2;
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> after = weight * delta;
        const Batch<T> moments = multiply_add(broadcast(half), load(block.right_moment + i),
                                              broadcast(half * block.left_moment[r]));
        return Entry<T>{after, multiply_add(broadcast(theta_weight), theta,
                                            multiply_add(broadcast(-covariance_weight), after, moments))};
      });
}

/// Registers of entries that pass the arc-cosine kernel stage by stage: one after the other their chains
/// would fill the scheduler with instructions that wait.
#if defined(__AVX512F__)
inline constexpr std::size_t kArcCosineUnroll = 4;
#else
inline constexpr std::size_t kArcCosineUnroll = 2;
#endif

template <class T, std::size_t Count>
GRADGRAM_INLINE void arc_cosine_entries(const CovarianceBlock<T>& block, std::size_t r, std::size_t i,
                                        T scale, T turn) {
  constexpr std::size_t kTerms = sizeof(kArcCosine<T>) / sizeof(T);
  constexpr T kPi = T(3.14159265358979323846);
  T* const delta = block.delta + r * block.stride + i;
  const Batch<T> left = broadcast(block.left_factor[r]);
  const Batch<T> left_inverse = broadcast(block.left_inverse[r]);
  const auto each = [](const auto& body) __attribute__((always_inline)) {
    Unroll<0, Count>::run(body);
  };
  Batch<T> u[Count], small[Count], sine[Count], angle[Count];
  each([&](std::size_t k) __attribute__((always_inline)) {
    const Batch<T> gap = left - load(block.right_factor + i + k * kLanes<T>);
    const Batch<T> rest = load(delta + k * kLanes<T>) - gap * (gap * T(0.5));
    const Batch<T> inverse = left_inverse * load(block.right_inverse + i + k * kLanes<T>);
    // Not zero, so that the root has an inverse: the angle is far below rounding.
    u[k] = xsimd::min(xsimd::max(Batch<T>(rest * inverse), broadcast(kLeastVersine<T>)), broadcast(T(2)));
    const Batch<T> opposite = T(2) - u[k];
    small[k] = xsimd::min(u[k], opposite);
    sine[k] = plane_root<T>(xsimd::max(Batch<T>(u[k] * opposite), broadcast(kLeastVersine<T>)));
    angle[k] = broadcast(kArcCosine<T>[kTerms - 1]);
  });
  Unroll<1, kTerms>::run([&](std::size_t t) __attribute__((always_inline)) {
    each([&](std::size_t k) __attribute__((always_inline)) {
      angle[k] = multiply_add(angle[k], small[k], broadcast(kArcCosine<T>[kTerms - 1 - t]));
    });
  });
  each([&](std::size_t k) __attribute__((always_inline)) {
    sine[k] *= broadcast(T(1) / kPlaneRoot<T>);
    const Batch<T> acute = multiply_add(sine[k] * small[k], angle[k], sine[k]);
    const Batch<T> whole = xsimd::select(u[k] > broadcast(T(1)), kPi - acute, acute);
    const Batch<T> lune = sine[k] - (T(1) - u[k]) * whole;
    const Batch<T> covariance = (turn * left) * load(block.right_factor + i + k * kLanes<T>);
    store(delta + k * kLanes<T>, Batch<T>(scale * load(delta + k * kLanes<T>) - covariance * lune));
    if (block.theta == nullptr) return;
    T* const theta = block.theta + r * block.stride + i + k * kLanes<T>;
    store(theta, Batch<T>(load(theta) * (scale - turn * whole)));
  });
}

template <class T>
void covariance_arc_cosine(const CovarianceBlock<T>& block, T scale, T turn) noexcept {
  constexpr std::size_t kStep = kArcCosineUnroll * kLanes<T>;
  for (std::size_t r = 0; r < block.rows; ++r) {
    std::size_t i = 0;
    for (; i + kStep <= block.columns; i += kStep) {
      arc_cosine_entries<T, kArcCosineUnroll>(block, r, i, scale, turn);
    }
    for (; i < block.columns; i += kLanes<T>) arc_cosine_entries<T, 1>(block, r, i, scale, turn);
  }
}

template <class T>
void covariance_erf(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> covariance = mean_of(block.left_variance, block.right_variance, r, i) - delta;
        const Batch<T> factor = broadcast(block.left_factor[r]) * load(block.right_factor + i);
        const Batch<T> sine = T(2) * covariance * factor;
        const Batch<T> value = T(0.63661977236758134308) * arc_sine(sine);
        const Batch<T> slope = T(1.27323954473516268615) * factor / xsimd::sqrt(T(1) - sine * sine);
        return Entry<T>{delta_after(block, delta, value, r, i), theta * slope};
      });
}

/// E[u Phi(u) v Phi(v)] by Stein's lemma, with P = E[Phi(u) Phi(v)] and d = E[Phi'(u) Phi'(v)].
template <class T>
void covariance_gelu(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> covariance = mean_of(block.left_variance, block.right_variance, r, i) - delta;
        const Batch<T> left = broadcast(block.left_factor[r]);
        const Batch<T> right = load(block.right_factor + i);
        const Batch<T> left2 = left * left;
        const Batch<T> right2 = right * right;
        const Batch<T> factor = left * right;
        const Batch<T> sine = covariance * factor;
        const Batch<T> remaining = T(1) - sine * sine;
        const Batch<T> d = T(0.15915494309189533577) * factor / xsimd::sqrt(remaining);
        const Batch<T> p = T(0.25) + T(0.15915494309189533577) * arc_sine(sine);
        const Batch<T> square = covariance * covariance;
        const Batch<T> value =
            broadcast(block.left_variance[r]) * d * (load(block.right_variance + i) - square * left2) +
            covariance * p + square * d * right2;
        const Batch<T> slope = p + covariance * d * (left2 + right2 + factor * factor / remaining);
        return Entry<T>{delta_after(block, delta, value, r, i), theta * slope};
      });
}

/// E[sin u sin v] and E[cos u cos v] are the half difference and half sum of exp(-delta) and
/// exp(delta - q_l - q_r); each other's slope.
template <class T, bool Sine>
void covariance_wave(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> near = T(0.5) * xsimd::exp(-delta);
        const Batch<T> far =
            T(0.5) * xsimd::exp(delta - T(2) * mean_of(block.left_variance, block.right_variance, r, i));
        const Batch<T> sines = near - far;
        const Batch<T> cosines = near + far;
        return Entry<T>{delta_after(block, delta, Sine ? sines : cosines, r, i),
                        theta * (Sine ? cosines : sines)};
      });
}

template <class T>
void covariance_sign(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> mean = mean_of(block.left_moment, block.right_moment, r, i);
        const Batch<T> turned = T(0.63661977236758134308) * angle_of(versine(block, delta, r, i)).angle;
        // Moments are 1, or 0 where the variance is: then the covariance is 0.
        return Entry<T>{xsimd::select(mean > broadcast(T(0.75)), turned, mean), theta};
      });
}

template <class T>
void covariance_monomial(const CovarianceBlock<T>& block, std::size_t degree, const T* value,
                         const T* slope) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r, std::size_t i)
                 __attribute__((always_inline)) {
                   const Batch<T> cosine = T(1) - versine(block, delta, r, i);
                   const Batch<T> product = broadcast(block.left_factor[r]) * load(block.right_factor + i);
                   Batch<T> values = broadcast(value[degree]);
                   Batch<T> slopes = broadcast(slope[degree]);
                   Batch<T> power = broadcast(T(1));
                   for (std::size_t k = degree; k-- > 0;) {
                     values = multiply_add(values, cosine, broadcast(value[k]));
                     slopes = multiply_add(slopes, cosine, broadcast(slope[k]));
                     if (k > 0) power *= product;
                   }
                   return Entry<T>{delta_after(block, delta, Batch<T>(values * (power * product)), r, i),
                                   theta * (slopes * power)};
                 });
}

template <class T>
void covariance_series(const CovarianceBlock<T>& block, const CovarianceSeries<T>& series) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> cosine = T(1) - versine(block, delta, r, i);
        const T* const left_value = series.left_value + r * series.terms;
        const T* const left_slope = series.left_slope + r * series.terms;
        Batch<T> value = broadcast(T(0));
        Batch<T> slope = broadcast(T(0));
        for (std::size_t k = series.terms; k-- > 0;) {
          value = multiply_add(value, cosine,
                               broadcast(left_value[k]) * load(series.right_value + k * series.stride + i));
          slope = multiply_add(slope, cosine,
                               broadcast(left_slope[k]) * load(series.right_slope + k * series.stride + i));
        }
        return Entry<T>{delta_after(block, delta, value, r, i), theta * slope};
      });
}

template <class T>
void covariance_normalize(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> inverse = broadcast(block.left_inverse[r]) * load(block.right_inverse + i);
        const Batch<T> mean = mean_of(block.left_moment, block.right_moment, r, i);
        return Entry<T>{xsimd::select(mean > broadcast(T(0.75)), versine(block, delta, r, i), mean),
                        theta * inverse};
      });
}

template <class T>
void covariance_scaled_sum(const T* const* in, std::size_t count, T scale, T* out, std::size_t n) noexcept {
  std::size_t i = 0;
  // Two registers at a time hide the latency of the additions.
  for (; i + 2 * kLanes<T> <= n; i += 2 * kLanes<T>) {
    Batch<T> low = broadcast(T(0));
    Batch<T> high = broadcast(T(0));
    for (std::size_t k = 0; k < count; ++k) {
      low += load(in[k] + i);
      high += load(in[k] + i + kLanes<T>);
    }
    store(out + i, Batch<T>(scale * low));
    store(out + i + kLanes<T>, Batch<T>(scale * high));
  }
  for (; i < n; i += kLanes<T>) {
    const std::size_t left = n - i < kLanes<T> ? n - i : kLanes<T>;
    Batch<T> sum = broadcast(T(0));
    for (std::size_t k = 0; k < count; ++k) sum += load_first(in[k] + i, left);
    store_first(out + i, Batch<T>(scale * sum), left);
  }
}

template <class T>
void covariance_squared_differences(const T* left, const T* right, std::size_t stride, std::size_t channels,
                                    T scale, T* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; i += kLanes<T>) {
    Batch<T> sum = broadcast(T(0));
    for (std::size_t c = 0; c < channels; ++c) {
      const Batch<T> difference = broadcast(left[c]) - load(right + c * stride + i);
      sum = multiply_add(difference, difference, sum);
    }
    store(out + i, Batch<T>(scale * sum));
  }
}

template <class T>
constexpr CovarianceTable<T> make_covariance_table(const char* isa) {
  return {isa,
          kLanes<T>,
          covariance_affine<T>,
          covariance_arc_cosine<T>,
          covariance_erf<T>,
          covariance_gelu<T>,
          covariance_wave<T, true>,
          covariance_wave<T, false>,
          covariance_sign<T>,
          covariance_monomial<T>,
          covariance_series<T>,
          covariance_normalize<T>,
          covariance_scaled_sum<T>,
          covariance_squared_differences<T>,
          set_cosine_layer<T>,
          cosine_run<T>,
          plane_layer<T>,
          plane_input<T>,
          plane_sums<T>,
          plane_windows<T>};
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
