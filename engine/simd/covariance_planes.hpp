#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine/simd/covariance.hpp"
#include "engine/simd/vector.hpp"

/// The arc-cosine recursion on registers of pairs of pixels: see PlaneRun.
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

/// a0 + a1, a2 + a3, ..., b0 + b1, ..., across the whole register.
GRADGRAM_INLINE Batch<float> add_neighbours(const Batch<float>& a, const Batch<float>& b) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
#elif defined(__AVX2__)
  const __m256d sums = _mm256_castps_pd(_mm256_hadd_ps(a, b));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(sums, 0xd8));
#else
  return _mm_add_ps(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xdd));
#endif
}
GRADGRAM_INLINE Batch<double> add_neighbours(const Batch<double>& a, const Batch<double>& b) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  return _mm512_add_pd(_mm512_permutex2var_pd(a, even, b), _mm512_permutex2var_pd(a, odd, b));
#elif defined(__AVX2__)
  return _mm256_permute4x64_pd(_mm256_hadd_pd(a, b), 0xd8);
#else
  return _mm_add_pd(_mm_unpacklo_pd(a, b), _mm_unpackhi_pd(a, b));
#endif
}

/// Registers of cells that go through a layer together, stage by stage: one chain of a root and a polynomial
/// after the other would fill the scheduler with instructions that wait.
inline constexpr std::size_t kPlaneUnroll = 2;

/// Stands for a radius that is known only when it runs.
inline constexpr std::size_t kAnyRadius = ~std::size_t{0};

/// kPlaneRoot sqrt(z) for z > 1e-35, within 1e-7 relative in f32. The estimate and a Newton step are half as
/// many instructions' time as the root.
#if defined(__AVX512F__)
template <class T>
inline constexpr T kPlaneRoot = sizeof(T) == 4 ? 2 : 1;
#else
template <class T>
inline constexpr T kPlaneRoot = 1;
#endif
template <class T>
GRADGRAM_INLINE Batch<T> plane_root(const Batch<T>& z) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const Batch<T> y = _mm512_rsqrt14_ps(z);
    const Batch<T> root = z * y;
    return root * negate_multiply_add(root, y, broadcast(T(3)));
  }
#endif
  return xsimd::sqrt(z);
}

/// Stands for 1 - cos 0, so that its root has an inverse; the angle is below 1e-15 and below 1e-150.
template <class T>
inline constexpr T kLeastVersine = sizeof(T) == 4 ? T(1e-30) : T(1e-300);

/// a + (drop ? 0 : b).
template <class T>
GRADGRAM_INLINE Batch<T> add_unless(const Mask<T>& drop, const Batch<T>& a, const Batch<T>& b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_add_ps(a, static_cast<__mmask16>(~static_cast<__mmask16>(drop)), a, b);
  } else {
    return _mm512_mask_add_pd(a, static_cast<__mmask8>(~static_cast<__mmask8>(drop)), a, b);
  }
#else
  return a + xsimd::select(drop, broadcast(T(0)), b);
#endif
}

/// a b + c where `which`, c elsewhere.
template <class T>
GRADGRAM_INLINE Batch<T> multiply_add_where(const Mask<T>& which, const Batch<T>& a, const Batch<T>& b,
                                            const Batch<T>& c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask3_fmadd_ps(a, b, c, static_cast<__mmask16>(which));
  } else {
    return _mm512_mask3_fmadd_pd(a, b, c, static_cast<__mmask8>(which));
  }
#else
  return xsimd::select(which, multiply_add(a, b, c), c);
#endif
}

/// a b where `which`, a elsewhere.
template <class T>
GRADGRAM_INLINE Batch<T> multiply_where(const Mask<T>& which, const Batch<T>& a, const Batch<T>& b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_mul_ps(a, static_cast<__mmask16>(which), a, b);
  } else {
    return _mm512_mask_mul_pd(a, static_cast<__mmask8>(which), a, b);
  }
#else
  return xsimd::select(which, a * b, a);
#endif
}

/// A load that is not repeated at every use: registers across two cache lines take two accesses each.
template <class T>
GRADGRAM_INLINE Batch<T> load_once(const T* source) {
  typename Batch<T>::register_type value = load(source);
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#else
  asm("" : "+x"(value));
#endif
  return value;
}

/// To and from room for one register.
template <class T>
GRADGRAM_INLINE void store_mask(T* target, const Mask<T>& mask) {
#if defined(__AVX512F__)
  const auto bits = static_cast<std::uint16_t>(static_cast<__mmask16>(mask));
  std::memcpy(target, &bits, sizeof(bits));
#else
  store(target, xsimd::select(mask, broadcast(T(1)), broadcast(T(0))));
#endif
}
template <class T>
GRADGRAM_INLINE Mask<T> load_mask(const T* source) {
#if defined(__AVX512F__)
  std::uint16_t bits = 0;
  std::memcpy(&bits, source, sizeof(bits));
  using Register = typename Mask<T>::register_type;
  return Mask<T>(static_cast<Register>(bits));
#else
  return load(source) > broadcast(T(0.5));
#endif
}

/// Where the numbers, 0 or 1, are 1.
template <class T>
GRADGRAM_INLINE Mask<T> plane_mask(const T* numbers) {
  return load(numbers) > broadcast(T(0.5));
}

/// Sums over a window of lines, of one cell: `state` and `square`, the left image's, are of the window's
/// first line, `outside` the masks of its middle, `drops` two of them.
template <std::size_t Radius, bool First, bool Seam, class T>
GRADGRAM_INLINE void sum_lines(const T* state, std::ptrdiff_t pitch, std::ptrdiff_t radius, const T* square,
                               std::ptrdiff_t cells, const T* outside, const Mask<T> (&drops)[2],
                               Batch<T>& delta, Batch<T>& theta) {
  // `state` is the first line of the window.
  constexpr auto kNext = static_cast<std::ptrdiff_t>(kLanes<T>);
  const T* const middle = state + (Radius == 1 ? 1 : radius) * pitch;
  delta = load(middle);
  theta = load(middle + kNext);
  const auto add = [&](std::ptrdiff_t k, std::ptrdiff_t which) __attribute__((always_inline)) {
    const T* const line = state + k * pitch;
    const Batch<T> more_delta = load(line);
    const Batch<T> more_theta = load(line + kNext);
    if constexpr (Seam) {
      const Mask<T> drop = Radius == 1 ? drops[which] : plane_mask(outside + which * kNext);
      const Batch<T> alone = broadcast(square[k * cells]);
      delta += xsimd::select(drop, alone, more_delta);
      if constexpr (First) {
        theta += xsimd::select(drop, alone, more_theta);
      } else {
        theta = add_unless(drop, theta, more_theta);
      }
    } else {
      delta += more_delta;
      theta += more_theta;
    }
  };
  if constexpr (Radius == 1) {
    add(0, 0);
    add(2, 1);
  } else {
    for (std::ptrdiff_t k = 0; k <= 2 * radius; ++k) {
      if (k != radius) add(k, k < radius ? k : k - 1);
    }
  }
}

/// Sum over the window of cells around `at`.
template <class T>
GRADGRAM_INLINE Batch<T> sum_cells(const T* at, std::ptrdiff_t radius) {
  constexpr std::ptrdiff_t kPair = 2 * kLanes<T>;
  Batch<T> sum = load(at - radius * kPair);
  for (std::ptrdiff_t k = 1 - radius; k <= radius; ++k) sum += load(at + k * kPair);
  return sum;
}

/// What does not change along a layer.
template <class T>
struct PlaneConstants {
  static constexpr std::size_t kTerms = sizeof(kPlaneArcCosine<T>) / sizeof(T);
  T weights[kTerms];
  T ratio, straight, twice_bias;
  T two_less_straight, straight_less_one;
  T unscaled;     ///< 1 / ratio^2
  T right_angle;  ///< 1 - its cosine, as held where all angles are acute
};

/// One line through the layer, its sums over lines given; makes those of a later one on the way, before the
/// states that they need are overwritten: one waits for memory, the other for arithmetic. Half of a pair of
/// cells' arithmetic is done beside the other half of the pair before.
template <class T, bool Obtuse, bool First, bool Seam>
GRADGRAM_INLINE void plane_line(const PlaneRun<T>& run, const PlaneConstants<T>& constants, std::size_t line,
                                std::size_t partner_line, const T* sums, T* later_sums) {
  constexpr std::size_t kTerms = PlaneConstants<T>::kTerms;
  constexpr std::size_t kPair = 2 * kLanes<T>;
  Batch<T> weights[kTerms];
  Unroll<0, kTerms>::run([&](std::size_t k) __attribute__((always_inline)) {
    weights[k] = broadcast(constants.weights[k]);
  });
  const Batch<T> ratio = broadcast(constants.ratio);
  const Batch<T> unscaled = broadcast(constants.unscaled);
  const Batch<T> least = broadcast(kLeastVersine<T>);
  // Copies: what is stored might be `run`.
  const std::size_t cells = run.cells;
  const auto pitch = static_cast<std::ptrdiff_t>(run.pitch);
  const auto radius_lines = static_cast<std::ptrdiff_t>(run.radius_lines);
  const auto radius_cells = static_cast<std::ptrdiff_t>(run.radius_cells);
  T* const state = run.state + line * run.pitch;
  const std::size_t later = line + run.radius_lines;
  const T* const left = run.left_root + line * cells;
  const T* inverse = run.left_inverse + line * cells;
  const T* const later_square = run.left_square + line * cells;
  const T* const outside = Seam ? run.outside + later * run.masks * kLanes<T> : nullptr;
  const Mask<T> drops[2] = {Mask<T>(false), Mask<T>(false)};  // of windows of one known size only
  const T* const right = run.right_root + partner_line * run.right_line;
  const T* const right_inverse = run.right_inverse + partner_line * run.right_line;
  const PlaneCell* places = run.places;
  const T* from = left;
  T* here = state;
  const T* square = later_square;
  // Of the pair of cells under way, up to the argument of the root.
  const T* at[kPlaneUnroll];
  Batch<T> gap[kPlaneUnroll], covariance[kPlaneUnroll], delta[kPlaneUnroll], cosine[kPlaneUnroll];
  Batch<T> argument[kPlaneUnroll], z[kPlaneUnroll], product[kPlaneUnroll], thetas[kPlaneUnroll];
  const auto both = [&](const auto& body) __attribute__((always_inline)) {
    Unroll<0, kPlaneUnroll>::run(body);
  };
  const auto sum_later = [&](std::size_t k) __attribute__((always_inline)) {
    at[k] = sums + places[k].entry;
    Batch<T> sum[2];
    sum_lines<kAnyRadius, First, Seam>(here + k * kPair, pitch, radius_lines, square + k,
                                       static_cast<std::ptrdiff_t>(cells), outside, drops, sum[0], sum[1]);
    store(later_sums + places[k].entry, sum[0]);
    store(later_sums + places[k].entry + kLanes<T>, sum[1]);
  };
  const auto read = [&](std::size_t k) __attribute__((always_inline)) {
    const std::size_t partner = places[k].partner;
    const Batch<T> a = broadcast(from[k]);
    const Batch<T> b = load(right + partner);
    delta[k] = sum_cells(at[k], radius_cells);
    gap[k] = multiply_add(b, broadcast(T(-0.5)), a);
    covariance[k] = a * b;  // where the cosine is 1
    product[k] = broadcast(inverse[k]) * load(right_inverse + partner);
  };
  const auto find_cosine = [&](std::size_t k) __attribute__((always_inline)) {
    const Batch<T> rest = delta[k] - gap[k] * gap[k];
    Batch<T> u = xsimd::max(Batch<T>(rest * product[k]), least);
    if constexpr (Obtuse) u = xsimd::min(u, broadcast(T(2)));
    // Where all are acute, u is held times ratio^2.
    cosine[k] = Obtuse ? Batch<T>(T(1) - u) : negate_multiply_add(u, unscaled, broadcast(T(1)));
    argument[k] = u;  // one less the absolute value of the cosine
    if constexpr (Obtuse && First) {
      const Batch<T> other =
          sum_cells(at[k] + kLanes<T>, radius_cells) + (broadcast(constants.twice_bias) - gap[k] * gap[k]);
      const Batch<T> opposite = xsimd::min(xsimd::max(Batch<T>(other * product[k]), least), broadcast(T(1)));
      argument[k] = xsimd::select(u > broadcast(T(1)), opposite, u);
    } else if constexpr (Obtuse) {
      argument[k] = xsimd::max(xsimd::min(u, Batch<T>(T(2) - u)), least);
    }
    z[k] = multiply_add(argument[k], Obtuse ? Batch<T>(T(1) - argument[k]) : cosine[k], argument[k]);
    thetas[k] = covariance[k] * cosine[k];
    if constexpr (!First) thetas[k] += sum_cells(at[k] + kLanes<T>, radius_cells);
  };
  both(sum_later);
  both(read);
  both(find_cosine);
  for (std::size_t begin = 0; begin < cells; begin += kPlaneUnroll) {
    // Of the pair that is finished.
    Batch<T> u[kPlaneUnroll], root[kPlaneUnroll], angle[kPlaneUnroll], one[kPlaneUnroll],
        both_roots[kPlaneUnroll];
    Batch<T> before[kPlaneUnroll], apart[kPlaneUnroll], tangent[kPlaneUnroll];
    T* const to = here;
    both([&](std::size_t k) __attribute__((always_inline)) {
      u[k] = argument[k];
      root[k] = z[k];
      both_roots[k] = covariance[k];
      before[k] = delta[k];
      one[k] = cosine[k];
      apart[k] = gap[k];
      tangent[k] = thetas[k];
      angle[k] = weights[kTerms - 1];
    });
    places += kPlaneUnroll;
    from += kPlaneUnroll;
    inverse += kPlaneUnroll;
    square += kPlaneUnroll;
    here += kPlaneUnroll * kPair;
    const auto term = [&](std::size_t t) __attribute__((always_inline)) {
      both([&](std::size_t k) __attribute__((always_inline)) {
        angle[k] = multiply_add(angle[k], u[k], weights[kTerms - 1 - t]);
      });
    };
    both([&](std::size_t k) __attribute__((always_inline)) { root[k] = xsimd::sqrt(root[k]); });
    Unroll<1, 3>::run(term);
    sum_later(0);
    read(0);
    Unroll<3, 5>::run(term);
    sum_later(1);
    read(1);
    Unroll<5, 7>::run(term);
    find_cosine(0);
    Unroll<7, kTerms>::run(term);
    find_cosine(1);
    both([&](std::size_t k) __attribute__((always_inline)) {
      if constexpr (Obtuse) {
        const Batch<T> acute = root[k] * angle[k];  // times the ratio
        const Mask<T> behind = one[k] < broadcast(T(0));
        const Batch<T> whole = xsimd::select(behind, constants.straight - acute, acute);
        const Batch<T> versine = xsimd::select(behind, T(1) - one[k], u[k]);  // 1 - cosine loses a small one
        const Batch<T> turned = multiply_add(one[k], whole, versine) - ratio * root[k];
        store(to + k * kPair, multiply_add(both_roots[k], turned, Batch<T>(apart[k] * apart[k])));
        store(to + k * kPair + kLanes<T>, Batch<T>(tangent[k] - tangent[k] * whole));
      } else {
        const Batch<T> whole = root[k] * angle[k];  // times the ratio
        const Batch<T> turned = negate_multiply_add(one[k], whole, root[k]);
        store(to + k * kPair, negate_multiply_add(both_roots[k], turned, before[k]));
        store(to + k * kPair + kLanes<T>, negate_multiply_add(tangent[k], whole, tangent[k]));
      }
    });
  }
}

/// The cells beside both ends of a line's two runs, of which one pixel lies outside, to the entries from
/// `places` on.
template <class T>
GRADGRAM_INLINE void plane_frame_cells(const PlaneRun<T>& run, std::size_t line, std::size_t partner_line,
                                       const std::size_t (&places)[4], T* sums) {
  constexpr std::size_t kPair = 2 * kLanes<T>;
  const std::size_t radius = run.radius_cells;
  const std::size_t turn = run.cells - run.cell_offset;
  const auto put = [&](std::size_t entry, const Batch<T>& value) {
    store(sums + entry * kPair, value);
    store(sums + entry * kPair + kLanes<T>, run.first ? value : broadcast(T(0)));
  };
  const T* const left_window = run.left_window + line * run.cells;
  const auto left_alone = [&](std::size_t cell) { return broadcast(left_window[cell]); };
  const T* const window = run.right_window + partner_line * run.right_line;
  const auto right_alone = [&](std::size_t cell) { return load(window + cell * run.right_cell); };
  const Batch<T> none = broadcast(T(0));
  for (std::size_t i = 0; i < radius; ++i) {
    const std::size_t offset = run.cell_offset;
    const bool apart = run.outside != nullptr;
    put(places[0] + i, apart && offset + i >= radius ? right_alone(offset + i - radius) : none);
    put(places[1] + i, apart && i < offset ? left_alone(turn + i) : none);
    put(places[2] + i, apart && turn + i >= radius ? left_alone(turn + i - radius) : none);
    put(places[3] + i, apart && offset + i < run.cells ? right_alone(offset + i) : none);
  }
}

template <class T>
GRADGRAM_INLINE void plane_frame_line(const PlaneRun<T>& run, T* state, const T* square) {
  constexpr std::size_t kPair = 2 * kLanes<T>;
  // Copies: what is stored might be `run`.
  const bool apart = run.outside != nullptr;
  const bool first = run.first;
  const std::size_t cells = run.cells;
  const PlaneCell* const places = run.places;
  for (std::size_t cell = 0; cell < cells; ++cell) {
    const Batch<T> value = apart ? load(square + places[cell].partner) : broadcast(T(0));
    store(state + cell * kPair, value);
    store(state + cell * kPair + kLanes<T>, first ? value : broadcast(T(0)));
  }
}

/// The lines above the first and below the last one.
template <class T>
void plane_frame_above(const PlaneRun<T>& run) noexcept {
  for (std::size_t k = 1; k <= run.radius_lines; ++k) {
    plane_frame_line(run, run.state - k * run.pitch, run.right_square + run.line_offset - k);
  }
}
template <class T>
void plane_frame_below(const PlaneRun<T>& run) noexcept {
  const T* const last = run.right_square + (run.lines - 1 + run.line_offset) % run.lines;
  for (std::size_t k = 1; k <= run.radius_lines; ++k) {
    plane_frame_line(run, run.state + (run.lines - 1 + k) * run.pitch, last + k);
  }
}

template <class T>
PlaneConstants<T> plane_constants(const PlaneRun<T>& run) noexcept {
  const bool obtuse = run.first || run.obtuse;
  PlaneConstants<T> constants;
  constants.unscaled = T(1) / (run.ratio * run.ratio);
  constants.right_angle = run.ratio * run.ratio;
  T weight = obtuse ? run.ratio : T(1);
  for (std::size_t k = 0; k < PlaneConstants<T>::kTerms; ++k) {
    constants.weights[k] = kPlaneArcCosine<T>[k] * weight;
    if (!obtuse) weight *= constants.unscaled;
  }
  constants.ratio = run.ratio;
  const double straight = 3.14159265358979323846 * static_cast<double>(run.ratio);
  constants.straight = static_cast<T>(straight);
  constants.two_less_straight = static_cast<T>(2 - straight);
  constants.straight_less_one = static_cast<T>(straight - 1);
  constants.twice_bias = T(2) * run.bias;
  return constants;
}

/// Which cosines may occur.
enum class PlaneAngles {
  Acute,
  AcuteFar,  ///< the same where rounding may take 1 - cosine above one: see PlaneRun::far_apart
  Any,
  First,  ///< any, of a first layer: see PlaneRun
};

/// Registers of a cell between the halves of plane_three_line: versine of the acute angle, what is left of
/// delta, product of the roots, theta, and where the angle is not acute. Of a first layer, whose theta
/// follows from the others, without it.
template <PlaneAngles Angles>
inline constexpr std::size_t kHalfway = Angles == PlaneAngles::Any ? 5 : 4;

/// Windows of 3 x 3, which most layers of most nets have. Half of the arithmetic of a line,
/// up to the argument of the root, is done beside the other half of the line before: each would wait for
/// itself alone. `halfway` holds what lies between, [cells][kHalfway]; `frames` the cells beside both runs.
/// A cell's state is replaced after all windows that see it have been summed: the window of the next line's
/// cell beside it is summed one step earlier.
template <class T, PlaneAngles Angles, bool Begins, bool Ends, bool Seam>
GRADGRAM_INLINE void plane_three_line(const PlaneRun<T>& run, const PlaneConstants<T>& constants,
                                      std::size_t line, std::size_t partner_line, const T* frames,
                                      T* halfway) {
  constexpr bool kFar = Angles == PlaneAngles::AcuteFar;
  constexpr bool kAcute = Angles == PlaneAngles::Acute || kFar;
  constexpr bool kFirst = Angles == PlaneAngles::First;
  constexpr std::size_t kTerms = PlaneConstants<T>::kTerms;
  constexpr std::size_t kPair = 2 * kLanes<T>;
  constexpr std::size_t kHalves = kHalfway<Angles> * kLanes<T>;
  constexpr std::size_t kBehind = kHalves - kLanes<T>;
  Batch<T> weights[kTerms];
  Unroll<0, kTerms>::run([&](std::size_t k) __attribute__((always_inline)) {
    weights[k] = broadcast(constants.weights[k]);
  });
  // Where all are acute, versines are held times ratio^2.
  const Batch<T> unscaled = broadcast(constants.unscaled);
  const Batch<T> ratio = broadcast(constants.ratio);
  const Batch<T> least = broadcast(kLeastVersine<T>);
  const std::size_t cells = run.cells;
  const auto pitch = static_cast<std::ptrdiff_t>(run.pitch);
  // The line before: the first of the window, and the one that is finished.
  T* const state = run.state + static_cast<std::ptrdiff_t>(line) * pitch - pitch;
  const T* const left = run.left_root + line * cells;
  const T* const inverse = run.left_inverse + line * cells;
  const T* const square =
      run.left_square + static_cast<std::ptrdiff_t>(line * cells) - static_cast<std::ptrdiff_t>(cells);
  const T* const outside = Seam ? run.outside + line * run.masks * kLanes<T> : nullptr;
  Mask<T> drops[2] = {Mask<T>(false), Mask<T>(false)};
  if constexpr (Seam) {
    drops[0] = plane_mask(outside);
    drops[1] = plane_mask(outside + kLanes<T>);
  }
  const std::size_t right_cell = run.right_cell;
  const auto sum = [&](std::size_t cell, Batch<T> & delta, Batch<T> & theta) __attribute__((always_inline)) {
    sum_lines<1, kFirst, Seam>(state + cell * kPair, pitch, 1, square + cell,
                               static_cast<std::ptrdiff_t>(cells), outside, drops, delta, theta);
  };
  const std::size_t turn = cells - run.cell_offset;
  for (const std::size_t behind : {std::size_t{0}, std::size_t{1}}) {
    const std::size_t begin = behind == 0 ? 0 : turn;
    const std::size_t end = behind == 0 ? turn : cells;
    if (begin == end) continue;
    const T* const frame = frames + behind * 2 * kPair;
    const std::size_t first_partner =
        partner_line * run.right_line + (behind == 0 ? run.cell_offset : 0) * right_cell;
    const T* right = run.right_root + first_partner;
    const T* right_inverse = run.right_inverse + first_partner;
    Batch<T> before[2], here[2];  // delta and theta of the windows of lines
    if constexpr (Begins) {
      before[0] = load(frame);
      before[1] = load(frame + kLanes<T>);
      sum(begin, here[0], here[1]);
    }
    const auto step = [&]<std::size_t Count>(std::size_t cell, std::integral_constant<std::size_t, Count>)
        __attribute__((always_inline)) {
      T* const half = halfway + cell * kHalves;
      const auto each = [&](const auto& body) __attribute__((always_inline)) {
        Unroll<0, Count>::run(body);
      };
      Batch<T> u[Count], cosine[Count], root[Count], angle[Count];
      const auto term = [&](std::size_t t) __attribute__((always_inline)) {
        each([&](std::size_t k) __attribute__((always_inline)) {
          angle[k] = multiply_add(angle[k], u[k], weights[kTerms - 1 - t]);
        });
      };
      if constexpr (Ends) {
        each([&](std::size_t k) __attribute__((always_inline)) {
          u[k] = load(half + k * kHalves);
          cosine[k] = kAcute ? negate_multiply_add(u[k], unscaled, broadcast(T(1))) : Batch<T>(T(1) - u[k]);
          root[k] = xsimd::sqrt(multiply_add(u[k], cosine[k], u[k]));
          angle[k] = weights[kTerms - 1];
        });
        Unroll<1, 3>::run(term);
      }
      Batch<T> delta[Count], theta[Count];
      if constexpr (Begins) {
        Batch<T> next[2], after[2];
        if constexpr (Count == 2) sum(cell + 1, next[0], next[1]);
        if (cell + Count < end) {
          sum(cell + Count, after[0], after[1]);
        } else {
          after[0] = load(frame + kPair);
          after[1] = load(frame + kPair + kLanes<T>);
        }
        if constexpr (Count == 2) {
          const Batch<T> shared[2] = {here[0] + next[0], here[1] + next[1]};
          delta[0] = before[0] + shared[0];
          theta[0] = before[1] + shared[1];
          delta[1] = shared[0] + after[0];
          theta[1] = shared[1] + after[1];
          before[0] = next[0];
          before[1] = next[1];
        } else {
          delta[0] = before[0] + (here[0] + after[0]);
          theta[0] = before[1] + (here[1] + after[1]);
        }
        here[0] = after[0];
        here[1] = after[1];
      }
      if constexpr (Ends) {
        Unroll<3, kTerms>::run(term);
        each([&](std::size_t k) __attribute__((always_inline)) {
          const T* const from = half + k * kHalves;
          T* const to = state + (cell + k) * kPair;
          const Batch<T> rest = load(from + kLanes<T>);
          const Batch<T> product = load(from + 2 * kLanes<T>);
          const Batch<T> whole = root[k] * angle[k];  // times the ratio
          if constexpr (kAcute) {
            const Batch<T> turned = negate_multiply_add(cosine[k], whole, root[k]);
            const Batch<T> tangent = multiply_add(product, cosine[k], load(from + 3 * kLanes<T>));
            store(to, negate_multiply_add(product, turned, rest));
            store(to + kLanes<T>, negate_multiply_add(tangent, whole, tangent));
          } else {
            // Of b = pi - a, sin a - a cos a = sin b - b cos b + pi cos b.
            const Mask<T> behind = load_mask(from + kBehind);
            const Batch<T> lune = negate_multiply_add(cosine[k], angle[k], ratio);
            const Batch<T> turned =
                multiply_add_where(behind, cosine[k], broadcast(constants.two_less_straight),
                                   negate_multiply_add(root[k], lune, u[k]));
            store(to, multiply_add(product, turned, rest));
            if constexpr (kFirst) {
              const Batch<T> size = product * cosine[k];
              store(to + kLanes<T>,
                    negate_multiply_add(
                        size, whole, multiply_where(behind, size, broadcast(constants.straight_less_one))));
            } else {
              const Batch<T> tangent = load(from + 3 * kLanes<T>);
              const Batch<T> turn =
                  xsimd::select(behind, Batch<T>(broadcast(constants.straight) - whole), whole);
              store(to + kLanes<T>, negate_multiply_add(tangent, turn, tangent));
            }
          }
        });
      }
      if constexpr (Begins) {
        each([&](std::size_t k) __attribute__((always_inline)) {
          T* const to = half + k * kHalves;
          const Batch<T> a = broadcast(left[cell + k]);
          const Batch<T> b = load_once(right + k * right_cell);
          const Batch<T> gap = multiply_add(b, broadcast(T(-0.5)), a);
          const Batch<T> product = broadcast(inverse[cell + k]) * load(right_inverse + k * right_cell);
          const Batch<T> both = a * b;  // where the cosine is 1
          store(to + 2 * kLanes<T>, both);
          if constexpr (kAcute) {
            const Batch<T> rest = negate_multiply_add(gap, gap, delta[k]);
            const Batch<T> versine = xsimd::max(Batch<T>(rest * product), least);
            store(to, kFar ? Batch<T>(xsimd::min(versine, broadcast(constants.right_angle))) : versine);
            store(to + kLanes<T>, delta[k]);
            store(to + 3 * kLanes<T>, theta[k]);
          } else if constexpr (kFirst) {
            const Batch<T> square = gap * gap;
            const Batch<T> opposite = theta[k] + broadcast(constants.twice_bias);
            const Batch<T> rest = xsimd::min(delta[k], opposite) - square;
            store(to, xsimd::min(xsimd::max(Batch<T>(rest * product), least), broadcast(T(1))));
            store(to + kLanes<T>, square);
            store_mask(to + kBehind, opposite < delta[k]);
          } else {
            const Batch<T> square = gap * gap;
            const Batch<T> rest = delta[k] - square;
            const Batch<T> u = xsimd::min(xsimd::max(Batch<T>(rest * product), least), broadcast(T(2)));
            store(to, xsimd::max(xsimd::min(u, Batch<T>(T(2) - u)), least));
            store(to + kLanes<T>, square);
            store(to + 3 * kLanes<T>, multiply_add(both, Batch<T>(T(1) - u), theta[k]));
            store_mask(to + kBehind, u > broadcast(T(1)));
          }
        });
        right += Count * right_cell;
        right_inverse += Count * right_cell;
      }
    };
    std::size_t cell = begin;
    for (; cell + 1 < end; cell += 2) step(cell, std::integral_constant<std::size_t, 2>());
    if (cell < end) step(cell, std::integral_constant<std::size_t, 1>());
  }
}

/// Step `line` <= lines of a layer: begins that line and finishes the one before.
template <class T, PlaneAngles Angles>
void plane_three_step(const PlaneRun<T>& run, const PlaneConstants<T>& constants, std::size_t line) noexcept {
  constexpr std::size_t kFrames[4] = {0, 1, 2, 3};
  T* const frames = run.sums;
  T* const halfway = frames + 4 * 2 * kLanes<T>;
  if (line == run.lines) {
    plane_three_line<T, Angles, false, true, false>(run, constants, line, 0, frames, halfway);
    return;
  }
  if (line == 0) plane_frame_above(run);
  if (line + 1 == run.lines) plane_frame_below(run);
  const std::size_t partner_line = (line + run.line_offset) % run.lines;
  plane_frame_cells(run, line, partner_line, kFrames, frames);
  const bool seam = run.seams != nullptr && run.seams[line] != 0;
  if (line == 0 && seam) {
    plane_three_line<T, Angles, true, false, true>(run, constants, line, partner_line, frames, halfway);
  } else if (line == 0) {
    plane_three_line<T, Angles, true, false, false>(run, constants, line, partner_line, frames, halfway);
  } else if (seam) {
    plane_three_line<T, Angles, true, true, true>(run, constants, line, partner_line, frames, halfway);
  } else {
    plane_three_line<T, Angles, true, true, false>(run, constants, line, partner_line, frames, halfway);
  }
}

/// A layer of windows of any size.
template <class T, bool Obtuse, bool First>
void plane_lines(const PlaneRun<T>& run) noexcept {
  plane_frame_above(run);
  plane_frame_below(run);
  const std::size_t ahead = run.radius_lines;
  const std::size_t slots = ahead + 1;
  const std::size_t turn = run.cells - run.cell_offset;
  const std::size_t frames[4] = {0, run.radius_cells + turn, 2 * run.radius_cells + turn,
                                 3 * run.radius_cells + run.cells};
  const std::size_t slot = (run.cells + 4 * run.radius_cells + 2) * 2 * kLanes<T>;
  const PlaneConstants<T> constants = plane_constants(run);
  const auto has_seam = [&](std::size_t line) { return run.seams != nullptr && run.seams[line] != 0; };
  const auto sum_line = [&](std::size_t line) {
    T* const sums = run.sums + line % slots * slot;
    plane_frame_cells(run, line, (line + run.line_offset) % run.lines, frames, sums);
    const bool seam = has_seam(line);
    for (std::size_t cell = 0; cell < run.cells; ++cell) {
      const T* const state = run.state + cell * 2 * kLanes<T> +
                             (static_cast<std::ptrdiff_t>(line) - static_cast<std::ptrdiff_t>(ahead)) *
                                 static_cast<std::ptrdiff_t>(run.pitch);
      const T* const square = run.left_square + cell +
                              (static_cast<std::ptrdiff_t>(line) - static_cast<std::ptrdiff_t>(ahead)) *
                                  static_cast<std::ptrdiff_t>(run.cells);
      const T* const outside = seam ? run.outside + line * run.masks * kLanes<T> : nullptr;
      const auto pitch = static_cast<std::ptrdiff_t>(run.pitch);
      const auto radius = static_cast<std::ptrdiff_t>(run.radius_lines);
      const auto cells = static_cast<std::ptrdiff_t>(run.cells);
      T* const to = sums + run.places[cell].entry;
      const Mask<T> drops[2] = {Mask<T>(false), Mask<T>(false)};
      Batch<T> sum[2];
      if (seam) {
        sum_lines<kAnyRadius, First, true>(state, pitch, radius, square, cells, outside, drops, sum[0],
                                           sum[1]);
      } else {
        sum_lines<kAnyRadius, First, false>(state, pitch, radius, square, cells, outside, drops, sum[0],
                                            sum[1]);
      }
      store(to, sum[0]);
      store(to + kLanes<T>, sum[1]);
    }
  };
  for (std::size_t line = 0; line < ahead && line < run.lines; ++line) sum_line(line);
  std::size_t partner_line = run.line_offset;
  std::size_t now = 0;
  std::size_t then = ahead;
  for (std::size_t line = 0; line < run.lines; ++line) {
    T* const later = run.sums + then * slot;
    const T* const sums = run.sums + now * slot;
    bool seam = false;
    if (ahead == 0) {
      // No earlier line summed this one, and windows of cells reach ahead of what plane_line sums itself.
      sum_line(line);
    } else if (line + ahead < run.lines) {
      const std::size_t later_partner = partner_line + ahead;
      plane_frame_cells(run, line + ahead,
                        later_partner < run.lines ? later_partner : later_partner % run.lines, frames, later);
      seam = has_seam(line + ahead);
    }
    if (seam) {
      plane_line<T, Obtuse, First, true>(run, constants, line, partner_line, sums, later);
    } else {
      plane_line<T, Obtuse, First, false>(run, constants, line, partner_line, sums, later);
    }
    partner_line = partner_line + 1 == run.lines ? 0 : partner_line + 1;
    now = now + 1 == slots ? 0 : now + 1;
    then = then + 1 == slots ? 0 : then + 1;
  }
}

/// Multiplies a line of the state.
template <class T>
void scale_line(const PlaneRun<T>& run, std::size_t line) noexcept {
  const Batch<T> factor = broadcast(run.factor);
  T* const state = run.state + line * run.pitch;
  const std::size_t size = run.cells * 2 * kLanes<T>;
  for (std::size_t i = 0; i < size; i += kLanes<T>) store(state + i, Batch<T>(factor * load(state + i)));
}

/// A line of what PlaneInput says, of `Channels`, or of any number.
template <std::size_t Channels, class T>
GRADGRAM_INLINE void input_line(const PlaneRun<T>& run, const PlaneInput<T>& input, std::size_t line) {
  constexpr std::size_t kPair = 2 * kLanes<T>;
  // Copies: what is stored might be `run`.
  const std::size_t cells = run.cells;
  const std::size_t channels = Channels == 0 ? input.channels : Channels;
  const std::size_t left_stride = input.left_stride;
  const std::size_t right_stride = input.right_stride;
  const PlaneCell* const places = run.places;
  const T* const left = input.left + line * cells;
  const T* const partners = input.right + (line + run.line_offset) % run.lines * run.right_line;
  T* const state = run.state + line * run.pitch;
  for (std::size_t cell = 0; cell < cells; ++cell) {
    const T* const right = partners + places[cell].partner;
    Batch<T> difference, sum;
    const auto add = [&](std::size_t c) __attribute__((always_inline)) {
      const Batch<T> a = broadcast(left[c * left_stride + cell]);
      const Batch<T> b = load_once(right + c * right_stride);
      const Batch<T> less = a - b;
      const Batch<T> more = a + b;
      difference = c == 0 ? Batch<T>(less * less) : multiply_add(less, less, difference);
      sum = c == 0 ? Batch<T>(more * more) : multiply_add(more, more, sum);
    };
    add(0);
    if constexpr (Channels == 0) {
      for (std::size_t c = 1; c < channels; ++c) add(c);
    } else {
      Unroll<1, Channels>::run(add);
    }
    store(state + cell * kPair, difference);
    store(state + cell * kPair + kLanes<T>, sum);
  }
}

template <class T>
void plane_input_line(const PlaneRun<T>& run, const PlaneInput<T>& input, std::size_t line) noexcept {
  if (input.channels == 1) {
    input_line<1>(run, input, line);
  } else if (input.channels == 3) {
    input_line<3>(run, input, line);
  } else {
    input_line<0>(run, input, line);
  }
}

/// A line of the state, summed over windows of cells.
template <std::size_t Cells, class T>
GRADGRAM_INLINE void windows_line(const PlaneRun<T>& run, const PlaneWindows<T>& windows, std::size_t line) {
  constexpr std::size_t kPair = 2 * kLanes<T>;
  // Copies: what is stored might be `windows`.
  const std::size_t window_cells = Cells == 0 ? windows.window_cells : Cells;
  const std::size_t split = windows.split;
  const std::size_t pitch = windows.pitch;
  const std::size_t cells = run.cells / window_cells;
  const T* const state = run.state + line * run.pitch;
  const auto sum = [&](std::size_t begin, std::size_t end, bool begins, T* to) {
    for (std::size_t cell = 0; cell < cells; ++cell) {
      const T* const from = state + cell * window_cells * kPair;
      Batch<T> delta = load(from + begin * kPair);
      Batch<T> theta = load(from + begin * kPair + kLanes<T>);
      for (std::size_t k = begin + 1; k < end; ++k) {
        delta += load(from + k * kPair);
        theta += load(from + k * kPair + kLanes<T>);
      }
      store(to, begins ? delta : Batch<T>(load(to) + delta));
      store(to + pitch, begins ? theta : Batch<T>(load(to + pitch) + theta));
      to += 2 * pitch;
    }
  };
  const std::size_t at = line * cells * 2 * pitch;
  if (Cells == 2 && split == 2) {
    sum(0, 2, windows.here_begins, windows.here + at);
  } else if (Cells == 2) {
    sum(0, 1, windows.here_begins, windows.here + at);
    sum(1, 2, windows.beyond_begins, windows.beyond + at);
  } else {
    sum(0, split, windows.here_begins, windows.here + at);
    if (split < window_cells) sum(split, window_cells, windows.beyond_begins, windows.beyond + at);
  }
}

template <class T>
void plane_windows_line(const PlaneRun<T>& run, const PlaneWindows<T>& windows, std::size_t line) noexcept {
  if (windows.window_cells == 2) {
    windows_line<2>(run, windows, line);
  } else {
    windows_line<0>(run, windows, line);
  }
}

/// Lines come in before windows of 3 x 3 need them and are summed when they are finished, while they are in a
/// first-level cache, which a plane is too large for.
template <class T>
void plane_layer(const PlaneRun<T>& run, const PlaneInput<T>* input,
                 const PlaneWindows<T>* windows) noexcept {
  const std::size_t lines = run.lines;
  const auto begin = [&](std::size_t line) {
    if (input != nullptr) plane_input_line(run, *input, line);
    if (run.factor != T(1)) scale_line(run, line);
  };
  if (run.radius_lines != 1 || run.radius_cells != 1) {
    for (std::size_t line = 0; line < lines; ++line) begin(line);
    if (run.first) {
      plane_lines<T, true, true>(run);
    } else if (run.obtuse) {
      plane_lines<T, true, false>(run);
    } else {
      plane_lines<T, false, false>(run);
    }
    for (std::size_t line = 0; windows != nullptr && line < lines; ++line) {
      plane_windows_line(run, *windows, line);
    }
    return;
  }
  const PlaneConstants<T> constants = plane_constants(run);
  begin(0);
  for (std::size_t line = 0; line <= lines; ++line) {
    if (line + 1 < lines) begin(line + 1);
    if (run.first) {
      plane_three_step<T, PlaneAngles::First>(run, constants, line);
    } else if (run.obtuse) {
      plane_three_step<T, PlaneAngles::Any>(run, constants, line);
    } else if (run.far_apart) {
      plane_three_step<T, PlaneAngles::AcuteFar>(run, constants, line);
    } else {
      plane_three_step<T, PlaneAngles::Acute>(run, constants, line);
    }
    if (windows != nullptr && line > 0) plane_windows_line(run, *windows, line - 1);
  }
}

/// Lines in T, all of them in f64.
template <class T>
void plane_sums(const PlaneRun<T>& run, double* deltas, double* thetas) noexcept {
  constexpr std::size_t kPair = 2 * kLanes<T>;
  for (std::size_t line = 0; line < run.lines; ++line) {
    Batch<T> delta = broadcast(T(0));
    Batch<T> theta = broadcast(T(0));
    for (std::size_t cell = 0; cell < run.cells; ++cell) {
      const T* const at = run.state + line * run.pitch + cell * kPair;
      delta += load(at);
      theta += load(at + kLanes<T>);
    }
    alignas(64) T lanes[kPair];
    delta.store_aligned(lanes);
    theta.store_aligned(lanes + kLanes<T>);
    for (std::size_t j = 0; j < kLanes<T>; ++j) {
      deltas[j] += static_cast<double>(lanes[j]);
      thetas[j] += static_cast<double>(lanes[kLanes<T> + j]);
    }
  }
}

/// Windows of 2 x 2, and lines that fill registers: the second of two lines sees every right line one offset
/// earlier.
template <class T>
void fold_twos(const PlaneFold<T>& fold) noexcept {
  // Copies: what is stored might be `fold`.
  const std::size_t lines = fold.lines;
  const std::size_t rows = 2 * fold.cells;
  const std::size_t folded_pitch = fold.folded_pitch;
  const std::size_t line = rows * lines;
  double* out = fold.folded;
  for (std::size_t first = 0; first < lines; first += 2) {
    for (std::size_t row = 0; row < rows; ++row) {
      const T* const from = fold.sums + first * line + row * lines;
      const T* const later = from + line;
      for (std::size_t i = 0; i < lines; i += 2 * kLanes<T>) {
        const bool both = i + kLanes<T> < lines;
        const Batch<T> a = load(from + i) + load(later + i - 1);
        const Batch<T> b = both ? Batch<T>(load(from + i + kLanes<T>) + load(later + i + kLanes<T> - 1)) : a;
        const Batch<T> pairs = add_neighbours(a, b);
        if constexpr (sizeof(T) == 8) {
          if (both) {
            store(out + i / 2, pairs);
          } else {
            store_first(out + i / 2, pairs, kLanes<T> / 2);
          }
        } else {
          const Widened wide = widen(pairs);
          store(out + i / 2, wide.low);
          if (both) store(out + i / 2 + kLanes<double>, wide.high);
        }
      }
      // What stands before the first offset is not the last one.
      out[0] = static_cast<double>((from[0] + later[lines - 1]) + (from[1] + later[0]));
      out += folded_pitch;
    }
  }
}

template <class T>
void plane_fold(const PlaneFold<T>& fold) noexcept {
  const std::size_t lines = fold.lines;
  if (fold.window_lines == 2 && fold.pitch == lines) {
    fold_twos(fold);
    return;
  }
  const std::size_t window = fold.window_lines;
  const std::size_t windows = lines / window;
  const std::size_t line = fold.cells * 2 * fold.pitch;
  T* const ring = fold.ring;
  double* out = fold.folded;
  for (std::size_t first = 0; first < lines; first += window) {
    for (std::size_t row = 0; row < 2 * fold.cells; ++row) {
      const T* const from = fold.sums + first * line + row * fold.pitch;
      for (std::size_t i = 0; i < lines; ++i) ring[i] = from[i];
      // Lines behind the first see every right line that many offsets earlier.
      for (std::size_t k = 1; k < window; ++k) {
        const T* const later = from + k * line;
        for (std::size_t i = 0; i < k; ++i) ring[i] += later[lines + i - k];
        for (std::size_t i = k; i < lines; ++i) ring[i] += later[i - k];
      }
      for (std::size_t w = 0; w < windows; ++w) {
        T sum = ring[w * window];
        for (std::size_t k = 1; k < window; ++k) sum += ring[w * window + k];
        out[w] = static_cast<double>(sum);
      }
      out += fold.folded_pitch;
    }
  }
}

template <class T>
bool plane_pooled(const PlaneRun<T>& run, const PlanePooled<T>& pooled) noexcept {
  constexpr std::size_t kPair = 2 * kLanes<T>;
  const Batch<T> scale = broadcast(pooled.scale);
  const Batch<T> versine = broadcast(pooled.versine);
  const Mask<T> live = plane_mask(pooled.live);
  Mask<T> near = Mask<T>(false);
  const T* sums = pooled.sums;
  for (std::size_t line = 0; line < run.lines; ++line) {
    const std::size_t partner_line = (line + run.line_offset) % run.lines * run.right_line;
    for (std::size_t cell = 0; cell < run.cells; ++cell) {
      const std::size_t at = line * run.cells + cell;
      const std::size_t partner = partner_line + run.places[cell].partner;
      const Batch<T> beside = broadcast(pooled.left[at]) + load(pooled.right + partner);
      const Batch<T> delta = multiply_add(scale, load(sums), beside);
      const Batch<T> root = broadcast(pooled.left_root[at]);
      const Batch<T> right_root = load(pooled.right_root + partner);
      const Batch<T> gap = root - right_root;
      const Batch<T> rest = negate_multiply_add(Batch<T>(gap * T(0.5)), gap, delta);
      near = near | (rest < versine * (root * right_root));
      T* const to = run.state + line * run.pitch + cell * kPair;
      store(to, delta);
      store(to + kLanes<T>, Batch<T>(scale * load(sums + pooled.pitch)));
      sums += 2 * pooled.pitch;
    }
  }
  return xsimd::any(near & live);
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
