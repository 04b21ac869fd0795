#pragma once

#include <span>
#include <vector>

#include "engine/tensor.hpp"
#include "ntk/spectrum.hpp"

namespace gradgram::ntk {

/// Residuals of the linearized network under gradient flow on 1/2 ||r||^2: r(t) = exp(-eta K t) r(0) for each time
/// eta_t = eta * t; residual [n, C] (the same K for each column). Returns [times, n, C]. Needs all eigenpairs.
Tensor<double> linearized_residuals(const Spectrum& spectrum, TensorView<const double> residual,
                                    std::span<const double> eta_t);
/// The same under full-batch gradient descent: r_t = (I - eta K)^t r_0.
Tensor<double> linearized_descent(const Spectrum& spectrum, TensorView<const double> residual, double eta,
                                  std::span<const double> steps);

}  // namespace gradgram::ntk
