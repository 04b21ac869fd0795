#include "engine/matrix_product.hpp"

#include <algorithm>
#include <cstring>

#include "engine/arena.hpp"
#include "engine/cpu.hpp"

namespace gradgram {
namespace {

/// Rows and columns that are packed at once: with panels of kGramDepth both stay in the second-level cache.
constexpr std::size_t kRowBytes = 1536;
constexpr std::size_t kColumnBytes = 960;

template <class T>
std::size_t padded(std::size_t count) {
  return (count + simd::kGramPadding<T> - 1) / simd::kGramPadding<T> * simd::kGramPadding<T>;
}

/// gram_pack of the transposed matrix: source[k * stride + i], i < rows.
template <class T>
void pack_columns(const T* source, std::size_t stride, std::size_t rows, std::size_t depth, std::size_t group,
                  T* packed) {
  for (std::size_t first = 0; first < rows; first += group) {
    const std::size_t count = std::min(group, rows - first);
    T* const target = packed + first * depth;
    for (std::size_t k = 0; k < depth; ++k) {
      std::memcpy(target + k * group, source + k * stride + first, count * sizeof(T));
      std::fill(target + k * group + count, target + (k + 1) * group, T(0));
    }
  }
}

}  // namespace

template <class T>
void multiply(bool transposed, std::size_t rows, std::size_t columns, std::size_t depth, T scale, const T* a,
              std::size_t lda, const T* b, std::size_t ldb, bool accumulate, T* c, std::size_t ldc) {
  if (rows == 0 || columns == 0) return;
  if (depth == 0) {
    for (std::size_t i = 0; !accumulate && i < rows; ++i) std::fill_n(c + i * ldc, columns, T(0));
    return;
  }
  const simd::KernelTable<T>& table = kernels<T>();
  const std::size_t group = table.vector_length * simd::kGramGroupVectors;
  const std::size_t most_rows = std::min(rows, kRowBytes / sizeof(T));
  const std::size_t most_columns = std::min(columns, kColumnBytes / sizeof(T));
  const std::size_t panels = (depth + simd::kGramDepth<T> - 1) / simd::kGramDepth<T>;
  const std::size_t panel = (depth + panels - 1) / panels;
  Arena memory(kAlignment);
  T* const packed_rows = memory.tensor<T>({padded<T>(most_rows), panel}).data();
  T* const packed_columns = memory.tensor<T>({padded<T>(most_columns), panel}).data();
  for (std::size_t i = 0; i < rows; i += most_rows) {
    const std::size_t row_count = std::min(most_rows, rows - i);
    for (std::size_t k = 0; k < depth; k += panel) {
      const std::size_t count = std::min(panel, depth - k);
      table.gram_pack(a + i * lda + k, lda, row_count, count, packed_rows);
      for (std::size_t j = 0; j < columns; j += most_columns) {
        const std::size_t column_count = std::min(most_columns, columns - j);
        if (transposed) {
          table.gram_pack(b + j * ldb + k, ldb, column_count, count, packed_columns);
        } else {
          pack_columns(b + k * ldb + j, ldb, column_count, count, group, packed_columns);
        }
        table.panel_product({.rows = packed_rows,
                             .columns = packed_columns,
                             .depth = count,
                             .row_count = row_count,
                             .column_count = column_count,
                             .out = c + i * ldc + j,
                             .stride = ldc,
                             .scale = scale,
                             .accumulate = accumulate || k > 0});
      }
    }
  }
}

template void multiply(bool, std::size_t, std::size_t, std::size_t, float, const float*, std::size_t,
                       const float*, std::size_t, bool, float*, std::size_t);
template void multiply(bool, std::size_t, std::size_t, std::size_t, double, const double*, std::size_t,
                       const double*, std::size_t, bool, double*, std::size_t);

}  // namespace gradgram
