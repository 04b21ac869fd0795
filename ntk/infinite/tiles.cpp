#include "ntk/infinite/tiles.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/error.hpp"

namespace gradgram::ntk::infinite {
namespace {

/// Whether it is finite as an Out; without a call, for loops that are to be vectorized.
template <class Out, class T>
bool is_finite(T value) {
  return std::abs(value) <= static_cast<T>(std::numeric_limits<Out>::max());
}

}  // namespace

Tile largest_tile(Reach reach) {
  switch (reach) {
    case Reach::Vector:
      return {0, kVectorTile, 0, kVectorTile};
    case Reach::Diagonal:
      return {0, kDiagonalRows, 0, kDiagonalColumns};
    case Reach::Full:
      return {0, 1, 0, kFullColumns};
  }
  return {};
}

IndexRange overlap(IndexRange range, std::size_t begin, std::size_t count) {
  return {std::max(range.begin, begin), std::max(begin, std::min(range.end, begin + count))};
}

template <class Out, class T>
void require_finite(std::size_t i, std::size_t j, T value) {
  if (is_finite<Out>(value)) return;
  // A NaN has a sign, which says nothing.
  throw NumericError(
      fmt::format("infinite_kernel: entry ({}, {}) is {:g}, not a finite number of this precision", i, j,
                  std::isnan(value) ? std::abs(value) : value));
}

template <class Out, class T>
void require_digits(std::size_t i, T value) {
  constexpr Out kLeast = std::numeric_limits<Out>::min();
  // What is no number is left to require_finite().
  if (!(std::abs(value) < static_cast<T>(kLeast))) return;
  throw NumericError(
      fmt::format("infinite_kernel: entry ({}, {}) is {:g}, where {:.2g} is the least that keeps its digits "
                  "in this precision",
                  i, i, value, kLeast));
}

template <class T, class Out>
void deliver(const Tensor<T>& from, const Tile& tile, bool symmetric, IndexRange rows, IndexRange columns,
             Out* out, std::size_t stride) {
  const std::size_t step = from.shape()[1];
  const auto entry = [&](std::size_t i, std::size_t j) {
    return from.data()[(i - tile.row) * step + j - tile.column];
  };
  // Entries of a symmetric tile above the diagonal are not set.
  for (std::size_t i = tile.row; i < tile.row + tile.rows; ++i) {
    const bool wanted = rows.holds(i) || (symmetric && columns.holds(i));
    const std::size_t end =
        symmetric ? std::min(tile.column + tile.columns, i + 1) : tile.column + tile.columns;
    unsigned broken = 0;
    const T* const line = &from.data()[(i - tile.row) * step];
    for (std::size_t c = 0; c + tile.column < end; ++c) broken |= is_finite<Out>(line[c]) ? 0U : 1U;
    if (broken == 0 || !wanted) continue;
    for (std::size_t j = tile.column; j < end; ++j) {
      const bool asked =
          (rows.holds(i) && columns.holds(j)) || (symmetric && rows.holds(j) && columns.holds(i));
      if (asked) require_finite<Out>(i, j, entry(i, j));
    }
  }
  const IndexRange r = overlap(rows, tile.row, tile.rows);
  const IndexRange c = overlap(columns, tile.column, tile.columns);
  for (std::size_t i = r.begin; i < r.end; ++i) {
    Out* const line = out + (i - rows.begin) * stride;
    const std::size_t end = symmetric ? std::min(c.end, i + 1) : c.end;
    for (std::size_t j = c.begin; j < end; ++j) line[j - columns.begin] = static_cast<Out>(entry(i, j));
  }
  if (!symmetric) return;
  // One of the two sides runs down columns: in blocks.
  constexpr std::size_t kBlock = 32;
  const IndexRange down = overlap(columns, tile.row, tile.rows);
  const IndexRange across = overlap(rows, tile.column, tile.columns);
  for (std::size_t top = down.begin; top < down.end; top += kBlock) {
    for (std::size_t j = across.begin; j < across.end; ++j) {
      Out* const line = out + (j - rows.begin) * stride;
      for (std::size_t i = std::max(top, j + 1); i < std::min(down.end, top + kBlock); ++i) {
        line[i - columns.begin] = static_cast<Out>(entry(i, j));
      }
    }
  }
}

template void require_finite<float>(std::size_t, std::size_t, double);
template void require_digits<float>(std::size_t, float);
template void require_digits<float>(std::size_t, double);
template void require_digits<double>(std::size_t, double);
template void deliver(const Tensor<float>&, const Tile&, bool, IndexRange, IndexRange, float*, std::size_t);
template void deliver(const Tensor<double>&, const Tile&, bool, IndexRange, IndexRange, float*, std::size_t);
template void deliver(const Tensor<double>&, const Tile&, bool, IndexRange, IndexRange, double*, std::size_t);

}  // namespace gradgram::ntk::infinite
