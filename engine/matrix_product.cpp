#include "engine/matrix_product.hpp"

#include <algorithm>
#include <cstddef>
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

/// Below this depth products in tiles are not worth their sums in f64.
constexpr std::size_t kLeastTileDepth = 64;

/// Rows in whose steps the scratch memory of Gram products grows, all steps alike.
constexpr std::size_t kStripRows = 16;

/// c by tiles of Gram products, whose sums over all panels are in f64.
template <class T>
void multiply_in_tiles(bool transposed, std::size_t rows, std::size_t columns, std::size_t depth, T scale,
                       const T* a, std::size_t lda, const T* b, std::size_t ldb, bool accumulate, T* c,
                       std::size_t ldc, Arena& arena) {
  const simd::KernelTable<T>& table = kernels<T>();
  const std::size_t group = table.vector_length * simd::kGramGroupVectors;
  const std::size_t most_rows = std::min(rows, table.gram_tile_rows);
  const std::size_t most_columns = std::min(columns, table.gram_tile_rows);
  const std::size_t most_depth = std::min(depth, simd::kGramDepth<T>);
  // Room that grows with every row, not in steps: plans take what one and two examples need for a line.
  const std::size_t room = most_rows + simd::kGramPadding<T>;
  const std::size_t scratch_fixed = table.gram_scratch_bytes(0);
  const std::size_t scratch_of_row = (table.gram_scratch_bytes(kStripRows) - scratch_fixed) / kStripRows;
  const ArenaScope scope(arena);
  T* const packed_rows = arena.tensor<T>({room, most_depth}).data();
  T* const packed_columns = arena.tensor<T>({padded<T>(most_columns), most_depth}).data();
  const std::size_t stride = padded<T>(most_columns);
  double* const sum = arena.tensor<double>({room, stride}).data();
  auto* const scratch =
      static_cast<std::byte*>(arena.allocate(scratch_fixed + (most_rows + kStripRows) * scratch_of_row));
  for (std::size_t i = 0; i < rows; i += most_rows) {
    const std::size_t row_count = std::min(most_rows, rows - i);
    for (std::size_t j = 0; j < columns; j += most_columns) {
      const std::size_t column_count = std::min(most_columns, columns - j);
      for (std::size_t k = 0; k < depth; k += most_depth) {
        const std::size_t count = std::min(most_depth, depth - k);
        table.gram_pack(a + i * lda + k, lda, row_count, count, packed_rows);
        if (transposed) {
          table.gram_pack(b + j * ldb + k, ldb, column_count, count, packed_columns);
        } else {
          for (std::size_t first = 0; first < column_count; first += group) {
            simd::PanelProduct<T> packing{};
            packing.next = {.source = b + k * ldb + j + first,
                            .stride = ldb,
                            .transposed = false,
                            .columns = std::min(group, column_count - first),
                            .depth = count,
                            .packed = packed_columns + first * count};
            table.panel_product(packing);
          }
        }
        table.gram_product({.rows = packed_rows,
                            .columns = packed_columns,
                            .depth = count,
                            .row_count = row_count,
                            .column_count = column_count,
                            .sum = sum,
                            .sum_stride = stride,
                            .lower = false,
                            .accumulate = k > 0,
                            .scratch = scratch});
      }
      for (std::size_t row = 0; row < row_count; ++row) {
        const double* const from = sum + row * stride;
        T* const to = c + (i + row) * ldc + j;
        for (std::size_t column = 0; column < column_count; ++column) {
          const T value = static_cast<T>(static_cast<double>(scale) * from[column]);
          to[column] = accumulate ? to[column] + value : value;
        }
      }
    }
  }
}

}  // namespace

template <class T>
void multiply(bool transposed, std::size_t rows, std::size_t columns, std::size_t depth, T scale, const T* a,
              std::size_t lda, const T* b, std::size_t ldb, bool accumulate, T* c, std::size_t ldc,
              Arena& arena) {
  if (rows == 0 || columns == 0) return;
  if (depth == 0) {
    for (std::size_t i = 0; !accumulate && i < rows; ++i) std::fill_n(c + i * ldc, columns, T(0));
    return;
  }
  const simd::KernelTable<T>& table = kernels<T>();
  if (table.gram_tiles_are_faster && depth >= kLeastTileDepth) {
    multiply_in_tiles(transposed, rows, columns, depth, scale, a, lda, b, ldb, accumulate, c, ldc, arena);
    return;
  }
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
                       const float*, std::size_t, bool, float*, std::size_t, Arena&);
template void multiply(bool, std::size_t, std::size_t, std::size_t, double, const double*, std::size_t,
                       const double*, std::size_t, bool, double*, std::size_t, Arena&);

}  // namespace gradgram
