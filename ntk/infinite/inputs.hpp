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

/// Where every step maps multiples to multiples, so do both kernels, K(a x, b y) = a b K(x, y), and powers of
/// two may be taken out of examples: covariances between variances that are far apart, held as rounded
/// differences from their mean, would lose the smaller example. Examples are taken together with all within a
/// factor of 2^14 above the smallest of them, so that sets of less keep their digits as they are, and
/// near-duplicates theirs.
class Norms {
 public:
  Norms() = default;
  /// `variances`: of both sides, from input_variances().
  Norms(const Program& program, const std::vector<double>& left, const std::vector<double>& right);
  /// Exponents of the powers of two that examples are to be divided by; empty where all are 0. Divides the
  /// variances by their squares.
  std::vector<int> take_out(const Program& program, std::vector<double>& variances) const;

 private:
  std::vector<double> begins_;  ///< smallest variances of those taken together, empty where all are
};

/// Whether every step maps multiples of its input to the same multiples of its output.
bool maps_multiples(const Program& program);

/// The examples of one side as the first step reads them, divided by the root of their scale.
template <class T>
class Inputs {
 public:
  /// `exponent`: of the scale, even. `norms`: those of Norms::take_out. Without `transposed` there are no
  /// columns().
  Inputs(const Program& program, TensorView<const T> x, int exponent, const std::vector<int>& norms,
         bool transposed);

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
