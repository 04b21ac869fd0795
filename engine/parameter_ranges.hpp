#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "engine/parameters.hpp"

namespace gradgram {

/// A piece of one parameter tensor: [begin, end) of its numbers.
struct ParameterRange {
  std::size_t parameter;
  std::size_t begin;
  std::size_t end;
};

/// All parameters in pieces that a task can own, of at most 2^14 numbers: sums over examples are then taken
/// in one order, whatever the number of workers.
template <class T>
std::vector<ParameterRange> parameter_ranges(const ParameterSet<T>& parameters) {
  constexpr std::size_t kPiece = std::size_t{1} << 14;
  std::vector<ParameterRange> ranges;
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    const std::size_t size = parameters.value(p).size();
    for (std::size_t begin = 0; begin < size; begin += kPiece) {
      ranges.push_back({p, begin, std::min(size, begin + kPiece)});
    }
  }
  return ranges;
}

}  // namespace gradgram
