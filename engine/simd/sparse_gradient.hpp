#pragma once

#include "engine/simd/gram.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

template <class T>
std::size_t count_nonzero(const T* x, std::size_t n) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  std::size_t count = 0;
  std::size_t i = 0;
#if defined(__AVX512F__)
  for (; i + kLane <= n; i += kLane) {
    if constexpr (sizeof(T) == 4) {
      count += static_cast<std::size_t>(
          __builtin_popcount(_mm512_cmp_ps_mask(load(x + i), _mm512_setzero_ps(), _CMP_NEQ_UQ)));
    } else {
      count += static_cast<std::size_t>(
          __builtin_popcount(_mm512_cmp_pd_mask(load(x + i), _mm512_setzero_pd(), _CMP_NEQ_UQ)));
    }
  }
#else
  static_cast<void>(kLane);
#endif
  for (; i < n; ++i) count += x[i] != T(0) ? 1 : 0;
  return count;
}

/// Registers of input channels beside each other: with 32 of them 9 taps x 2 accumulators, so that 18
/// multiply-adds share a broadcast and an offset; with 16 of them 9 x 1.
inline constexpr std::size_t kSparseVectors = sizeof(Batch<float>) == 64 ? 2 : 1;
inline constexpr std::size_t kSparseTaps = 9;
template <class T>
inline constexpr std::size_t kSparseBlock = kSparseVectors* kLanes<T>;

/// The nonzero cotangents of kLanes output channels, in order of their pixels.
template <class T>
struct SparseLists {
  std::size_t capacity;
  T* values;              ///< [kLanes, capacity]
  std::int32_t* offsets;  ///< [kLanes, capacity]: of the pixel's window in a block of the image
  std::size_t count[kLanes<T>];
};

/// Appends lanes of `values` that are not zero, with their offsets.
template <class T>
GRADGRAM_INLINE std::size_t compress(const Batch<T>& values, const std::int32_t* offsets, T* value_target,
                                     std::int32_t* offset_target) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __mmask16 mask = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    _mm512_storeu_ps(value_target, _mm512_maskz_compress_ps(mask, values));
    _mm512_storeu_si512(offset_target, _mm512_maskz_compress_epi32(mask, _mm512_loadu_si512(offsets)));
    return static_cast<std::size_t>(__builtin_popcount(mask));
  } else {
    const __mmask8 mask = _mm512_cmp_pd_mask(values, _mm512_setzero_pd(), _CMP_NEQ_UQ);
    _mm512_storeu_pd(value_target, _mm512_maskz_compress_pd(mask, values));
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(offset_target),
        _mm256_maskz_compress_epi32(mask, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets))));
    return static_cast<std::size_t>(__builtin_popcount(mask));
  }
#else
  alignas(64) T lanes[kLanes<T>];
  store(lanes, values);
  std::size_t count = 0;
  for (std::size_t i = 0; i < kLanes<T>; ++i) {
    value_target[count] = lanes[i];
    offset_target[count] = offsets[i];
    count += lanes[i] != T(0) ? 1 : 0;
  }
  return count;
#endif
}

template <class T>
void make_lists(const SparseGradient<T>& job, std::size_t first_channel, SparseLists<T>& lists) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  const std::size_t channels = job.c_out - first_channel < kLane ? job.c_out - first_channel : kLane;
  const T* const cotangent = job.cotangent + first_channel;
  for (std::size_t r = 0; r < kLane; ++r) lists.count[r] = 0;
  for (std::size_t p = 0; p < job.pixels; p += kLane) {
    const std::size_t pixels = job.pixels - p < kLane ? job.pixels - p : kLane;
    std::int32_t offsets[kLane];
    for (std::size_t i = 0; i < kLane; ++i) {
      offsets[i] = i < pixels
                       ? static_cast<std::int32_t>(job.pixel_offset[p + i] * std::ptrdiff_t{kSparseBlock<T>})
                       : 0;
    }
    Batch<T> x[kLane];
    const T* const source = cotangent + p * job.c_out;
    if (pixels == kLane && channels == kLane) {
      Unroll<0, kLane>::run([&](std::size_t i)
                                __attribute__((always_inline)) { x[i] = load(source + i * job.c_out); });
    } else {
      for (std::size_t i = 0; i < kLane; ++i) {
        x[i] = i < pixels ? load_first(source + i * job.c_out, channels) : broadcast(T(0));
      }
    }
    transpose<T, kLane>(x);
    Unroll<0, kLane>::run([&](std::size_t r) __attribute__((always_inline)) {
      const std::size_t at = r * lists.capacity + lists.count[r];
      lists.count[r] += compress(x[r], offsets, lists.values + at, lists.offsets + at);
    });
  }
}

/// sums[tap, vector] = those in `sums`, plus the list's cotangents times the image at its pixels and taps.
template <class T, std::size_t Taps>
void list_product(const T* const* taps, const T* values, const std::int32_t* offsets, std::size_t count,
                  std::size_t stride, T* sums) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  constexpr std::size_t kVectors = kSparseVectors;
  Batch<T> sum[Taps * kVectors];
  const T* base[Taps];
  Unroll<0, Taps>::run([&](std::size_t t) __attribute__((always_inline)) { base[t] = taps[t]; });
  Unroll<0, Taps * kVectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    sum[at] = load(static_cast<const T*>(sums) + at / kVectors * stride + at % kVectors * kLane);
  });
  for (std::size_t i = 0; i < count; ++i) {
    const Batch<T> value = broadcast(values[i]);
    const std::ptrdiff_t offset = offsets[i];
    Unroll<0, Taps * kVectors>::run([&](std::size_t at) __attribute__((always_inline)) {
      sum[at] = multiply_add(value, load(base[at / kVectors] + offset + at % kVectors * kLane), sum[at]);
    });
  }
  Unroll<0, Taps * kVectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    store(sums + at / kVectors * stride + at % kVectors * kLane, sum[at]);
  });
}

template <class T, std::size_t Taps>
void some_taps(std::size_t taps, const T* const* base, const T* values, const std::int32_t* offsets,
               std::size_t count, std::size_t stride, T* sums) noexcept {
  if constexpr (Taps > 0) {
    if (taps == Taps) return list_product<T, Taps>(base, values, offsets, count, stride, sums);
    some_taps<T, Taps - 1>(taps, base, values, offsets, count, stride, sums);
  }
}

/// Copies a square of kLanes between sums [output channel, block] and the gradient [input channel, c_out].
template <class T>
void exchange(T* sums, T* gradient, std::size_t gradient_stride, std::size_t inputs, std::size_t outputs,
              bool to_sums) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  Batch<T> x[kLane];
  if (to_sums) {
    for (std::size_t i = 0; i < kLane; ++i) {
      x[i] = i < inputs ? (outputs == kLane ? load(static_cast<const T*>(gradient) + i * gradient_stride)
                                            : load_first(gradient + i * gradient_stride, outputs))
                        : broadcast(T(0));
    }
    transpose<T, kLane>(x);
    Unroll<0, kLane>::run([&](std::size_t i)
                              __attribute__((always_inline)) { store(sums + i * kSparseBlock<T>, x[i]); });
    return;
  }
  Unroll<0, kLane>::run([&](std::size_t i) __attribute__((always_inline)) {
    x[i] = load(static_cast<const T*>(sums) + i * kSparseBlock<T>);
  });
  transpose<T, kLane>(x);
  if (inputs == kLane && outputs == kLane) {
    Unroll<0, kLane>::run([&](std::size_t i) __attribute__((always_inline)) {
      store(gradient + i * gradient_stride, x[i]);
    });
    return;
  }
  for (std::size_t i = 0; i < inputs; ++i) {
    if (outputs == kLane) {
      store(gradient + i * gradient_stride, x[i]);
    } else {
      store_first(gradient + i * gradient_stride, x[i], outputs);
    }
  }
}

template <class T>
void sparse_gradient(const SparseGradient<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  constexpr std::size_t kBlock = kSparseBlock<T>;
  const std::size_t blocks = (job.c_in + kBlock - 1) / kBlock;
  // The image in blocks of a few channels: [blocks, image_pixels, kBlock].
  for (std::size_t block = 0; block < blocks; ++block) {
    const std::size_t channels = job.c_in - block * kBlock < kBlock ? job.c_in - block * kBlock : kBlock;
    const T* source = job.image + block * kBlock;
    T* target = job.blocks + block * job.image_pixels * kBlock;
    for (std::size_t p = 0; p < job.image_pixels; ++p, source += job.c_in, target += kBlock) {
      if (channels == kBlock) {
        Unroll<0, kSparseVectors>::run([&](std::size_t v) __attribute__((always_inline)) {
          store(target + v * kLane, load(source + v * kLane));
        });
      } else {
        for (std::size_t c = 0; c < kBlock; ++c) target[c] = c < channels ? source[c] : T(0);
      }
    }
  }
  SparseLists<T> lists{};
  lists.capacity = job.pixels + kLane;
  lists.values = job.values;
  lists.offsets = job.offsets;
  const std::size_t chunks = (job.taps + kSparseTaps - 1) / kSparseTaps;
  const std::size_t chunk = (job.taps + chunks - 1) / chunks;
  alignas(64) T sums[kSparseTaps * kLane * kBlock];  // [tap, output channel, block]
  for (std::size_t k = 0; k < job.c_out; k += kLane) {
    const std::size_t outputs = job.c_out - k < kLane ? job.c_out - k : kLane;
    make_lists(job, k, lists);
    for (std::size_t block = 0; block < blocks; ++block) {
      const T* const plane = job.blocks + block * job.image_pixels * kBlock;
      for (std::size_t first = 0; first < job.taps; first += chunk) {
        const std::size_t taps = job.taps - first < chunk ? job.taps - first : chunk;
        const T* base[kSparseTaps];
        for (std::size_t t = 0; t < taps; ++t) {
          base[t] = plane + job.tap_offset[first + t] * std::ptrdiff_t{kBlock};
        }
        const auto each_square = [&](bool to_sums) {
          for (std::size_t t = 0; t < taps; ++t) {
            for (std::size_t c = 0; c < kBlock && block * kBlock + c < job.c_in; c += kLane) {
              const std::size_t input = block * kBlock + c;
              exchange(sums + t * kLane * kBlock + c,
                       job.gradient + ((first + t) * job.c_in + input) * job.c_out + k, job.c_out,
                       job.c_in - input < kLane ? job.c_in - input : kLane, outputs, to_sums);
            }
          }
        };
        for (std::size_t i = 0; i < taps * kLane * kBlock; i += kLane) store(sums + i, broadcast(T(0)));
        if (job.accumulate) each_square(true);
        for (std::size_t r = 0; r < outputs; ++r) {
          some_taps<T, kSparseTaps>(taps, base, lists.values + r * lists.capacity,
                                    lists.offsets + r * lists.capacity, lists.count[r], kLane * kBlock,
                                    sums + r * kBlock);
        }
        each_square(false);
      }
    }
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
