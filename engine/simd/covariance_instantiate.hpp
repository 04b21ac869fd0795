#pragma once

#include "engine/simd/covariance_cosines.hpp"
#include "engine/simd/covariance_parallel.hpp"
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
  Batch<T> versine, cosine, sine, angle;  ///< versine = 1 - cosine
};
template <class T>
GRADGRAM_INLINE Angle<T> angle_of(const Batch<T>& u) {
  constexpr T kPi = T(3.14159265358979323846);
  const Batch<T> opposite = T(2) - u;
  const Batch<T> sine = xsimd::sqrt(u * opposite);
  const Batch<T> small = xsimd::min(u, opposite);
  const Batch<T> acute = multiply_add(sine * small, polynomial(kArcCosine<T>, small), sine);
  return {u, T(1) - u, sine, xsimd::select(u > broadcast(T(1)), kPi - acute, acute)};
}
template <class T>
GRADGRAM_INLINE Batch<T> clamp_versine(const Batch<T>& u) {
  return xsimd::min(xsimd::max(u, broadcast(T(0))), broadcast(T(2)));
}
/// Coefficients of P in atan(x) / x = 1 + x^2 P(x^2) for |x| <= tan(pi / 8), by interpolation at Chebyshev
/// nodes: relative error 2.3e-9 and 4.9e-18.
template <class T>
inline constexpr T kArcTangent[] = {0};
template <>
inline constexpr float kArcTangent<float>[] = {-0.333333317612F, 0.199995404836F, -0.142639555980F,
                                               0.107437314908F, -0.0645192820812F};
template <>
inline constexpr double kArcTangent<double>[] = {
    -0.333333333333333301597, 0.199999999999955206778,  -0.142857142846665429225, 0.111111110152563617275,
    -0.0909090457812390189,   0.0769218319082608656369, -0.066645114473819480001, 0.0585814891280220988,
    -0.0508544973794025986,   0.0392316582955871913028, -0.0191768871190622589893};

/// atan(y / x) for x > 0 with full relative precision: neither small angles nor, through x, what is left to a
/// right one is a difference.
template <class T>
GRADGRAM_INLINE Batch<T> arc_tangent(const Batch<T>& y, const Batch<T>& x) {
  constexpr T kPi = T(3.14159265358979323846);
  constexpr T kEighth = T(0.41421356237309504880);  // tan(pi / 8)
  const Batch<T> height = xsimd::abs(y);
  const Mask<T> low = height < kEighth * x;
  const Mask<T> high = x < kEighth * height;
  // Turned back by 0, pi / 4 or pi / 2.
  const Batch<T> above = xsimd::select(low, height, xsimd::select(high, -x, Batch<T>(height - x)));
  const Batch<T> below = xsimd::select(low, x, xsimd::select(high, height, Batch<T>(height + x)));
  const Batch<T> turned =
      xsimd::select(low, broadcast(T(0)), xsimd::select(high, broadcast(kPi / 2), broadcast(kPi / 4)));
  const Batch<T> tangent = above / below;
  const Batch<T> square = tangent * tangent;
  const Batch<T> rest = multiply_add(tangent * square, polynomial(kArcTangent<T>, square), tangent);
  const Batch<T> angle = turned + rest;
  return xsimd::select(y < broadcast(T(0)), -angle, angle);
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

template <class T>
GRADGRAM_INLINE Batch<T> mean_of(const T* left, const T* right, std::size_t r, std::size_t i) {
  return T(0.5) * (broadcast(left[r]) + load(right + i));
}

/// r_l r_r (1 - cosine) = delta - (r_l - r_r)^2 / 2, in [0, 2 r_l r_r].
template <class T>
GRADGRAM_INLINE Batch<T> scaled_versine(const CovarianceBlock<T>& block, const Batch<T>& delta,
                                        const Batch<T>& product, std::size_t r, std::size_t i) {
  const Batch<T> gap = broadcast(block.left_factor[r]) - load(block.right_factor + i);
  const Batch<T> rest = delta - gap * (gap * T(0.5));
  return xsimd::min(xsimd::max(rest, broadcast(T(0))), Batch<T>(T(2) * product));
}

/// unit^2 (q_l q_r - covariance^2), which is never a difference of squares; factor = sqrt(q).
template <class T>
GRADGRAM_INLINE Batch<T> determinant(const CovarianceBlock<T>& block, const Batch<T>& delta,
                                     const Batch<T>& unit, std::size_t r, std::size_t i) {
  const Batch<T> product = broadcast(block.left_factor[r]) * load(block.right_factor + i);
  if (block.sine_squares != nullptr) {
    const Batch<T> scaled = unit * product;
    return scaled * scaled * load(block.sine_squares + r * block.stride + i);
  }
  const Batch<T> y = scaled_versine(block, delta, product, r, i);
  return (unit * y) * (unit * (T(2) * product - y));
}

/// The angle between the pre-activations, and what belongs to it; factor = sqrt(q), inverse = 1 / sqrt(q).
/// Where a variance is 0, so is the angle.
template <class T>
GRADGRAM_INLINE Angle<T> angle_between(const CovarianceBlock<T>& block, const Batch<T>& delta, std::size_t r,
                                       std::size_t i) {
  if (block.sine_squares == nullptr) {
    const Batch<T> product = broadcast(block.left_factor[r]) * load(block.right_factor + i);
    const Batch<T> inverse = broadcast(block.left_inverse[r]) * load(block.right_inverse + i);
    return angle_of(clamp_versine(Batch<T>(scaled_versine(block, delta, product, r, i) * inverse)));
  }
  const Batch<T> square = load(block.sine_squares + r * block.stride + i);
  const Batch<T> sine = xsimd::sqrt(square);
  const Batch<T> covariance = mean_of(block.left_variance, block.right_variance, r, i) - delta;
  const Batch<T> inverse = broadcast(block.left_inverse[r]) * load(block.right_inverse + i);
  // The root is the better known beside 1, the covariance beside 0.
  const Batch<T> cosine =
      xsimd::select(square < broadcast(T(0.5)), xsimd::sqrt(T(1) - square),
                    xsimd::min(Batch<T>(xsimd::abs(covariance) * inverse), broadcast(T(1))));
  const Batch<T> small = square / (T(1) + cosine);
  const Batch<T> acute = multiply_add(sine * small, polynomial(kArcCosine<T>, small), sine);
  const Mask<T> obtuse = covariance < broadcast(T(0));
  return {xsimd::select(obtuse, Batch<T>(T(1) + cosine), small), xsimd::select(obtuse, -cosine, cosine), sine,
          xsimd::select(obtuse, Batch<T>(T(3.14159265358979323846) - acute), acute)};
}
template <class T>
GRADGRAM_INLINE Batch<T> versine(const CovarianceBlock<T>& block, const Batch<T>& delta, std::size_t r,
                                 std::size_t i) {
  return angle_between(block, delta, r, i).versine;
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
  if (block.sine_squares != nullptr) {
    each_entry(
        block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                   std::size_t i) __attribute__((always_inline)) {
          const Angle<T> between = angle_between(block, delta, r, i);
          const Batch<T> lune = between.sine - between.cosine * between.angle;
          const Batch<T> product = (turn * broadcast(block.left_factor[r])) * load(block.right_factor + i);
          return Entry<T>{scale * delta - product * lune, theta * (scale - turn * between.angle)};
        });
    return;
  }
  constexpr std::size_t kStep = kArcCosineUnroll * kLanes<T>;
  for (std::size_t r = 0; r < block.rows; ++r) {
    std::size_t i = 0;
    for (; i + kStep <= block.columns; i += kStep) {
      arc_cosine_entries<T, kArcCosineUnroll>(block, r, i, scale, turn);
    }
    for (; i < block.columns; i += kLanes<T>) arc_cosine_entries<T, 1>(block, r, i, scale, turn);
  }
}

/// sine = 2 c / sqrt((1 + 2 q_l)(1 + 2 q_r)), of which 1 - sine^2 is a sum of what cannot be negative.
template <class T>
void covariance_erf(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> covariance = mean_of(block.left_variance, block.right_variance, r, i) - delta;
        const Batch<T> left = broadcast(block.left_inverse[r]);
        const Batch<T> right = load(block.right_inverse + i);
        const Batch<T> factor = left * right;
        const Batch<T> own = multiply_add(right * right, T(1) - left * left, left * left);
        const Batch<T> rest = own + determinant(block, delta, Batch<T>(factor + factor), r, i);
        const Batch<T> cosine = xsimd::sqrt(rest);
        const Batch<T> value =
            T(0.63661977236758134308) * arc_tangent(Batch<T>((factor + factor) * covariance), cosine);
        const Batch<T> slope = T(1.27323954473516268615) * factor / cosine;
        return Entry<T>{delta_after(block, delta, value, r, i), theta * slope};
      });
}

/// E[u Phi(u) v Phi(v)] by Stein's lemma, with P = E[Phi(u) Phi(v)] and d = E[Phi'(u) Phi'(v)]:
///     d (q_l (q_r + D) / (1 + q_l) + c^2 / (1 + q_r)) + c P,    D = q_l q_r - c^2.
template <class T>
void covariance_gelu(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        constexpr T kTurn = T(0.15915494309189533577);  // 1 / (2 pi)
        const Batch<T> covariance = mean_of(block.left_variance, block.right_variance, r, i) - delta;
        const Batch<T> left = broadcast(block.left_inverse[r]);
        const Batch<T> right = load(block.right_inverse + i);
        const Batch<T> left2 = left * left;
        const Batch<T> right2 = right * right;
        const Batch<T> factor = left * right;
        const Batch<T> between = determinant(block, delta, broadcast(T(1)), r, i);
        const Batch<T> rest =
            multiply_add(factor * factor, between, multiply_add(right2, T(1) - left2, left2));
        const Batch<T> cosine = xsimd::sqrt(rest);
        const Batch<T> d = kTurn * factor / cosine;
        const Batch<T> p = T(0.25) + kTurn * arc_tangent(Batch<T>(factor * covariance), cosine);
        const Batch<T> share = broadcast(block.left_variance[r]) * left2;
        const Batch<T> value =
            d * (share * (load(block.right_variance + i) + between) + covariance * (covariance * right2)) +
            covariance * p;
        const Batch<T> slope = p + covariance * d * (left2 + right2 + factor * factor / rest);
        return Entry<T>{delta_after(block, delta, value, r, i), theta * slope};
      });
}

/// E[sin u sin v] and E[cos u cos v] are the half difference and half sum of exp(-delta) and exp(-sigma),
/// where sigma = q_l + q_r - delta is what delta would be, were one input negated; each other's slope.
template <class T, bool Sine>
void covariance_wave(const CovarianceBlock<T>& block) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> mean = mean_of(block.left_variance, block.right_variance, r, i);
        const Batch<T> covariance = mean - delta;
        const Mask<T> obtuse = covariance < broadcast(T(0));
        Batch<T> sigma = mean + covariance;
        if (block.sine_squares != nullptr) {  // delta sigma = (q_l - q_r)^2 / 4 + q_l q_r - c^2
          const Batch<T> gap = T(0.5) * (broadcast(block.left_variance[r]) - load(block.right_variance + i));
          const Batch<T> product = multiply_add(gap, gap, determinant(block, delta, broadcast(T(1)), r, i));
          sigma = xsimd::select(obtuse, Batch<T>(product / delta), sigma);
        }
        const Batch<T> larger = T(0.5) * xsimd::exp(-xsimd::select(obtuse, sigma, delta));
        const Batch<T> beside = xsimd::expm1(T(-2) * xsimd::abs(covariance));
        const Batch<T> difference = -larger * beside;
        const Batch<T> sines = xsimd::select(obtuse, -difference, difference);
        const Batch<T> cosines = larger * (T(2) + beside);
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
        const Batch<T> turned = T(0.63661977236758134308) * angle_between(block, delta, r, i).angle;
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

/// With A = q_l + s, B = q_r + s' and D = A B - c^2, of each pair of squares s and s':
///     E[1(a > 0) 1(b > 0)] = 1/4 + atan(c / sqrt D) / (2 pi),    whose slope is 1 / (2 pi sqrt D),
///     E[relu(a) relu(b)]   = (sqrt D + c (pi / 2 + atan(c / sqrt D))) / (2 pi).
template <class T, bool Rectified>
void mixed_steps(const CovarianceBlock<T>& block, const CovarianceMixture<T>& mixture) noexcept {
  each_entry(
      block, [&](const Batch<T>& delta, const Batch<T>& theta, std::size_t r,
                 std::size_t i) __attribute__((always_inline)) {
        const Batch<T> covariance = mean_of(block.left_variance, block.right_variance, r, i) - delta;
        const Batch<T> between = determinant(block, delta, broadcast(T(1)), r, i);
        const Batch<T> left = broadcast(block.left_variance[r]);
        const Batch<T> right = load(block.right_variance + i);
        Batch<T> angle = broadcast(T(0));
        Batch<T> other = broadcast(T(0));  // of the roots, or of their inverses
        for (std::size_t j = 0; j < mixture.count; ++j) {
          const Batch<T> square = broadcast(mixture.squares[j]);
          const Batch<T> weight = broadcast(mixture.weights[j]);
          const Batch<T> start = multiply_add(square, right, between);
          const Batch<T> rise = left + square;
          for (std::size_t k = 0; k < mixture.count; ++k) {
            const Batch<T> root = xsimd::sqrt(multiply_add(rise, broadcast(mixture.squares[k]), start));
            const Batch<T> both = weight * mixture.weights[k];
            angle = multiply_add(both, arc_tangent(covariance, root), angle);
            other = Rectified ? multiply_add(both, root, other) : other + both / root;
          }
        }
        const Batch<T> factor = broadcast(mixture.factor);
        const Batch<T> turned = multiply_add(factor, angle, broadcast(mixture.offset));
        if constexpr (Rectified) {
          const Batch<T> value = multiply_add(factor, other, covariance * turned);
          return Entry<T>{delta_after(block, delta, value, r, i), theta * turned};
        } else {
          return Entry<T>{delta_after(block, delta, turned, r, i), theta * (factor * other)};
        }
      });
}

template <class T>
void covariance_mixture(const CovarianceBlock<T>& block, const CovarianceMixture<T>& mixture) noexcept {
  if (mixture.rectified) {
    mixed_steps<T, true>(block, mixture);
  } else {
    mixed_steps<T, false>(block, mixture);
  }
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
          covariance_mixture<T>,
          covariance_normalize<T>,
          covariance_scaled_sum<T>,
          covariance_squared_differences<T>,
          set_cosine_layer<T>,
          cosine_run<T>,
          near_versines<T>,
          near_cosines,
          parallel_pixels<T>,
          plane_layer<T>,
          plane_sums<T>,
          plane_fold<T>,
          plane_pooled<T>};
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
