#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "engine/arena.hpp"
#include "ntk/factors.hpp"
#include "ntk/plan.hpp"

namespace gradgram::ntk {

/// The rectangle of a kernel that one task computes: examples [row, row + rows) of one set of factors against
/// [column, column + columns) of another.
struct TileRange {
  std::size_t row = 0, rows = 0;
  std::size_t column = 0, columns = 0;
  bool diagonal =
      false;  ///< both sides are the same examples: only entries on and below the diagonal are computed
};

/// Stands for the sum over all parameters where a parameter index is asked for.
inline constexpr std::size_t kAllParameters = kNoParameter;

/// A finished tile in f64, row-major with padded rows: rows_per_example() rows and columns per example. Of a
/// diagonal tile entries above the diagonal are unspecified.
struct Tile {
  const double* values = nullptr;
  std::size_t rows = 0, columns = 0;
  std::size_t stride = 0;
  double at(std::size_t row, std::size_t column) const { return values[row * stride + column]; }
};

/// One of several rounds over parts of the seeds (Plan::round_seeds): materialized rows are added up in
/// `sums`, tile_sums() numbers that are kept from round to round; the last one does the rest. The default is
/// the only round.
struct TileRound {
  std::size_t number = 0;
  double* sums = nullptr;
};
/// Numbers in the sums of a tile.
template <class T>
std::size_t tile_sums(const Plan& plan, const TileRange& range);

/// Contracts the factors of one tile: products in T (GramProduct), sums in f64 across panels of at most
/// kPanelColumns and across parameters. The sum of every entry runs in an order that depends on neither the
/// tile nor the block of examples it is in. `emit` receives kAllParameters and, with per_parameter, each
/// parameter that is used before that. Scratch: Plan::tile_bytes().
template <class T>
void contract_tile(const Plan& plan, const Factors<T>& rows, const Factors<T>& columns,
                   const TileRange& range, Arena& scratch,
                   const std::function<void(std::size_t parameter, const Tile& tile)>& emit,
                   const TileRound& round = {});

}  // namespace gradgram::ntk
