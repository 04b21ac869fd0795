#pragma once

// The only door to xsimd. A translation unit that includes this file is compiled for one instruction set and
// says so:
//   GRADGRAM_SIMD_NAMESPACE   sse2, avx2 or avx512: the namespace that holds everything it defines
//   GRADGRAM_SIMD_ARCH        the xsimd architecture
// The build renames xsimd's own namespace as well (-Dxsimd=xsimd_avx512): inline functions that are compiled
// with stronger instructions must never be merged with those that shared code, or a weaker set, uses.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <xsimd/xsimd.hpp>

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

using Arch = xsimd::GRADGRAM_SIMD_ARCH;
template <class T>
using Batch = xsimd::batch<T, Arch>;
template <class T>
using Mask = xsimd::batch_bool<T, Arch>;
template <class T>
inline constexpr std::size_t kLanes = Batch<T>::size;

#define GRADGRAM_INLINE inline __attribute__((always_inline))

template <class T>
GRADGRAM_INLINE Batch<T> load(const T* source) {
  return Batch<T>::load_unaligned(source);
}
template <class T>
GRADGRAM_INLINE void store(T* target, const Batch<T>& value) {
  value.store_unaligned(target);
}
inline constexpr std::size_t kCacheLine = 64;
/// To an address aligned to the register, past the caches where a register is a cache line; a store
/// otherwise. Other threads see it after fence_streaming().
template <class T>
GRADGRAM_INLINE void store_streaming(T* target, const Batch<T>& value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_stream_ps(target, value);
  } else {
    _mm512_stream_pd(target, value);
  }
#else
  store(target, value);
#endif
}
GRADGRAM_INLINE void fence_streaming() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}
template <class T>
GRADGRAM_INLINE Batch<T> broadcast(T value) {
  return Batch<T>(value);
}

/// The first `count` < kLanes elements, zeros behind; reads nothing else.
template <class T>
GRADGRAM_INLINE Batch<T> load_first(const T* source, std::size_t count) {
  alignas(64) T lanes[kLanes<T>] = {};
  std::memcpy(lanes, source, count * sizeof(T));
  return Batch<T>::load_aligned(lanes);
}
template <class T>
GRADGRAM_INLINE void store_first(T* target, const Batch<T>& value, std::size_t count) {
  alignas(64) T lanes[kLanes<T>];
  value.store_aligned(lanes);
  std::memcpy(target, lanes, count * sizeof(T));
}

/// a * b + c, rounded once wherever the instruction set can; sse2 rounds twice. xsimd 8.1's own on avx512 is
/// x * y + z.
template <class T>
GRADGRAM_INLINE Batch<T> multiply_add(const Batch<T>& a, const Batch<T>& b, const Batch<T>& c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_fmadd_ps(a, b, c);
  } else {
    return _mm512_fmadd_pd(a, b, c);
  }
#else
  return xsimd::fma(a, b, c);
#endif
}

/// c - a * b, rounded like multiply_add.
template <class T>
GRADGRAM_INLINE Batch<T> negate_multiply_add(const Batch<T>& a, const Batch<T>& b, const Batch<T>& c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_fnmadd_ps(a, b, c);
  } else {
    return _mm512_fnmadd_pd(a, b, c);
  }
#else
  return xsimd::fnma(a, b, c);
#endif
}

/// The lower and upper half of a register of float, as double.
struct Widened {
  Batch<double> low, high;
};
GRADGRAM_INLINE Widened widen(const Batch<float>& value) {
#if defined(__AVX512F__)
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(value)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1))};
#elif defined(__AVX2__)
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(value)), _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1))};
#else
  return {_mm_cvtps_pd(value), _mm_cvtps_pd(_mm_movehl_ps(value, value))};
#endif
}

/// a0 b0 a1 b1 ... of the lower halves of a and b, and of the upper ones, across the whole register.
GRADGRAM_INLINE Batch<float> interleave_low(const Batch<float>& a, const Batch<float>& b) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                                b);
#elif defined(__AVX2__)
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
#else
  return _mm_unpacklo_ps(a, b);
#endif
}
GRADGRAM_INLINE Batch<float> interleave_high(const Batch<float>& a, const Batch<float>& b) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(
      a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
#elif defined(__AVX2__)
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
#else
  return _mm_unpackhi_ps(a, b);
#endif
}
GRADGRAM_INLINE Batch<double> interleave_low(const Batch<double>& a, const Batch<double>& b) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b);
#elif defined(__AVX2__)
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
#else
  return _mm_unpacklo_pd(a, b);
#endif
}
GRADGRAM_INLINE Batch<double> interleave_high(const Batch<double>& a, const Batch<double>& b) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
#elif defined(__AVX2__)
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
#else
  return _mm_unpackhi_pd(a, b);
#endif
}

/// Calls body(std::size_t constant) for 0 .. Count - 1, unrolled whatever the optimizer thinks: g++ 12 keeps
/// an array of accumulators in memory as soon as one loop over it stays a loop.
template <std::size_t Begin, std::size_t End>
struct Unroll {
  template <class Body>
  static GRADGRAM_INLINE void run(const Body& body) {
    if constexpr (Begin < End) {
      body(Begin);
      Unroll<Begin + 1, End>::run(body);
    }
  }
};

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
