#pragma once

#include <cstddef>
#include <stop_token>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "models/model.hpp"
#include "models/network.hpp"

namespace gradgram::ntk {

struct InfiniteOptions {
  bool nngp = false;       ///< the covariance of one output feature: the Gaussian process at initialization
  bool ntk = true;         ///< the tangent kernel of one output feature (any two features: zero)
  std::size_t memory = 0;  ///< bytes that everything may take; 0 = half of the machine's
  Progress progress;
  std::stop_token stop;
};

/// Those asked for; the other is empty.
template <class T>
struct InfiniteKernels {
  Tensor<T> nngp;  ///< [n, n']
  Tensor<T> ntk;   ///< [n, n']
};

/// The kernels that `model` tends to as all its widths grow, in the NTK parameterization with the variances
/// of `options` (weight_variance, bias_variance; the parameterization and seed named there are not read) or
/// those that a layer gives itself. x: [n, ...input]. Symmetric bit for bit; zero inputs give zeros
/// where there are no biases. The same bits for any number of workers.
///
/// Cost per pair: one entry per layer (vectors), per layer and pixel (images whose head is flatten) or per
/// layer and pair of pixels (images with average pooling). Precision: f64 1e-10, f32 1e-5 relative to
/// sqrt(k_ii k_jj) (docs/infinite.md); f32 models that pool between nonlinearities, or have a smooth one
/// before one with a kink, run in f64 inside. Throws ArgumentError naming the layer that has no such
/// limit and why, ShapeError, BudgetError, NumericError when an input, variance or entry is not finite,
/// Cancelled.
template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, const InfiniteOptions& what,
                                   const Workers& workers);
/// The rectangular block between x and x'.
template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, TensorView<const T> versus,
                                   const InfiniteOptions& what, const Workers& workers);

}  // namespace gradgram::ntk
