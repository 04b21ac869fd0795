#include "ntk/packed.hpp"

#include <cmath>
#include <string>

#include "engine/error.hpp"
#include "engine/shape.hpp"

namespace gradgram::ntk {

std::optional<std::size_t> packed_side(std::size_t entries) {
  // n^2 <= 2 entries < (n + 1)^2; the root in floating point may be off by one.
  const auto root = static_cast<std::size_t>(std::sqrt(2.0 * static_cast<double>(entries)));
  for (std::size_t n = root == 0 ? 0 : root - 1; n <= root + 1; ++n) {
    if (packed_size(n) == entries) return n;
  }
  return std::nullopt;
}

Tensor<double> unpack(const NpyArray& packed) {
  const std::vector<std::size_t>& shape = packed.shape;
  const bool blocks = shape.size() == 3 && shape[1] == shape[2];
  const std::optional<std::size_t> side = blocks || shape.size() == 1 ? packed_side(shape[0]) : std::nullopt;
  if (!side) {
    std::string found;
    for (const std::size_t extent : shape) found += (found.empty() ? "" : ", ") + std::to_string(extent);
    throw ShapeError("unpack: a packed kernel has shape [n (n + 1) / 2] or [n (n + 1) / 2, O, O], found [" +
                     found + "]");
  }
  const std::size_t n = *side;
  const std::size_t outputs = blocks ? shape[1] : 1;
  const Tensor<double> entries = packed.to_tensor<double>();
  Tensor<double> result(blocks ? Shape{n, n, outputs, outputs} : Shape{n, n});
  const std::size_t block = outputs * outputs;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      const double* const from = entries.data() + (packed_size(i) + j) * block;
      double* const lower = result.data() + (i * n + j) * block;
      double* const upper = result.data() + (j * n + i) * block;
      for (std::size_t k = 0; k < outputs; ++k) {
        for (std::size_t l = 0; l < outputs; ++l) {
          lower[k * outputs + l] = from[k * outputs + l];
          upper[l * outputs + k] = from[k * outputs + l];
        }
      }
    }
  }
  return result;
}

}  // namespace gradgram::ntk
