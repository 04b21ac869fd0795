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

template <class T>
Tensor<T> unpack(TensorView<const T> packed) {
  const Shape& shape = packed.shape();
  const bool blocks = shape.rank() == 3 && shape[1] == shape[2];
  const std::optional<std::size_t> side = blocks || shape.rank() == 1 ? packed_side(shape[0]) : std::nullopt;
  if (!side) {
    throw ShapeError("unpack: a packed kernel has shape [n (n + 1) / 2] or [n (n + 1) / 2, O, O], found " +
                     shape.to_string());
  }
  const std::size_t n = *side;
  const std::size_t outputs = blocks ? shape[1] : 1;
  Tensor<T> result(blocks ? Shape{n, n, outputs, outputs} : Shape{n, n});
  const std::size_t block = outputs * outputs;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      const T* const from = packed.data() + (packed_size(i) + j) * block;
      T* const lower = result.data() + (i * n + j) * block;
      T* const upper = result.data() + (j * n + i) * block;
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
template Tensor<float> unpack(TensorView<const float>);
template Tensor<double> unpack(TensorView<const double>);

Tensor<double> unpack(const NpyArray& packed) {
  return unpack<double>(packed.to_tensor<double>());
}

}  // namespace gradgram::ntk
