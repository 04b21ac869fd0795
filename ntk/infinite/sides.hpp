#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"

/// What belongs to one example rather than to a pair: the variance at every place of the program.
namespace gradgram::ntk::infinite {

/// Powers of two in which numbers are held, so that deep networks neither overflow nor vanish in f32:
/// a variance or covariance at slot s is the stored number times 2^variance[s], a tangent kernel times
/// 2^theta[s]. Exact, hence without influence on the digits.
struct Scales {
  std::vector<int> variance;  ///< even, so that roots are held in a power of two as well
  std::vector<int> theta;
};

/// Of those steps that have no closed form, else null.
using SeriesList = std::vector<std::unique_ptr<SmoothForm>>;

/// Follows the largest and the smallest nonzero variance of the inputs through the program. `tolerance` is
/// that of series and mixtures, which suit every variance that can be met. Throws NumericError naming the
/// layer that meets one whose square is not a number.
Scales choose_scales(const Program& program, double largest, double smallest, double tolerance,
                     SeriesList& series);

/// The variances of one example, held in f64 in the scales above.
struct ExampleVariances {
  std::vector<std::vector<double>> variance;  ///< [slot][pixel]
  std::vector<std::vector<double>> factor;    ///< [step][pixel], see simd::CovarianceBlock
  std::vector<std::vector<double>> inverse;   ///< [step][pixel]
};
/// Fills the factors of one step and the variances after it; behind pooling the variances are zero. Throws
/// NumericError when they leave the numbers.
void advance(const Program& program, const Scales& scales, const SeriesList& series, std::size_t step,
             ExampleVariances& example);

/// The same for many examples, in T. Vector and Diagonal reach: [pixel][example], so that a row of pairs is
/// contiguous; Full: [example][pixel]. Rows are padded to registers.
template <class T>
class Sides {
 public:
  Sides(const Program& program, std::size_t examples);
  /// Those of another precision, rounded.
  template <class From>
  Sides(const Program& program, const Sides<From>& from);
  void set(std::size_t example, const ExampleVariances& from);

  std::size_t examples() const noexcept { return examples_; }
  const T* variance(std::size_t slot, std::size_t group, std::size_t example) const {
    return at(variance_[slot], group, example);
  }
  const T* factor(std::size_t step, std::size_t group, std::size_t example) const {
    return at(factor_[step], group, example);
  }
  const T* inverse(std::size_t step, std::size_t group, std::size_t example) const {
    return at(inverse_[step], group, example);
  }
  /// Whether every variance of the example is zero: so are its kernels, whatever rounding says.
  bool null(std::size_t example) const { return null_[example] != 0; }
  /// Whether one of [example, example + count) is.
  bool any_null(std::size_t example, std::size_t count) const {
    return std::memchr(null_.data() + example, 1, count) != nullptr;
  }
  /// Bytes that so many examples take.
  static std::size_t bytes(const Program& program, std::size_t examples);

 private:
  template <class>
  friend class Sides;

  const T* at(const Tensor<T>& array, std::size_t group, std::size_t example) const {
    const std::size_t stride = array.shape()[1];
    return full_ ? array.data() + example * stride : array.data() + group * stride + example;
  }
  void write(Tensor<T>& array, std::size_t example, const std::vector<double>& values) const;

  std::size_t examples_;
  bool full_;
  std::vector<Tensor<T>> variance_, factor_, inverse_;
  std::vector<unsigned char> null_;  ///< not bool: examples are set by several threads
};

/// n rounded up to whole registers of T.
template <class T>
constexpr std::size_t padded(std::size_t n) {
  return (n + simd::kColumnPadding<T> - 1) / simd::kColumnPadding<T> * simd::kColumnPadding<T>;
}

}  // namespace gradgram::ntk::infinite
