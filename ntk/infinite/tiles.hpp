#pragma once

#include <cstddef>

#include "engine/tensor.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/infinite/program.hpp"

/// The grid that a matrix of pairs is computed on.
namespace gradgram::ntk::infinite {

/// Sides of a tile. Vectors: a matrix product of that size, whose rows then pass through all layers a few at
/// a time, in the first-level cache. Diagonals: all pixels of 8 x 32 pairs, 1 MiB an array for 32 x 32
/// pixels in f32. Full: pairs of one left example.
constexpr std::size_t kVectorTile = 256;
constexpr std::size_t kVectorRows = 8;
constexpr std::size_t kDiagonalRows = 8;
constexpr std::size_t kDiagonalColumns = 32;
constexpr std::size_t kFullColumns = 4;
/// Examples of either side whose entries are computed again together: see ParallelImages.
constexpr std::size_t kLostExamples = 256;

/// A corner and the sides from there.
struct Tile {
  std::size_t row = 0, rows = 0, column = 0, columns = 0;
};

/// A left example and a right one; of a symmetric matrix not before it.
struct Pair {
  std::size_t row = 0, column = 0;
};

/// The largest there is.
Tile largest_tile(Reach reach);

/// The part of a range that is in [begin, begin + count). Where there is none, its end is not behind its
/// begin.
IndexRange overlap(IndexRange range, std::size_t begin, std::size_t count);

/// Throws NumericError naming the entry when the value is not finite as an Out.
template <class Out, class T>
void require_finite(std::size_t i, std::size_t j, T value);

/// Throws NumericError when entry (i, i), which is not zero, is too small to keep its digits as an Out.
template <class Out, class T>
void require_digits(std::size_t i, T value);

/// Copies what was asked for, [rows) x [columns), from a tile [rows of the largest][columns of the largest],
/// and of a symmetric matrix, whose tiles hold the lower triangle, its mirror image. Throws NumericError for
/// what is not finite as an Out.
template <class T, class Out>
void deliver(const Tensor<T>& from, const Tile& tile, bool symmetric, IndexRange rows, IndexRange columns,
             Out* out, std::size_t stride);

}  // namespace gradgram::ntk::infinite
