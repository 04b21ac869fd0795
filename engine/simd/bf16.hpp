#pragma once

#include <cstddef>
#include <cstdint>

/// Products of rows rounded to bfloat16 (8 bits of fraction, to nearest even), two numbers to a lane, for
/// processors that have them.
namespace gradgram::simd {

/// Rows and columns are packed in groups of this many, depths rounded up to kBf16Block with zeros.
inline constexpr std::size_t kBf16Group = 16;
inline constexpr std::size_t kBf16Block = 32;
/// The greatest depth of a product that its callers use. The sum of its products in f32 is off by far less
/// than the rounding of the factors, and moving it to f64 costs a tenth.
inline constexpr std::size_t kBf16Depth = 2048;
/// Rows and columns that a product writes are rounded up to a multiple of this.
inline constexpr std::size_t kBf16Padding = 48;

/// sum[i * sum_stride + j] (+)= sum_{k < depth} rows[i, k] * columns[j, k]: products and their sum in f32 in
/// order of k, then added in f64. The same bits whatever stands beside an entry, and whichever of its two
/// factors is the row. Subnormal numbers count as zero.
struct Bf16Product {
  const std::uint16_t* rows;     ///< packed by pack_rows
  const std::uint16_t* columns;  ///< packed by pack_columns
  std::size_t depth;
  std::size_t row_count, column_count;
  double* sum;  ///< writable for both counts rounded up to kBf16Padding; beyond the counts it is unspecified
  std::size_t sum_stride;
  bool lower;       ///< entries with j > i are not wanted: they are unspecified
  bool accumulate;  ///< add to `sum` instead of overwriting it
};

struct Bf16Kernels {
  const char* name;  ///< `avx512_bf16`, `amx_bf16`
  /// `rows` rows source[i * stride + k], k < depth: for each group of rows and block of k its rows one behind
  /// the other. Writes rows rounded up to kBf16Padding times depth rounded up to kBf16Block elements.
  void (*pack_rows)(const float* source, std::size_t stride, std::size_t rows, std::size_t depth,
                    std::uint16_t* packed) noexcept;
  /// The same number of elements: for each group and block its pairs (k, k + 1), of all rows of the group
  /// side by side.
  void (*pack_columns)(const float* source, std::size_t stride, std::size_t rows, std::size_t depth,
                       std::uint16_t* packed) noexcept;
  void (*product)(const Bf16Product&) noexcept;
};

/// Defined in libraries compiled for these sets; reading a table is safe on any processor.
extern const Bf16Kernels avx512_bf16_kernels;
extern const Bf16Kernels amx_bf16_kernels;

}  // namespace gradgram::simd
