#define GRADGRAM_SIMD_NAMESPACE avx512_bf16
#include "engine/simd/bf16_pack.hpp"

namespace gradgram::simd {
namespace avx512_bf16 {
namespace {

/// 8 rows by three groups of columns: 24 accumulators, 3 columns and a broadcast.
constexpr std::size_t kRows = 8;
constexpr std::size_t kGroups = kBf16Padding / kBf16Group;

void tile(const std::uint16_t* rows, const std::uint16_t* columns, std::size_t depth, double* sum,
          std::size_t stride, bool accumulate) {
  __m512 part[kRows][kGroups];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (std::size_t g = 0; g < kGroups; ++g) part[r][g] = _mm512_setzero_ps();
  }
  for (std::size_t block = 0; block < depth; block += kBf16Block) {
    for (std::size_t pair = 0; pair < kBf16Block; pair += 2) {
      const std::uint16_t* const row = rows + block * kBf16Group + pair;
      const std::uint16_t* const column = columns + block * kBf16Group + pair * kBf16Group;
      __m512bh right[kGroups];
#pragma GCC unroll 3
      for (std::size_t g = 0; g < kGroups; ++g) {
        right[g] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(column + g * kBf16Group * depth));
      }
#pragma GCC unroll 8
      for (std::size_t r = 0; r < kRows; ++r) {
        int both = 0;
        __builtin_memcpy(&both, row + r * kBf16Block, sizeof(both));
        const __m512bh left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 3
        for (std::size_t g = 0; g < kGroups; ++g) part[r][g] = _mm512_dpbf16_ps(part[r][g], left, right[g]);
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (std::size_t g = 0; g < kGroups; ++g)
      add_wide(sum + r * stride + g * kBf16Group, part[r][g], accumulate);
  }
}

void product(const Bf16Product& job) noexcept {
  const std::size_t depth = padded_depth(job.depth);
  for (std::size_t column = 0; column < job.column_count; column += kBf16Padding) {
    for (std::size_t row = job.lower ? column : 0; row < job.row_count; row += kRows) {
      tile(job.rows + row / kBf16Group * kBf16Group * depth + row % kBf16Group * kBf16Block,
           job.columns + column * depth, depth, job.sum + row * job.sum_stride + column, job.sum_stride,
           job.accumulate);
    }
  }
}

}  // namespace
}  // namespace avx512_bf16

constinit const Bf16Kernels avx512_bf16_kernels = {"avx512_bf16", avx512_bf16::pack_rows,
                                                   avx512_bf16::pack_columns, avx512_bf16::product};

}  // namespace gradgram::simd
