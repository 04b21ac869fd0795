#pragma once

#include <cstddef>
#include <optional>

#include "engine/npy.hpp"
#include "engine/tensor.hpp"

/// Symmetric kernels of which only what is on and below the diagonal is kept, row by row: entry (i, j), j <=
/// i, at i (i + 1) / 2 + j. With O outputs (`full`) every entry is a block [O, O], and block (j, i) is the
/// transpose of block (i, j).
namespace gradgram::ntk {

/// Where row i begins; of n examples, packed_size(n) is the number of entries.
constexpr std::size_t packed_size(std::size_t i) {
  return i % 2 == 0 ? i / 2 * (i + 1) : (i + 1) / 2 * i;
}
/// n of so many entries; nothing when no n has as many.
std::optional<std::size_t> packed_side(std::size_t entries);

/// [n, n] of [n (n + 1) / 2]; [n, n, O, O] of [n (n + 1) / 2, O, O]. Throws ShapeError.
template <class T>
Tensor<T> unpack(TensorView<const T> packed);
Tensor<double> unpack(const NpyArray& packed);

}  // namespace gradgram::ntk
