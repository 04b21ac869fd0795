#pragma once

#include <cstddef>
#include <vector>

#include "engine/covariance.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/sides.hpp"

/// The recursion on one block of pairs.
namespace gradgram::ntk::infinite {

/// Covariances of a block. Vector and Diagonal reach: `groups` pixels, each a matrix of examples x examples.
/// Full reach: one pair of examples, a matrix of pixels x pixels.
template <class T>
class PairState {
 public:
  /// Contents become undefined. Columns are padded to registers.
  void resize(std::size_t groups, std::size_t rows, std::size_t columns, bool tangent);

  std::size_t groups() const noexcept { return groups_; }
  std::size_t rows() const noexcept { return rows_; }
  std::size_t columns() const noexcept { return columns_; }
  std::size_t stride() const noexcept { return stride_; }
  std::size_t matrix() const noexcept { return rows_ * stride_; }
  std::size_t size() const noexcept { return groups_ * matrix(); }
  T* delta(std::size_t group = 0) noexcept { return delta_.data() + group * matrix(); }
  /// Null when only covariances are followed.
  T* theta(std::size_t group = 0) noexcept { return tangent_ ? theta_.data() + group * matrix() : nullptr; }
  void copy_from(const PairState& other);

 private:
  Tensor<T> delta_, theta_;  ///< grown, never shrunk
  std::size_t groups_ = 0, rows_ = 0, columns_ = 0, stride_ = 0;
  bool tangent_ = false;
};

/// Where a block stands.
template <class T>
struct BlockPlace {
  const Sides<T>* left = nullptr;
  const Sides<T>* right = nullptr;
  std::size_t row = 0;     ///< first example of the left side; the only one when the reach is Full
  std::size_t column = 0;  ///< of the right side; a multiple of simd::kColumnPadding<T> unless Full
  bool same_set = false;   ///< both sides are the same examples in the same order
};

/// Scratch of one worker; not shared.
template <class T>
class Propagator {
 public:
  Propagator(const Program& program, const Scales& scales, const SeriesList& series, bool tangent);

  /// The block to fill with the deltas of slot 0 before run(): theta is set to zero here.
  PairState<T>& start(std::size_t groups, std::size_t rows, std::size_t columns);
  /// After start(): sin^2 of the angles between the pre-activations of step `index`, to be filled where that
  /// is better known than from delta; laid out as the block, zeros at first.
  T* sine_squares(std::size_t index);
  /// Follows the block through steps [begin, end); start()'s state then holds the result.
  void run(const BlockPlace<T>& place, std::size_t begin, std::size_t end);
  PairState<T>& state() noexcept { return states_[0]; }
  /// Makes the mean over all pairs of pixels, in the scales before step `index`, which averages, the state
  /// after it.
  void set_mean(std::size_t index, const BlockPlace<T>& place, double delta, double theta);
  /// The same for windows side by side, from the state of their means in the scales before step `index`.
  void set_windows(std::size_t index, const BlockPlace<T>& place);

 private:
  void step(std::size_t index, const BlockPlace<T>& place);
  void affine(const Step& step, const BlockPlace<T>& place);
  void gather_diagonal(const ConvGeometry& geometry);
  void gather_full(const Step& step, const BlockPlace<T>& place);
  void nonlinear(std::size_t index, const BlockPlace<T>& place);
  void series(std::size_t index, const BlockPlace<T>& place, const simd::CovarianceBlock<T>& block,
              std::size_t group);
  void mixture(const LogisticMixture& mixture, const simd::CovarianceBlock<T>& block);
  void pool(std::size_t index, const BlockPlace<T>& place);
  void flatten(const Step& step);
  void dropout(const Step& step, const BlockPlace<T>& place);
  void add(const Step& step);
  void rescale(const Step& step);
  /// sin^2 behind an arc-cosine step, from that before it, for the step that reads angles next if nothing but
  /// dense layers is between.
  void carry_through(std::size_t index, const simd::CovarianceBlock<T>& block);
  /// The same through a dense layer, whose deltas are those after it.
  void carry_through_affine(const Step& step, const BlockPlace<T>& place);
  bool same_example(const BlockPlace<T>& place, std::size_t row, std::size_t column) const;
  simd::CovarianceBlock<T> block(const Step& step, std::size_t index, const BlockPlace<T>& place,
                                 std::size_t group);

  const Program& program_;
  const Scales& scales_;
  const SeriesList& series_;
  bool tangent_;
  const simd::CovarianceTable<T>& kernels_;
  std::vector<PairState<T>> states_;  ///< [0] is current, the rest were put aside, oldest first
  std::size_t aside_ = 0;
  PairState<T> spare_, frame_;
  Tensor<T> line_;
  std::vector<const T*> inputs_;
  std::vector<double> coefficients_[4];
  std::vector<T> left_value_, left_slope_, right_value_, right_slope_;
  std::vector<T> sine_squares_;  ///< empty where they follow from delta
  std::size_t sine_step_ = 0;
  bool carried_ = false;  ///< from an earlier step: dense layers on the way change them
};

}  // namespace gradgram::ntk::infinite
