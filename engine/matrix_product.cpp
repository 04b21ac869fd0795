#include "engine/matrix_product.hpp"

#include <algorithm>
#include <utility>

#include "engine/arena.hpp"
#include "engine/cpu.hpp"

namespace gradgram {
namespace {

/// Rows that are packed at once: with panels of kGramDepth they stay in the second-level cache, beside a
/// group of columns that meets all of them and the next group, which is packed meanwhile.
constexpr std::size_t kRowBytes = 2048;

template <class T>
std::size_t padded(std::size_t count) {
  return (count + simd::kGramPadding<T> - 1) / simd::kGramPadding<T> * simd::kGramPadding<T>;
}

/// The products in turn: rows from i on, columns from j on, depth from k on. Columns change first.
struct Place {
  std::size_t i = 0, k = 0, j = 0;
};

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
  const std::size_t panels = (depth + simd::kGramDepth<T> - 1) / simd::kGramDepth<T>;
  // Whole cache lines, so that the pieces in which columns are packed begin where lines do.
  constexpr std::size_t kLine = simd::kGramLine<T>;
  const std::size_t panel = ((depth + panels - 1) / panels + kLine - 1) / kLine * kLine;
  Arena memory(kAlignment);
  T* const packed_rows = memory.tensor<T>({padded<T>(most_rows), panel}).data();
  T* packed_columns = memory.tensor<T>({group, panel}).data();
  T* packed_next = memory.tensor<T>({group, panel}).data();

  const auto after = [&](Place at) {
    at.j += group;
    if (at.j < columns) return at;
    at.j = 0;
    at.k += panel;
    if (at.k < depth) return at;
    return Place{.i = at.i + most_rows};
  };
  const auto packing = [&](const Place& at, T* packed) -> simd::PanelPacking<T> {
    if (at.i >= rows) return {};
    return {.source = transposed ? b + at.j * ldb + at.k : b + at.k * ldb + at.j,
            .stride = ldb,
            .transposed = transposed,
            .columns = std::min(group, columns - at.j),
            .depth = std::min(panel, depth - at.k),
            .packed = packed};
  };
  simd::PanelProduct<T> no_rows{};
  no_rows.next = packing({}, packed_columns);
  table.panel_product(no_rows);
  for (Place at; at.i < rows;) {
    const std::size_t row_count = std::min(most_rows, rows - at.i);
    const std::size_t count = std::min(panel, depth - at.k);
    if (at.j == 0) table.gram_pack(a + at.i * lda + at.k, lda, row_count, count, packed_rows);
    const Place next = after(at);
    table.panel_product({.rows = packed_rows,
                         .columns = packed_columns,
                         .depth = count,
                         .row_count = row_count,
                         .column_count = std::min(group, columns - at.j),
                         .out = c + at.i * ldc + at.j,
                         .stride = ldc,
                         .scale = scale,
                         .accumulate = accumulate || at.k > 0,
                         .next = packing(next, packed_next)});
    std::swap(packed_columns, packed_next);
    at = next;
  }
}

template void multiply(bool, std::size_t, std::size_t, std::size_t, float, const float*, std::size_t,
                       const float*, std::size_t, bool, float*, std::size_t);
template void multiply(bool, std::size_t, std::size_t, std::size_t, double, const double*, std::size_t,
                       const double*, std::size_t, bool, double*, std::size_t);

}  // namespace gradgram
