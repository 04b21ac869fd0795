#pragma once

#include <cmath>
#include <cstddef>
#include <string>

#include "engine/error.hpp"
#include "ntk/contract.hpp"

/// Where the finished tiles of a kernel go: into memory, or into a file.
namespace gradgram::ntk {

/// Where a tile belongs in the kernel: examples [row, row + rows) of x against [column, column + columns) of
/// x'.
struct TilePlace {
  std::size_t row = 0, rows = 0;
  std::size_t column = 0, columns = 0;
  bool diagonal = false;  ///< of a symmetric kernel, both sides the same examples
};

/// A finished tile. Of a symmetric kernel it also stands for its mirror image.
struct PlacedTile {
  std::size_t parameter = kAllParameters;
  TilePlace place;
  std::size_t group = 1;  ///< rows and columns of `sums` that one example takes
  double weight = 1;      ///< what an entry of `sums` is multiplied by
  Tile sums;

  /// put(i, j, k, l, value) for every entry that was computed, rounded to T: outputs k and l of the examples
  /// i and j, counted from the tile's first ones. On the diagonal these are the entries on and below it.
  /// Throws NumericError naming the examples of an entry that is not finite.
  template <class T, class Put>
  void each_entry(Put put) const {
    for (std::size_t r = 0; r < sums.rows; ++r) {
      const std::size_t i = r / group;
      const std::size_t k = r % group;
      const std::size_t end = place.diagonal ? r + 1 : sums.columns;
      for (std::size_t c = 0; c < end; ++c) {
        const T value = static_cast<T>(sums.at(r, c) * weight);
        if (!std::isfinite(value)) refuse(i, c / group, k, c % group, static_cast<double>(value));
        put(i, c / group, k, c % group, value);
      }
    }
  }

 private:
  [[noreturn]] void refuse(std::size_t i, std::size_t j, std::size_t k, std::size_t l, double value) const {
    const std::string first = std::to_string(place.row + i);
    const std::string second = std::to_string(place.column + j);
    throw NumericError("kernel: entry (" + first + ", " + second +
                       (group == 1 ? "" : ", " + std::to_string(k) + ", " + std::to_string(l)) + ") is " +
                       std::to_string(value) + ": the gradients of examples " + first + " and " + second +
                       " leave the numbers");
  }
};

class TileStore {
 public:
  virtual ~TileStore() = default;
  /// Whether a tile is there already and need not be computed. Asked before and between, never while, tiles
  /// are put.
  virtual bool has(const TilePlace&) const { return false; }
  /// Takes a tile; called by several workers at once, each with its own number and its own tiles.
  virtual void put(const PlacedTile& tile, std::size_t worker) = 0;
};

}  // namespace gradgram::ntk
