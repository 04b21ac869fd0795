#pragma once

#include <immintrin.h>

#include "engine/simd/bf16.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

inline __m512i load_block(const float* source, std::size_t count) {
  const auto mask = [](std::size_t lanes) {
    return static_cast<__mmask16>(lanes >= 16 ? 0xffffU : (1U << lanes) - 1U);
  };
  const __m512 low = _mm512_maskz_loadu_ps(mask(count), source);
  const __m512 high = count > 16 ? _mm512_maskz_loadu_ps(mask(count - 16), source + 16) : _mm512_setzero_ps();
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

/// f(rows of the block in registers, where it goes) for every group and block.
template <class Store>
void pack_blocks(const float* source, std::size_t stride, std::size_t rows, std::size_t depth,
                 std::uint16_t* packed, Store store) noexcept {
  const std::size_t padded = (rows + kBf16Padding - 1) / kBf16Padding * kBf16Padding;
  for (std::size_t group = 0; group < padded; group += kBf16Group) {
    for (std::size_t k = 0; k < depth; k += kBf16Block) {
      const std::size_t count = depth - k < kBf16Block ? depth - k : kBf16Block;
      __m512i x[kBf16Group];
      for (std::size_t i = 0; i < kBf16Group; ++i) {
        x[i] =
            group + i < rows ? load_block(source + (group + i) * stride + k, count) : _mm512_setzero_si512();
      }
      store(x, packed);
      packed += kBf16Group * kBf16Block;
    }
  }
}

inline void pack_rows(const float* source, std::size_t stride, std::size_t rows, std::size_t depth,
                      std::uint16_t* packed) noexcept {
  pack_blocks(source, stride, rows, depth, packed, [](const __m512i* x, std::uint16_t* target) {
    for (std::size_t i = 0; i < kBf16Group; ++i) _mm512_storeu_si512(target + i * kBf16Block, x[i]);
  });
}

/// A perfect shuffle of 256 pairs rotates the bits of their address by one; after four of them row and column
/// have changed places.
inline void pack_columns(const float* source, std::size_t stride, std::size_t rows, std::size_t depth,
                         std::uint16_t* packed) noexcept {
  pack_blocks(source, stride, rows, depth, packed, [](__m512i* x, std::uint16_t* target) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for (int round = 0; round < 4; ++round) {
      __m512i y[kBf16Group];
      for (std::size_t i = 0; i < kBf16Group / 2; ++i) {
        y[2 * i] = _mm512_permutex2var_epi32(x[i], low, x[i + kBf16Group / 2]);
        y[2 * i + 1] = _mm512_permutex2var_epi32(x[i], high, x[i + kBf16Group / 2]);
      }
      for (std::size_t i = 0; i < kBf16Group; ++i) x[i] = y[i];
    }
    for (std::size_t i = 0; i < kBf16Group; ++i) _mm512_storeu_si512(target + i * kBf16Block, x[i]);
  });
}

/// Adds 16 sums in f32 to f64.
inline void add_wide(double* sum, __m512 value, bool accumulate) {
  __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
  __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
  if (accumulate) {
    low = _mm512_add_pd(_mm512_loadu_pd(sum), low);
    high = _mm512_add_pd(_mm512_loadu_pd(sum + 8), high);
  }
  _mm512_storeu_pd(sum, low);
  _mm512_storeu_pd(sum + 8, high);
}

inline std::size_t padded_depth(std::size_t depth) {
  return (depth + kBf16Block - 1) / kBf16Block * kBf16Block;
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
