#pragma once

#include <cstddef>

#include "engine/simd/covariance.hpp"
#include "engine/simd/covariance_planes.hpp"
#include "engine/simd/vector.hpp"

/// The arc-cosine recursion on cosines, all layers at once: see CosineRun.
namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// acos(1 - u) / sqrt(u (2 - u)) on [0, 1], of least largest relative error: 7.0e-8 and 6.5e-15.
template <class T>
inline constexpr T kCosineArc[] = {0};
template <>
inline constexpr float kCosineArc<float>[] = {
    1.0000000703886768F,  0.33332217293018863F,   0.13362192787875159F,
    0.05430238493578959F, 0.03918474253122608F,   -0.025188517858613975F,
    0.06064115328335134F, -0.042566777063202166F, 0.017479059202453809F};
template <>
inline constexpr double kCosineArc<double>[] = {
    0.99999999999999347628,     0.33333333333751518146,   0.13333333288892930811,   0.057142875813609953462,
    0.02539641283579457138,     0.011549541043656323352,  0.0052791242648397048842, 0.0027870085203922811621,
    -0.00016174130398448180945, 0.0049020727720212615169, -0.010332833656816916493, 0.019502284527805815798,
    -0.026428144843710005431,   0.026744242559204236052,  -0.01932336955304982967,  0.0095458158785978731906,
    -0.0028868952368993233706,  0.00041326694698694192591};

/// Stands for 1 - cos 0, so that its root has an inverse, and the square of the root's error is not denormal.
template <class T>
inline constexpr T kLeastCosine = sizeof(T) == 4 ? T(1e-30) : T(1e-200);

/// kPlaneRoot sqrt(z). In f64 as well, an estimate and two steps keep the pipelines less busy than the
/// divider would be.
template <class T>
GRADGRAM_INLINE Batch<T> cosine_root(const Batch<T>& z) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8) {
    const Batch<T> estimate = _mm512_rsqrt14_pd(z);
    const Batch<T> root = z * estimate;
    const Batch<T> error = negate_multiply_add(root, estimate, broadcast(T(1)));  // below 2^-13
    Batch<T> more = multiply_add(error, broadcast(T(0.3125)), broadcast(T(0.375)));
    more = multiply_add(error, more, broadcast(T(0.5)));
    return multiply_add(Batch<T>(root * error), more, root);
  }
#endif
  return plane_root<T>(z);
}

/// Registers that pass the layers together, stage by stage: as many as there is room for, since one chain of
/// a root and a polynomial waits for itself most of the time.
#if defined(__AVX512F__)
inline constexpr std::size_t kCosineUnroll = 6;
#else
inline constexpr std::size_t kCosineUnroll = 2;
#endif

template <class T>
inline constexpr std::size_t kCosineTerms = sizeof(kCosineArc<T>) / sizeof(T);

template <class T>
void set_cosine_layer(CosineLayer<T>& layer) noexcept {
  static_assert(kCosineTerms<T> <= sizeof(layer.weights) / sizeof(T));
  layer.ratio /= kPlaneRoot<T>;
  for (std::size_t k = 0; k < kCosineTerms<T>; ++k) layer.weights[k] = kCosineArc<T>[k] * layer.ratio;
}

template <std::size_t Count, bool Obtuse, bool Tangent, class T>
GRADGRAM_INLINE void cosine_step(const CosineLayer<T>& layer, Batch<T> (&u)[Count],
                                 Batch<T> (&theta)[Count]) {
  const auto each = [](const auto& body) __attribute__((always_inline)) {
    Unroll<0, Count>::run(body);
  };
  const Batch<T> least = broadcast(kLeastCosine<T>);
  Batch<T> cosine[Count], small[Count], root[Count], angle[Count];
  each([&](std::size_t k) __attribute__((always_inline)) {
    cosine[k] = T(1) - u[k];
    small[k] = Obtuse ? Batch<T>(xsimd::max(xsimd::min(u[k], Batch<T>(T(2) - u[k])), least)) : u[k];
    root[k] = multiply_add(small[k], Batch<T>(T(1) - small[k]), small[k]);
    if constexpr (Tangent) theta[k] = multiply_add(cosine[k], broadcast(layer.affines), theta[k]);
  });
  each([&](std::size_t k) __attribute__((always_inline)) {
    root[k] = cosine_root<T>(root[k]);
    angle[k] = broadcast(layer.weights[kCosineTerms<T> - 1]);
  });
  Unroll<1, kCosineTerms<T>>::run([&](std::size_t t) __attribute__((always_inline)) {
    each([&](std::size_t k) __attribute__((always_inline)) {
      angle[k] = multiply_add(angle[k], small[k], broadcast(layer.weights[kCosineTerms<T> - 1 - t]));
    });
  });
  each([&](std::size_t k) __attribute__((always_inline)) {
    if constexpr (Obtuse) {
      const Batch<T> straight = broadcast(T(3.14159265358979323846) * kPlaneRoot<T> * layer.ratio);
      const Batch<T> acute = root[k] * angle[k];
      const Batch<T> whole = xsimd::select(cosine[k] < broadcast(T(0)), straight - acute, acute);
      if constexpr (Tangent) theta[k] = theta[k] - theta[k] * whole;
      u[k] = multiply_add(cosine[k], whole, u[k]) - broadcast(layer.ratio) * root[k];
    } else {
      if constexpr (Tangent) theta[k] = theta[k] - theta[k] * (root[k] * angle[k]);
      u[k] = u[k] - root[k] * (broadcast(layer.ratio) - cosine[k] * angle[k]);
    }
    u[k] = xsimd::max(u[k], least);
  });
}

/// `Count` registers of row r from column i; of the last one, `lanes` are written.
template <std::size_t Count, bool Tangent, class T>
__attribute__((noinline)) void cosine_columns(const CosineRun<T>& run, std::size_t r, std::size_t i,
                                              std::size_t lanes, Batch<T>& outermost) {
  const auto each = [](const auto& body) __attribute__((always_inline)) {
    Unroll<0, Count>::run(body);
  };
  Batch<T> u[Count], theta[Count];
  Batch<T> most = outermost;
  each([&](std::size_t k) __attribute__((always_inline)) {
    const Batch<T> entry = load(run.entries + r * run.stride + i + k * kLanes<T>);
    most = xsimd::max(xsimd::abs(entry), most);
    u[k] = xsimd::min(xsimd::max(Batch<T>(T(1) - entry), broadcast(kLeastCosine<T>)), broadcast(T(2)));
    theta[k] = broadcast(T(0));
  });
  outermost = most;
  for (std::size_t layer = 0; layer < run.layer_count; ++layer) {
    if (run.layers[layer].obtuse) {
      cosine_step<Count, true, Tangent>(run.layers[layer], u, theta);
    } else {
      cosine_step<Count, false, Tangent>(run.layers[layer], u, theta);
    }
  }
  const Batch<T> left = broadcast(run.left_root[r]);
  each([&](std::size_t k) __attribute__((always_inline)) {
    const std::size_t column = i + k * kLanes<T>;
    const Batch<T> roots = left * load(run.right_root + column);
    const Batch<T> cosine = T(1) - u[k];
    const auto put = [&](T * out, const Batch<T>& value) __attribute__((always_inline)) {
      if (k + 1 < Count || lanes == kLanes<T>) {
        store(out + r * run.out_stride + column, value);
      } else {
        store_first(out + r * run.out_stride + column, value, lanes);
      }
    };
    if (run.covariance != nullptr) put(run.covariance, roots * cosine);
    if constexpr (Tangent) {
      put(run.tangent, roots * multiply_add(cosine, broadcast(run.affines_after), theta[k]));
    }
  });
}

/// cosine_columns for a `count` that is known only when it runs, at most Count.
template <std::size_t Count, bool Tangent, class T>
GRADGRAM_INLINE void cosine_group(std::size_t count, const CosineRun<T>& run, std::size_t r, std::size_t i,
                                  std::size_t lanes, Batch<T>& outermost) {
  if constexpr (Count > 0) {
    if (count == Count) {
      cosine_columns<Count, Tangent, T>(run, r, i, lanes, outermost);
    } else {
      cosine_group<Count - 1, Tangent, T>(count, run, r, i, lanes, outermost);
    }
  }
}

template <bool Tangent, class T>
void cosine_rows(const CosineRun<T>& run, T* outermost) {
  const std::size_t registers = (run.columns + kLanes<T> - 1) / kLanes<T>;
  const std::size_t groups = (registers + kCosineUnroll - 1) / kCosineUnroll;
  const std::size_t last = run.columns - (registers - 1) * kLanes<T>;
  for (std::size_t r = 0; r < run.rows; ++r) {
    Batch<T> most = broadcast(T(0));
    // In groups of nearly one size: a small one takes as long as a large one.
    for (std::size_t group = 0, done = 0; group < groups; ++group) {
      const std::size_t count = (registers - done + groups - group - 1) / (groups - group);
      const std::size_t lanes = group + 1 == groups ? last : kLanes<T>;
      cosine_group<kCosineUnroll, Tangent, T>(count, run, r, done * kLanes<T>, lanes, most);
      done += count;
    }
    alignas(64) T lanes[kLanes<T>];
    most.store_aligned(lanes);
    outermost[r] = lanes[0];
    for (const T value : lanes) outermost[r] = value > outermost[r] ? value : outermost[r];
  }
}

template <class T>
void cosine_run(const CosineRun<T>& run, T* outermost) noexcept {
  if (run.columns == 0) return;
  if (run.tangent != nullptr) {
    cosine_rows<true, T>(run, outermost);
  } else {
    cosine_rows<false, T>(run, outermost);
  }
}

/// sum_c (left[c] - sign right[c])^2 / (2 channels) of `Count` pairs from number i.
template <std::size_t Count, class T>
GRADGRAM_INLINE void squared_distances(const NearRows<T>& run, std::size_t i) {
  const auto each = [](const auto& body) __attribute__((always_inline)) {
    Unroll<0, Count>::run(body);
  };
  const T* rights[Count];
  Batch<T> signs[Count];
  double sums[Count] = {};
  each([&](std::size_t k) __attribute__((always_inline)) {
    rights[k] = run.rights + run.columns[i + k] * run.channels;
    signs[k] = broadcast(static_cast<T>(run.signs[i + k]));
  });
  // Sums in T stay short.
  constexpr std::size_t kPiece = 1024;
  for (std::size_t begin = 0; begin < run.channels; begin += kPiece) {
    const std::size_t end = run.channels - begin < kPiece ? run.channels : begin + kPiece;
    Batch<T> squares[Count];
    each([&](std::size_t k) __attribute__((always_inline)) { squares[k] = broadcast(T(0)); });
    const auto add = [&](std::size_t k, const Batch<T>& left, const Batch<T>& right)
        __attribute__((always_inline)) {
      const Batch<T> difference = negate_multiply_add(signs[k], right, left);
      squares[k] = multiply_add(difference, difference, squares[k]);
    };
    std::size_t c = begin;
    for (; c + kLanes<T> <= end; c += kLanes<T>) {
      const Batch<T> left = load(run.left + c);
      each([&](std::size_t k) __attribute__((always_inline)) { add(k, left, load(rights[k] + c)); });
    }
    if (c < end) {
      const Batch<T> left = load_first(run.left + c, end - c);
      each([&](std::size_t k)
               __attribute__((always_inline)) { add(k, left, load_first(rights[k] + c, end - c)); });
    }
    each([&](std::size_t k)
             __attribute__((always_inline)) { sums[k] += static_cast<double>(xsimd::hadd(squares[k])); });
  }
  const double unit = 1 / (2 * static_cast<double>(run.channels));
  each([&](std::size_t k) __attribute__((always_inline)) { run.versines[i + k] = unit * sums[k]; });
}

template <class T>
void near_versines(const NearRows<T>& run) noexcept {
  std::size_t i = 0;
  for (; i + 4 <= run.count; i += 4) squared_distances<4, T>(run, i);
  switch (run.count - i) {
    case 3:
      squared_distances<3, T>(run, i);
      break;
    case 2:
      squared_distances<2, T>(run, i);
      break;
    case 1:
      squared_distances<1, T>(run, i);
      break;
    default:
      break;
  }
}

/// One layer. With b the acute angle, of either pole, and L = ratio (sin b - b cos b), a cosine above zero
/// becomes 1 - (w - L), and one below -mirror (1 - w) + L.
template <std::size_t Count, bool Tangent, class T>
GRADGRAM_INLINE void near_step(const CosineLayer<T>& layer, Batch<T> (&w)[Count], Batch<T> (&theta)[Count],
                               Mask<T> (&obtuse)[Count]) {
  const auto each = [](const auto& body) __attribute__((always_inline)) {
    Unroll<0, Count>::run(body);
  };
  const Batch<T> least = broadcast(kLeastCosine<T>);
  Batch<T> root[Count], angle[Count];
  each([&](std::size_t k) __attribute__((always_inline)) {
    root[k] = cosine_root<T>(multiply_add(w[k], Batch<T>(T(1) - w[k]), w[k]));
    angle[k] = broadcast(layer.weights[kCosineTerms<T> - 1]);
  });
  Unroll<1, kCosineTerms<T>>::run([&](std::size_t t) __attribute__((always_inline)) {
    each([&](std::size_t k) __attribute__((always_inline)) {
      angle[k] = multiply_add(angle[k], w[k], broadcast(layer.weights[kCosineTerms<T> - 1 - t]));
    });
  });
  each([&](std::size_t k) __attribute__((always_inline)) {
    const Batch<T> size = T(1) - w[k];  // of the cosine
    const Batch<T> mirror = broadcast(layer.mirror);
    const Batch<T> turned = root[k] * angle[k];
    const Batch<T> lune = root[k] * (broadcast(layer.ratio) - size * angle[k]);
    if constexpr (Tangent) {
      theta[k] = multiply_add(xsimd::select(obtuse[k], -size, size), broadcast(layer.affines), theta[k]);
      theta[k] *= xsimd::select(obtuse[k], Batch<T>(mirror + turned), Batch<T>(T(1) - turned));
    }
    const Batch<T> rise = multiply_add(mirror, w[k], lune);
    const Batch<T> above = broadcast(layer.one_less) + rise;  // 1 + the new cosine, of one below zero
    const Batch<T> below = broadcast(layer.one_more) - rise;  // 1 - it
    w[k] = xsimd::max(xsimd::select(obtuse[k], Batch<T>(xsimd::min(above, below)), Batch<T>(w[k] - lune)),
                      least);
    obtuse[k] = obtuse[k] & (above < below);
  });
}

template <std::size_t Count, bool Tangent>
__attribute__((noinline)) void near_columns(const NearCosines& run, std::size_t i) {
  using T = double;
  const auto each = [](const auto& body) __attribute__((always_inline)) {
    Unroll<0, Count>::run(body);
  };
  Batch<T> w[Count], theta[Count];
  Mask<T> obtuse[Count];
  each([&](std::size_t k) __attribute__((always_inline)) {
    const std::size_t at = i + k * kLanes<T>;
    w[k] = xsimd::min(xsimd::max(load(run.versines + at), broadcast(kLeastCosine<T>)), broadcast(T(1)));
    obtuse[k] = load(run.signs + at) < broadcast(T(0));
    theta[k] = broadcast(T(0));
  });
  for (std::size_t layer = 0; layer < run.layer_count; ++layer) {
    near_step<Count, Tangent, T>(run.layers[layer], w, theta, obtuse);
  }
  each([&](std::size_t k) __attribute__((always_inline)) {
    const std::size_t at = i + k * kLanes<T>;
    const Batch<T> roots = broadcast(run.left_root) * load(run.right_root + at);
    const Batch<T> size = T(1) - w[k];
    const Batch<T> cosine = xsimd::select(obtuse[k], -size, size);
    if (run.covariance != nullptr) store(run.covariance + at, roots * cosine);
    if constexpr (Tangent) {
      store(run.tangent + at, roots * multiply_add(cosine, broadcast(run.affines_after), theta[k]));
    }
  });
}

template <bool Tangent>
void near_layers(const NearCosines& run) {
  constexpr std::size_t kTogether = kCosineUnroll < 4 ? kCosineUnroll : 4;
  constexpr std::size_t kStep = kTogether * kLanes<double>;
  std::size_t i = 0;
  for (; i + kStep <= run.count; i += kStep) near_columns<kTogether, Tangent>(run, i);
  for (; i < run.count; i += kLanes<double>) near_columns<1, Tangent>(run, i);
}

inline void near_cosines(const NearCosines& run) noexcept {
  if (run.tangent != nullptr) {
    near_layers<true>(run);
  } else {
    near_layers<false>(run);
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
