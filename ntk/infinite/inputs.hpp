#pragma once

#include <cstddef>
#include <vector>

#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"

/// The examples of one side, before the first step.
namespace gradgram::ntk::infinite {

/// Whether x is [n, ...input], n > 0; what is not is refused, or has nothing to be counted.
template <class T>
bool holds_examples(const Program& program, TensorView<const T> x);

/// Mean square of the features of each pixel. Throws NumericError for inputs that are not finite.
template <class T>
std::vector<double> input_variances(const Program& program, TensorView<const T> x, const char* name);

/// The examples of one side as the first step reads them, divided by the root of their scale.
template <class T>
class Inputs {
 public:
  /// `exponent`: of the scale, even. Without `transposed` there are no columns().
  Inputs(const Program& program, TensorView<const T> x, int exponent, bool transposed);

  /// [example, pixel, channel].
  const T* rows() const noexcept { return rows_.data(); }
  /// Full: [example, channel, pixel]; Diagonal: [pixel, channel, example]; both padded to stride().
  const T* columns() const noexcept { return columns_.data(); }
  std::size_t stride() const noexcept { return stride_; }

 private:
  Tensor<T> rows_, columns_;
  std::size_t stride_ = 0;
};

}  // namespace gradgram::ntk::infinite
