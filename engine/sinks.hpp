#pragma once

#include <span>
#include <vector>

#include "engine/parameters.hpp"
#include "engine/sink.hpp"

namespace gradgram {

/// Ignores every use: a reverse pass for the cotangents of the inputs alone.
template <class T>
class NullSink final : public Sink<T> {
 public:
  void use(const DenseUse<T>&, Arena&) override {}
  void use(const ConvUse<T>&, Arena&) override {}
};

/// Adds the gradients summed over the examples of the block to `gradient` (same layout as the network's
/// parameters). Cost: one GEMM per dense use, one weight-gradient convolution per conv use.
template <class T>
class SummedGradientSink final : public Sink<T> {
 public:
  explicit SummedGradientSink(ParameterSet<T>& gradient) : gradient_(gradient) {}
  void use(const DenseUse<T>& use, Arena& scratch) override;
  void use(const ConvUse<T>& use, Arena& scratch) override;

 private:
  ParameterSet<T>& gradient_;
};

/// Adds per-example gradients to the rows of `rows` [examples, row_stride >= P]; the caller zeroes them
/// first. The gradient of parameter i goes to columns [offsets[i], offsets[i] + size of i); an offset of
/// kNoParameter skips it.
template <class T>
class JacobianSink final : public Sink<T> {
 public:
  /// rows: first example's row; row_stride in elements.
  JacobianSink(T* rows, std::size_t row_stride, std::span<const std::size_t> offsets)
      : rows_(rows), row_stride_(row_stride), offsets_(offsets) {}
  void use(const DenseUse<T>& use, Arena& scratch) override;
  void use(const ConvUse<T>& use, Arena& scratch) override;

 private:
  T* rows_;
  std::size_t row_stride_;
  std::span<const std::size_t> offsets_;
};

/// Adds each example's squared gradient norm to norms[i] (f64): the kernel's diagonal, without the gradient
/// where the factors suffice: ||a||^2 ||b||^2 for one position; at many, when that is cheaper,
/// sum_{p, q} (b_p . b_q) (a_p . a_q) over pairs of positions, for a convolution of stride 1 whose output is
/// as large as its input with a sum over taps (simd::PositionNorm): L^2 (c_in + c_out) / 2 multiply-adds.
/// Right only for parameters used once: for the others the cross terms between uses are missing, so their
/// indices must be listed in `shared`; their gradients are then formed, and finish() adds their norms.
template <class T>
class SquaredNormSink final : public Sink<T> {
 public:
  /// norms: [examples]. `parameters` gives the shapes; `shared` the indices of parameters with more than one
  /// use.
  SquaredNormSink(std::span<double> norms, const ParameterSet<T>& parameters,
                  std::span<const std::size_t> shared);
  void use(const DenseUse<T>& use, Arena& scratch) override;
  void use(const ConvUse<T>& use, Arena& scratch) override;
  /// Call once after the reverse pass.
  void finish();
  /// What a use takes from the arena beyond the gradient that it may form.
  static std::size_t scratch_bytes(const ConvGeometry& geometry);

 private:
  std::span<double> norms_;
  std::vector<std::size_t> offsets_;  ///< of shared parameters in a row of gradients_, else kNoParameter
  std::size_t row_stride_ = 0;
  Tensor<T> gradients_;  ///< [examples, row_stride]
};

}  // namespace gradgram
