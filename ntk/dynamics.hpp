#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/tensor.hpp"
#include "ntk/spectrum.hpp"

namespace gradgram::ntk {

/// U^T diag(factors) U values: a function of K applied to values [n, C] (or [n]), one factor per eigenpair.
/// Returns [n, C]. Needs all eigenpairs; 4 n^2 C FLOP. Throws ShapeError, ArgumentError.
Tensor<double> apply_function(const Spectrum& spectrum, std::span<const double> factors,
                              TensorView<const double> values);

/// Residuals of the linearized network under gradient flow on 1/2 ||r||^2: r(t) = exp(-eta K t) r(0) for each
/// time eta_t = eta * t >= 0; residual [n] or [n, C] (the same K for each column). Returns [times, n, C].
/// Needs all eigenpairs; 4 n^2 C FLOP per time. Eigenvalues that are negative within their error bar count as
/// 0. Throws ShapeError, ArgumentError, and NumericError when a result is not finite.
Tensor<double> linearized_residuals(const Spectrum& spectrum, TensorView<const double> residual,
                                    std::span<const double> eta_t);
/// The same under full-batch gradient descent: r_t = (I - eta K)^t r_0, t whole numbers >= 0. Stable iff
/// eta < 2 / lambda_max.
Tensor<double> linearized_descent(const Spectrum& spectrum, TensorView<const double> residual, double eta,
                                  std::span<const double> steps);
/// Outputs on unseen points under gradient flow: f_t(x*) = f_0(x*) - K(x*, X) K^{-1} (I - exp(-eta K t)) r_0
/// for each time; versus = K(x*, X) [m, n], initial = f_0(x*) [m, C] (or [m]). Returns [times, m, C].
Tensor<double> linearized_predictions(const Spectrum& spectrum, TensorView<const double> versus,
                                      TensorView<const double> initial, TensorView<const double> residual,
                                      std::span<const double> eta_t);
/// Outputs f_t [times, n, C] of the linearized network under gradient flow on the sum of cross-entropies:
/// df/dt = -eta K (softmax(f) - Y), which has no closed form; integrated by Heun's method in equal steps
/// between the times (ascending), each at most `step` / lambda_max long; 4 n^2 C FLOP per step. The error
/// falls as step^2; flow and step are stable for step < 4. Throws ArgumentError when more than `most_steps`
/// would be needed.
Tensor<double> linearized_cross_entropy(TensorView<const double> kernel, double largest_eigenvalue,
                                        TensorView<const double> initial,
                                        std::span<const std::int32_t> labels, std::span<const double> eta_t,
                                        double step = 0.5, std::size_t most_steps = 20000);

}  // namespace gradgram::ntk
